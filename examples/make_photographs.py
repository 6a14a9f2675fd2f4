"""Cut the project's photographs out of freely licensed pictures, and write the table of their sources.

Where the pictures come from (nothing is installed):
    apt-get download lomiri-wallpapers-16.04 lomiri-wallpapers-20.04    then dpkg -x FILE.deb FOLDER
    pip download --no-deps scikit-learn scikit-image                    then unzip FILE.whl -d FOLDER
Run from the repository root:
    python examples/make_photographs.py LOMIRI_16_04 LOMIRI_20_04 SCIKIT_IMAGE SCIKIT_LEARN
each argument the folder of the pictures: usr/share/backgrounds, skimage/data, sklearn/datasets/images.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

SIDE = 256
OUT = Path(__file__).resolve().parent.parent / "asvp_export" / "photographs"
PACKAGES = {
    "lomiri16": "Debian lomiri-wallpapers-16.04 (20.04.0-2)",
    "lomiri20": "Debian lomiri-wallpapers-20.04 (20.04.0-2)",
    "skimage": "PyPI scikit-image 0.26.0",
    "sklearn": "PyPI scikit-learn 1.9.1",
}
LICENCES = {
    "CC0 1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC BY 2.0": "https://creativecommons.org/licenses/by/2.0/",
    "CC BY 4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC BY-SA 3.0": "https://creativecommons.org/licenses/by-sa/3.0/",
    "CC BY-SA 4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "public domain": "https://creativecommons.org/publicdomain/mark/1.0/",
}


@dataclass(frozen=True)
class Scene:
    """One photograph, and the crops taken from it."""

    split: str
    name: str
    subject: str
    package: str
    file: str
    author: str
    licence: str
    long_side: int
    """Pixels of the longer side after scaling, before cropping."""
    corners: tuple[tuple[int, int], ...]
    """Left and top of each 256 x 256 crop in the scaled photograph."""


SCENES = (
    Scene(
        "train",
        "brushes",
        "paint brushes",
        "lomiri16",
        "Picture_1A_by_freespace.jpg",
        'Trevor "Freespace"',
        "CC BY 4.0",
        1000,
        ((30, 110), (310, 200), (90, 500)),
    ),
    Scene(
        "train",
        "wine",
        "a room with bottle and drum",
        "lomiri16",
        "Wine_by_Jakkub_Mede.jpg",
        "Jakub Mede",
        "CC BY 4.0",
        750,
        ((0, 10), (120, 50), (100, 350)),
    ),
    Scene(
        "train",
        "stream",
        "a stream in a wood",
        "lomiri16",
        "life_by_Aitzol_Berasategi.jpg",
        "Aitzol Berasategi",
        "CC BY 4.0",
        1100,
        ((480, 250), (800, 100), (30, 440), (480, 0)),
    ),
    Scene(
        "train",
        "picos",
        "mountains and a path",
        "lomiri16",
        "picosdeeuropa_by_Aitzol_Berasategi.jpg",
        "Aitzol Berasategi",
        "CC BY 4.0",
        1100,
        ((70, 90), (520, 130), (130, 520), (800, 180)),
    ),
    Scene(
        "train",
        "nuthatch",
        "a bird on bark",
        "lomiri20",
        "Kleiber_by_Lukas_Baubkus.jpg",
        "Lukas Baubkus",
        "CC BY-SA 3.0",
        1100,
        ((370, 180), (270, 363)),
    ),
    Scene("train", "dahlia", "a flower", "sklearn", "flower.jpg", "vultilion (Flickr)", "CC BY 2.0", 560, ((140, 60),)),
    Scene(
        "train",
        "dragonfly",
        "a dragonfly before leaves",
        "lomiri16",
        "Dragonfly_by_Bolly.jpg",
        "Bolly",
        "CC BY-SA 4.0",
        1100,
        ((490, 220), (660, 480)),
    ),
    Scene(
        "train",
        "clock",
        "a clock on a wall",
        "lomiri16",
        "greentock_by_Peter_Nerlich.jpg",
        "Peter Nerlich",
        "CC BY-SA 4.0",
        900,
        ((440, 170), (20, 330)),
    ),
    Scene(
        "calibrate",
        "aitzgorri",
        "autumn trees and mountains",
        "lomiri16",
        "aitzgorri_by_Aitzol_Berasategi.jpg",
        "Aitzol Berasategi",
        "CC BY 4.0",
        1000,
        ((390, 60), (640, 250), (20, 150)),
    ),
    Scene(
        "calibrate",
        "coffee",
        "a cup on a table",
        "skimage",
        "coffee.png",
        "Rachel Michetti",
        "CC0 1.0",
        600,
        ((160, 5), (344, 144)),
    ),
    Scene(
        "calibrate",
        "lamp",
        "a wooden bird under a lamp",
        "lomiri16",
        "free_by_Peter_Nerlich.jpg",
        "Peter Nerlich",
        "CC BY-SA 4.0",
        900,
        ((330, 330),),
    ),
    Scene(
        "calibrate",
        "bridge",
        "cables of a bridge",
        "lomiri16",
        "Bridge_by_Sander_Klootwijk.jpg",
        "Sander Klootwijk",
        "CC BY-SA 4.0",
        1000,
        ((560, 290), (300, 0)),
    ),
    Scene(
        "verify",
        "astronaut",
        "Eileen Collins",
        "skimage",
        "astronaut.png",
        "NASA",
        "public domain",
        512,
        ((90, 0), (256, 250)),
    ),
    Scene(
        "verify",
        "dogs",
        "dogs in a wooden house",
        "lomiri16",
        "friends_by_Aitzol_Berasategi.jpg",
        "Aitzol Berasategi",
        "CC BY 4.0",
        1100,
        ((180, 220), (300, 490)),
    ),
    Scene(
        "verify",
        "dandelion",
        "dandelions at sunset",
        "lomiri16",
        "seeding_by_Clements_Engelhardt.jpg",
        "Clemens Engelhardt",
        "CC0 1.0",
        800,
        ((110, 30), (390, 40)),
    ),
    Scene(
        "verify",
        "rocket",
        "a rocket at dusk",
        "skimage",
        "rocket.jpg",
        "SpaceX",
        "public domain",
        640,
        ((210, 171), (0, 150)),
    ),
    Scene(
        "audit",
        "pagoda",
        "a pagoda above a lake",
        "sklearn",
        "china.jpg",
        "danielbuechele (Flickr)",
        "CC BY 2.0",
        640,
        ((70, 20), (340, 171)),
    ),
    Scene(
        "audit", "cat", "Chelsea the cat", "skimage", "chelsea.png", "Stéfan van der Walt", "CC0 1.0", 451, ((110, 22),)
    ),
    Scene(
        "audit",
        "fig",
        "a fig in a bowl",
        "lomiri16",
        "Picture_0B_by_freespace.jpg",
        'Trevor "Freespace"',
        "CC BY 4.0",
        900,
        ((400, 190), (70, 330)),
    ),
    Scene(
        "audit",
        "sunset",
        "the sun over hills",
        "lomiri16",
        "sunset_by_Aitzol_Berasategi.jpg",
        "Aitzol Berasategi",
        "CC BY 4.0",
        1000,
        ((370, 130), (620, 390), (30, 380)),
    ),
)

README = """\
# Photographs

