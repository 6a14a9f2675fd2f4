"""The pictures of an audit: those that attackers distil with, those that they choose by, and those of the test."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from asvp_export.distillation.degradations import DEGRADATIONS, degrade, generator
from asvp_export.errors import InputError
from asvp_export.images import as_channels, list_images, photographs, read_image
from asvp_export.signature import SizeRule, shape_text
from asvp_export.teacher.model import Teacher

_TWINS = 4  # degraded twins of each clean picture that attackers train with
_TEST_SIDE = 256  # side of a test picture in clean pixels: more takes time and says no more
_MOST_PICTURES = 64  # pictures of a folder that are used, spread evenly over the names: there are 256 patches in all
_USED_SIDE = 512  # side of the middle of them that is used, in clean pixels; together they bound the memory
_PATCH_SIDE = 64  # side of a training patch in clean pixels


@dataclass(frozen=True, eq=False)
class Pair:
    """A picture as the teacher gets it, and what a perfect restoration is."""

    name: str
    """Of the file, without its suffix."""

    degraded: np.ndarray
    """h, w, 3 float32 in 0..1."""

    clean: np.ndarray
    """H, W, 3 float32 in 0..1, h and w times the teacher's scale."""


@dataclass(frozen=True, eq=False)
class Data:
    """The pictures in three parts; no scene is in two of them."""

    train: tuple[Pair, ...]
    """What students are trained with."""

    select: tuple[Pair, ...]
    """What attackers choose their loss, weight and adaptation by."""

    test: tuple[Pair, ...]
    """What every figure of the verdict is of."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all pixels and of the part that each picture is in."""
        digest = hashlib.sha256()
        for part in (self.train, self.select, self.test):
            digest.update(b"part")
            for pair in part:
                for pixels in (pair.degraded, pair.clean):
                    digest.update(f"{pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Patches:
    """What all students of an audit are trained on."""

    inputs: torch.Tensor
    """[N, C, h, w] float32, as the teacher takes them."""

    clean: torch.Tensor
    """[N, C, H, W] float32 in 0..1."""


def project_pictures(task: str) -> Data:
    """The project's photographs, degraded; weights and gains were never fitted to those of the test.

    Raises:
        InputError: there is no such task.
    """
    check_task(task)
    parts = {split: list_images(photographs(split)) for split in ("train", "verify", "audit")}
    return Data(
        _degraded(task, parts["train"], _TWINS), _degraded(task, parts["verify"]), _degraded(task, parts["audit"])
    )


def from_folder(folder: str | Path, task: str | None) -> Data:
    """A user's pictures.

    Args:
        folder: holds `train/` and `test/`, or is itself cut by name, three fifths to train with. Each has clean
            pictures, which are degraded as the task says, or the folders `input/` and `truth/` with pairs of one name.
            Of more than 64 pictures in a folder 64 are used, and the middle of large ones.
        task: a key of `DEGRADATIONS`; not needed for pairs.

    Raises:
        InputError: a folder or a partner is missing, there are too few pictures, or clean ones and no task.
    """
    folder = Path(folder)
    if task is not None:
        check_task(task)
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train, test = _read_pairs(folder / "train", task, _TWINS), _read_pairs(folder / "test", task)
        names = list(dict.fromkeys(pair.name for pair in train))
    else:
        twins, untwinned = _read_pairs(folder, task, _TWINS), _read_pairs(folder, task)
        names = [pair.name for pair in untwinned]
        cut = round(len(names) * 0.6)
        train, test = [pair for pair in twins if pair.name in names[:cut]], untwinned[cut:]
        names = names[:cut]
    if len(names) < 4 or not test:
        raise InputError(
            f"{folder} has {len(names)} picture(s) to train students with and {len(test)} to test them on; "
            "at least 4 and 1 are needed. Add pictures."
        )
    _check_apart(folder, train, test)
    select_names = set(names[-max(1, len(names) // 4) :])
    training = tuple(pair for pair in train if pair.name not in select_names)
    select = {pair.name: pair for pair in reversed(train) if pair.name in select_names}
    return Data(training, tuple(select[name] for name in sorted(select)), tuple(test))


def _check_apart(folder: Path, train: Sequence[Pair], test: Sequence[Pair]) -> None:
    training_names = {pair.clean.tobytes(): pair.name for pair in train}
    for pair in test:
        if (name := training_names.get(pair.clean.tobytes())) is not None:
            raise InputError(
                f"The training picture {name} and the test picture {pair.name} of {folder} are the same; remove one, "
                "so that no student is tested on what it has seen."
            )


def check_task(task: str) -> None:
    """Refuse a task that there is not.

    Raises:
        InputError: it is no key of `DEGRADATIONS`.
    """
    if task not in DEGRADATIONS:
        raise InputError(f"The task {task!r} was asked for; {', '.join(DEGRADATIONS)} are known.")


def _read_pairs(folder: Path, task: str | None, twins: int = 1) -> list[Pair]:
    inputs, truth = folder / "input", folder / "truth"
    if inputs.is_dir() and truth.is_dir():
        clean_paths = {path.stem: path for path in list_images(truth)}
        degraded = _spread(list_images(inputs))
        unpaired = [path.name for path in degraded if path.stem not in clean_paths]
        if unpaired:
            raise InputError(f"The input {unpaired[0]} needs a clean picture of the same name in {truth}; add it.")
        return [_middle(Pair(path.stem, read_image(path), read_image(clean_paths[path.stem]))) for path in degraded]
    if task is None:
        raise InputError(
            f"{folder} has no folders input/ and truth/, so its pictures are taken as clean; give --task to say how "
            f"they are degraded: {', '.join(DEGRADATIONS)}."
        )
    return list(_degraded(task, _spread(list_images(folder)), twins))


def _spread(paths: Sequence[Path]) -> list[Path]:
    """64 of them at most, spread evenly."""
    return (
        [paths[i * len(paths) // _MOST_PICTURES] for i in range(_MOST_PICTURES)]
        if len(paths) > _MOST_PICTURES
        else list(paths)
    )


def _middle(pair: Pair) -> Pair:
    """The middle of a large pair, copied so that the rest is given up; one of no whole factor stays as it is."""
    small, large = pair.degraded.shape[:2], pair.clean.shape[:2]
    factor = large[0] // small[0]
    if large != (small[0] * factor, small[1] * factor) or max(large) <= _USED_SIDE:
        return pair
    limit = _USED_SIDE // factor
    top, left = (max(0, (side - limit) // 2) for side in small)
    rows, columns = slice(top, top + limit), slice(left, left + limit)
    clean_part = (slice(part.start * factor, part.stop * factor) for part in (rows, columns))
    return Pair(pair.name, pair.degraded[rows, columns].copy(), pair.clean[tuple(clean_part)].copy())


def _degraded(task: str, paths: Sequence[Path], twins: int = 1) -> tuple[Pair, ...]:
    """Each picture as it is, and further twins of another exposure, colour and orientation."""
    pairs = []
    for path in paths:
        picture = read_image(path)
        top, left = (max(0, (side - _USED_SIDE) // 2) for side in picture.shape[:2])
        picture = picture[top : top + _USED_SIDE, left : left + _USED_SIDE].copy()
        for twin in range(twins):
            rng = generator(task, path.stem, twin)
            clean = jitter(picture, rng) if twin else picture
            degraded = degrade(task, clean, rng)
            # Odd sizes lose what half a pixel more would have needed.
            height, width = (
                side - side % (side // part) for side, part in zip(clean.shape, degraded.shape[:2], strict=False)
            )
            pairs.append(Pair(path.stem, degraded, clean[:height, :width]))
    return tuple(pairs)


def jitter(clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A plausible other photograph: turned, mirrored, channels permuted, exposure and tone changed."""
    clean = np.rot90(clean, int(rng.integers(4)))[:, :: rng.choice((-1, 1))]
    if rng.random() < 0.5:
        clean = clean[..., rng.permutation(3)]
    clean = clean ** rng.uniform(0.8, 1.25) * rng.uniform(0.85, 1.0) * rng.uniform(0.92, 1.0, 3)
    return np.round(clean * 255.0).astype(np.float32) / 255.0


def cut_patches(teacher: Teacher, pairs: Sequence[Pair], count: int, seed: int) -> Patches:
    """Aligned random patches, as many from each pair.

    Raises:
        InputError: a picture is too small, or not as large as the teacher's scale says.
    """
    rng = np.random.default_rng([seed, 2510])
    side = accepted_size(teacher, round(_PATCH_SIDE / teacher.scale))
    inputs, clean = [], []
    for index in range(count):
        x, y = _aligned(teacher, pairs[index % len(pairs)], side, rng)
        if rng.random() < 0.5:
            x, y = x[:, ::-1], y[:, ::-1]
        inputs.append(teacher.data_range.of(as_channels(x, teacher.channels)))
        clean.append(as_channels(y, teacher.channels))
    return Patches(torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(clean)))


def accepted_size(teacher: Teacher, side: int) -> tuple[int, int]:
    """The height and width of inputs that the teacher takes, about as large as wanted."""
    height, width = (fixed or _rule(teacher).fit(side) for fixed in teacher.static_shape[2:])
    return (height, width)


def _rule(teacher: Teacher) -> SizeRule:
    """Sizes that the teacher takes and whose outputs are whole pixels."""
    return teacher.size.stricter(SizeRule(multiple=Fraction(teacher.scale).denominator))


def centre_crop(teacher: Teacher, pair: Pair) -> Pair:
    """The middle of a picture, as large as the teacher takes and 256 clean pixels at most on a side."""
    size, rule = [], _rule(teacher)
    for side, fixed in zip(pair.degraded.shape[:2], teacher.static_shape[2:], strict=True):
        limit = min(side, math.floor(_TEST_SIDE / teacher.scale))
        size.append(fixed or max(limit // rule.multiple * rule.multiple, rule.minimum))
    if teacher.size.square:
        size = [min(size)] * 2
    x, y = _aligned(teacher, pair, (size[0], size[1]), None)
    return Pair(pair.name, x, y)


def _aligned(
    teacher: Teacher, pair: Pair, size: tuple[int, int], rng: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """The same part of both pictures: at a random location, or the middle."""
    scale = Fraction(teacher.scale)
    shape = pair.degraded.shape[:2]
    if pair.clean.shape[:2] != tuple(side * scale for side in shape):
        expected, actual = (shape_text(sides) for sides in ((side * scale for side in shape), pair.clean.shape[:2]))
        raise InputError(
            f"The clean picture of {pair.name} is {actual} (height x width); its input times the scale {scale} of "
            f"{teacher.source} makes {expected}. Give pairs, or a task, that fit the model."
        )
    if any(length > side or length * scale % 1 for length, side in zip(size, shape, strict=True)):
        raise InputError(
            f"The picture {pair.name} is {shape[0]}x{shape[1]} (height x width) as {teacher.source} gets it; an audit "
            f"of that model needs at least {size[0]}x{size[1]}. Use larger pictures."
        )
    step = scale.denominator
    top, left = (
        int((rng.integers((side - length) // step + 1) if rng is not None else (side - length) // step // 2) * step)
        for length, side in zip(size, shape, strict=True)
    )
    x = pair.degraded[top : top + size[0], left : left + size[1]]
    rows, columns = (
        slice(int(start * scale), int((start + count) * scale)) for start, count in ((top, size[0]), (left, size[1]))
    )
    return x, pair.clean[rows, columns]
