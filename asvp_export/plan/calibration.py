"""The crops that numbers are fitted to, and the photographs that they are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from asvp_export.errors import InputError
from asvp_export.images import as_channels, list_images, pad_to, photographs, read_image
from asvp_export.teacher.model import Teacher

_SEED = 2510
_SIDES = (48, 192)  # of the crops, in pixels
_AREA = 20_000  # pixels of photographs for each crop drawn
_LEAST = 72  # crops: with fewer than 64, photographs that were not seen lag behind (docs/results/strength.md)
_WHOLE = 256  # pixels a side: held-out photographs are cut to this, and count as whole

Inputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Calibration:
    """What a plan is fitted to; no photograph is in both parts."""

    crops: tuple[Inputs, ...]
    """Inputs that weights are solved on."""

    held_out: tuple[Inputs, ...]
    """On which the tolerance has to hold: the photographs whole, then as many crops, by which ridges are chosen."""

    names: tuple[str, ...]
    """File names of the photographs."""


def default_images() -> list[Path]:
    """The project's own photographs for fitting: no scene of theirs is among those that files are verified on."""
    return [*list_images(photographs("calibrate")), *list_images(photographs("train"))]


def split(images: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """One folder for both: the first three fifths by name to calibrate on, the others to verify on.

    Neighbours by name are often shots of one scene, so the folder is cut once and not dealt out.

    Raises:
        InputError: there are fewer than four images.
    """
    if len(images) < 4:
        raise InputError(
            f"{len(images)} image(s) were given to calibrate and to verify on; at least 4 are needed. "
            "Add images, or name a second folder with --verify-images."
        )
    cut = round(len(images) * 0.6)
    return list(images[:cut]), list(images[cut:])


def draw(teacher: Teacher, images: Sequence[Path], *, solved: bool = True, side: int = _WHOLE) -> Calibration:
    """Draw crops of several sizes with photometric variations from three quarters of the images; the others stay whole.

    What compensation has to see is many different leading components, more than many pixels: hence the sizes, and
    exposure, colour balance, channel order and negatives.

    Args:
        teacher: whose inputs they are to be.
        images: inputs of the teacher, as files.
        solved: whether weights are solved on them; without, all images are held out and there are no crops.
        side: in pixels, to which those that are held out are cut.

    Returns:
        The same crops for the same files in the same order.

    Raises:
        InputError: fewer than two images, an unreadable one, or one smaller than the teacher takes.
    """
    if len(images) < 2:
        raise InputError(f"{len(images)} image was given to calibrate on; at least 2 are needed. Add images.")
    pictures = [read_image(path) for path in images]
    held_out_indices = set(range(3, len(images), 4)) or {len(images) - 1} if solved else set(range(len(images)))
    crop_sources = [picture for i, picture in enumerate(pictures) if i not in held_out_indices]
    rng = np.random.default_rng(_SEED)
    area = sum(picture.shape[0] * picture.shape[1] for picture in crop_sources)
    count = min(max(_LEAST, area // _AREA), 3 * _LEAST) if solved else 0
    crops = tuple(
        _inputs(teacher, _varied(_cut(teacher, crop_sources[i % len(crop_sources)], rng, _SIDES), rng))
        for i in range(count)
    )
    whole = [_cut(teacher, pictures[i], rng, (side, side)) for i in sorted(held_out_indices)]
    small = [_cut(teacher, pictures[i], rng, _SIDES) for i in sorted(held_out_indices)]
    held_out = tuple(_inputs(teacher, picture) for picture in (*whole, *small))
    return Calibration(crops, held_out, tuple(path.name for path in images))


def _cut(teacher: Teacher, picture: np.ndarray, rng: np.random.Generator, sides: tuple[int, int]) -> np.ndarray:
    """A crop of a size that the teacher takes, from a random location."""
    low = max(teacher.size.minimum, min(sides[0], *picture.shape[:2]))
    size = []
    for limit, fixed in zip(picture.shape[:2], teacher.static_shape[2:], strict=True):
        drawn = int(rng.integers(min(low, limit), min(sides[1], limit) + 1))
        size.append(fixed or min(teacher.size.fit(drawn), max(teacher.size.fit(limit), teacher.size.minimum)))
    if teacher.size.square:
        size = [min(size)] * 2
    if teacher.static_shape[2] and (picture.shape[0] < size[0] or picture.shape[1] < size[1]):
        raise InputError(
            f"An image for calibration is {picture.shape[0]}x{picture.shape[1]} (height x width) and the model takes "
            f"{size[0]}x{size[1]} only; use larger images."
        )
    top, left = (
        int(rng.integers(0, max(limit - side, 0) + 1)) for limit, side in zip(picture.shape, size, strict=False)
    )
    return picture[top : top + size[0], left : left + size[1]]


def _varied(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrored or not; of five crops two as they are, three changed in exposure, colour balance, channels or sign."""
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    change = rng.integers(10)
    if change in (4, 5, 6):
        picture = picture * rng.uniform(0.5, 1.2)
    elif change in (7, 8):
        picture = picture * rng.uniform(0.7, 1.2, 3)
        picture = picture[..., rng.permutation(3)]
    elif change == 9:
        picture = 1 - picture
    return np.clip(picture, 0, 1).astype(np.float32)


def _inputs(teacher: Teacher, picture: np.ndarray) -> Inputs:
    frames = np.asarray([picture] * (teacher.signature.frames or 1))
    x = teacher.data_range.of(pad_to(as_channels(frames, teacher.channels), teacher.size))
    x = x if teacher.signature.frames else x[:1]
    x = x[None] if teacher.signature.frames else x
    batch = teacher.static_shape[0] or 1
    return teacher.inputs(torch.from_numpy(np.ascontiguousarray(np.repeat(x, batch, axis=0))).to(teacher.device))
