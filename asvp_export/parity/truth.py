"""Ground truth: the clean pictures that the inputs of a comparison were made from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from asvp_export.errors import InputError
from asvp_export.images import as_channels, list_images, read_image
from asvp_export.parity.cases import Case
from asvp_export.parity.metrics import psnr
from asvp_export.signature import ValueRange, shape_text
from asvp_export.teacher.model import Teacher


def read_truth(folder: str | Path, images: Sequence[Path], teacher: Teacher) -> dict[str, np.ndarray]:
    """Read the clean picture of each input.

    Args:
        folder: with pictures that have the inputs' names; their suffixes may differ.
        images: the inputs.
        teacher: its scale is the size of a clean picture by that of its input.

    Returns:
        By the input's name without its suffix, H, W, 3 in 0..1.

    Raises:
        InputError: a picture is missing, unreadable, twice there, or not as large as the input times the scale; or the
            teacher restores videos.
    """
    if teacher.signature.frames:
        raise InputError(
            f"Ground truth was given, and {teacher.source} restores videos; ground truth can be compared for pictures "
            "only. Leave it out."
        )
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in list_images(folder):
        by_stem[path.stem].append(path)
    return {path.stem: _fitting(path, by_stem.get(path.stem, []), Path(folder), teacher.scale) for path in images}


def _fitting(image: Path, paths: Sequence[Path], folder: Path, scale: int | Fraction) -> np.ndarray:
    if len(paths) != 1:
        names = " and ".join(path.name for path in paths)
        problem = f"{names} are both there; keep one" if paths else f"none is called {image.stem}; add it"
        raise InputError(f"The input {image.name} needs one clean picture of the same name in {folder}: {problem}.")
    picture, clean = read_image(image), read_image(paths[0])
    expected = tuple(side * scale for side in picture.shape[:2])
    if clean.shape[:2] != expected:
        raise InputError(
            f"The ground truth {paths[0]} is {shape_text(clean.shape[:2])} (height x width); the input {image.name} of "
            f"{shape_text(picture.shape[:2])} times the scale {scale} makes {shape_text(expected)}. Give the clean "
            "pictures that the inputs were made from."
        )
    return clean


def clean_of(case: Case, truth: Mapping[str, np.ndarray], scale: int | Fraction) -> np.ndarray | None:
    """What a perfect restoration of a case is, cut as the case was: N, H, W, 3 in 0..1.

    None where no whole pixels of the clean picture lie where the case was cut, which a fractional scale can make so.
    """
    height, width = case.height * scale, case.width * scale
    images = []
    for cut in case.cuts:
        top, left = cut.top * scale, cut.left * scale
        if any(Fraction(length).denominator != 1 for length in (top, left, height, width)):
            return None
        clean = truth[cut.picture.stem][int(top) : int(top + height), int(left) : int(left + width)]
        images.append(clean[:, ::-1] if cut.mirrored else clean)
    return np.asarray(images)


def truth_psnr(clean: np.ndarray, tested: np.ndarray, values: ValueRange) -> float:
    """PSNR in dB of the worst sample against ground truth, the output clipped to black and white as a viewer does.

    Args:
        clean: from `clean_of`.
        tested: N, C, H, W, the main output without padding.
        values: of the model.

    Raises:
        InputError: the output is not as large as the clean picture.
    """
    expected = as_channels(clean, tested.shape[1])
    if expected.shape != tested.shape:
        raise InputError(
            f"The output is {shape_text(tested.shape[2:])} (height x width) where the ground truth is "
            f"{shape_text(expected.shape[2:])}: this model cuts a border off, so its outputs cannot be compared with "
            "clean pictures. Leave the ground truth out."
        )
    return psnr(expected, np.clip(values.to_unit(tested), 0, 1), 1.0)
