"""The picture of the README: what the file restores, and what students learn from its feature maps and from clean ones.

Two students of one kind imitate the maps of three layers by a plain MSE, weight 1, for 200 steps: one the clean maps,
one those that the protected file exposes. All panels show the same part of a photograph that no training saw.

    python examples/picture.py        # writes docs/assets/students.webp; some minutes
"""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageDraw, ImageFont

import asvp_export

HERE = Path(__file__).resolve().parent
PHOTOGRAPHS = HERE.parent / "asvp_export" / "photographs"
TARGET = HERE.parent / "docs" / "assets" / "students.webp"
TASK, LAYERS, STEPS = "lowlight", "auto:3", 200
PANELS = {
    "input": "input",
    "original": "teacher",
    "protected file": "protected",
    "student of clean maps": "original/mse-1",
    "student of protected maps": "shipped/mse-1",
}
SIDE, GAP, LINE = 256, 6, 46  # pixels: of a panel, between two, and of the words below


def measured() -> tuple[dict[str, Image.Image], dict[str, float]]:
    """What each model makes of the picture, and its PSNR in dB over all the audit photographs."""
    teacher = asvp_export.load(HERE / "teachers" / f"{TASK}.safetensors", arch=f"{HERE / 'nets.py'}:{TASK}")
    with TemporaryDirectory() as folder:
        inputs = Path(folder, "inputs")  # layers are ranked on pictures as the teacher gets them
        subprocess.run([sys.executable, HERE / "degrade.py", TASK, PHOTOGRAPHS / "verify", inputs], check=True)
        result = asvp_export.audit(
            teacher,
            layers=LAYERS,
            images=inputs,
            task=TASK,
            student=f"{HERE / 'nets.py'}:{TASK}_student",
            rows=["shipped/mse-1"],
            seeds=1,
            steps=STEPS,
            report=folder,
            cache=HERE.parent / "build" / "picture",
        )
    pictures = {name: Image.open(io.BytesIO(data)) for name, data in result.pictures.items()}
    scores = {row: result.by_name[row].psnr for row in ("original/mse-1", "shipped/mse-1")}
    models = result.model_scores
    return pictures, scores | {"teacher": models.original_psnr, "protected": models.shipped_psnr}


def drawn(pictures: dict[str, Image.Image], scores: dict[str, float]) -> Image.Image:
    """The panels side by side, each over its name and its PSNR."""
    width = len(PANELS) * SIDE + (len(PANELS) - 1) * GAP
    made = Image.new("RGB", (width, SIDE + LINE), "white")
    pen, font = ImageDraw.Draw(made), ImageFont.load_default(17)
    for index, (words, name) in enumerate(PANELS.items()):
        left = index * (SIDE + GAP)
        made.paste(pictures[name].convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, 0))
        text = f"{words}\n{scores[name]:.1f} dB" if name in scores else words
        pen.multiline_text((left + SIDE / 2, SIDE + 3), text, "black", font, anchor="ma", align="center", spacing=2)
    return made


def main() -> None:
    """Write the picture."""
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    drawn(*measured()).save(TARGET, quality=88, method=6)


if __name__ == "__main__":
    main()