This folder has {crops} crops of {side} x {side} pixels from {scenes} natural colour photographs, as
lossless WebP. They are split by scene: no scene is in two splits.

| split | used for |
|---|---|
| `train` | training the example teachers |
| `calibrate` | everything that fits numbers to a teacher (gains, compensation) |
| `verify` | the gates of an export |
| `audit` | distillation attacks |

**Changes.** Every picture here was changed: the photograph was resized (Lanczos, to the longer side
given below, which some had already) and the box was cropped out of it. The box is left, top, right,
bottom in the resized photograph.

**Licences.** The photographs keep their own licences, which are not that of the code. A crop of a
CC BY-SA photograph stays under that CC BY-SA licence.

Made by [`examples/make_photographs.py`](../../examples/make_photographs.py), this table included.

| file | split | scene | author | source | licence | longer side | box |
|---|---|---|---|---|---|---|---|
{rows}

The Debian licences are in the copyright file of the package lomiri-wallpapers, those of
scikit-image in the docstrings of `skimage.data` ([astronaut](https://flic.kr/p/r9qvLn),
[rocket](https://www.flickr.com/photos/spacexphotos/16511594820/)), and those of scikit-learn in
`sklearn/datasets/images/README.txt`
([pagoda](https://www.flickr.com/photos/danielbuechele/6061409035/),
[dahlia](https://www.flickr.com/photos/vultilion/6056698931/)).
"""


def crops(scene: Scene, folder: Path) -> list[Image.Image]:
    """Scale a photograph and cut its crops, RGB."""
    photograph = ImageOps.exif_transpose(Image.open(folder / scene.file)).convert("RGB")
    scale = scene.long_side / max(photograph.size)
    size = (round(photograph.width * scale), round(photograph.height * scale))
    scaled = photograph.resize(size, Image.Resampling.LANCZOS)
    return [scaled.crop((x, y, x + SIDE, y + SIDE)) for x, y in scene.corners]


def row(scene: Scene, name: str, corner: tuple[int, int]) -> str:
    """One line of the table of sources."""
    x, y = corner
    licence = f"[{scene.licence}]({LICENCES[scene.licence]})"
    source = f"{PACKAGES[scene.package]}, `{scene.file}`"
    box = f"{x}, {y}, {x + SIDE}, {y + SIDE}"
    cells = (
        f"`{scene.split}/{name}`",
        scene.split,
        scene.subject,
        scene.author,
        source,
        licence,
        scene.long_side,
        box,
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Write every crop and the README that names its source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for package, title in PACKAGES.items():
        parser.add_argument(package, type=Path, help=f"folder of the pictures of {title}")
    folders = vars(parser.parse_args())
    rows = []
    for scene in SCENES:
        (OUT / scene.split).mkdir(parents=True, exist_ok=True)
        cut = crops(scene, folders[scene.package])
        for number, (corner, crop) in enumerate(zip(scene.corners, cut, strict=True), 1):
            name = f"{scene.name}_{number}.webp"
            crop.save(OUT / scene.split / name, lossless=True, quality=100, method=6)
            rows.append(row(scene, name, corner))
    text = README.format(crops=len(rows), scenes=len(SCENES), side=SIDE, rows="\n".join(rows))
    (OUT / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
