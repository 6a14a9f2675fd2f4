"""Which inputs a verification takes: those that the user names, or as many of ours as the model's cost allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asvp_export.images import list_images, photographs
from asvp_export.options import GateOptions
from asvp_export.parity.cases import Case, Size, build_cases
from asvp_export.picture import left_out
from asvp_export.signature import SizeRule
from asvp_export.teacher.cost import multiply_adds
from asvp_export.teacher.model import Teacher

BUDGET = 60e9
"""Multiply-adds of one run through all default inputs; a model for which the least set costs more gets that set."""

# What is tried in turn: every photograph (two of each scene) or one of each scene, and the side of the larger crop.
_LADDER = ((False, 256), (True, 256), (True, 192), (True, 128), (True, 96), (True, 64))


@dataclass(frozen=True)
class Comparison:
    """What was compared, for the report."""

    images: int
    """Pictures."""

    sizes: tuple[str, ...]
    """Height x width of the inputs, without padding."""

    inputs: int
    """Inputs, batches among them."""

    multiply_adds: int
    """Of one run of the original through all inputs: convolutions and matrix products."""

    first_multiply_adds: int
    """Of them, those of the first input."""

    reason: str
    """Why just these."""

    def as_dict(self) -> dict[str, Any]:
        """For a report."""
        return {
            **{key: value for key, value in asdict(self).items() if key != "first_multiply_adds"},
            "sizes": list(self.sizes),
        }

    def __str__(self) -> str:
        shown = ", ".join(self.sizes) if len(self.sizes) <= 4 else f"{len(self.sizes)} sizes"
        return f"{self.inputs} inputs from {self.images} images, {shown} ({self.reason})"


@dataclass(frozen=True)
class RequestedInputs:
    """What the user says of the inputs to verify on."""

    images: str | Path | Sequence[Path] | None = GateOptions.images
    """Folder of inputs of the teacher, or the pictures themselves; None: the project's own photographs."""

    sizes: Sequence[Size] = GateOptions.sizes
    """(height, width) of the crops; none: the whole picture and an odd crop."""

    thorough: bool = GateOptions.thorough
    """All of the project's own photographs, whole, whatever they cost."""

    @property
    def paths(self) -> list[Path]:
        """The pictures, all of them.

        Raises:
            InputError: the folder does not exist or holds no picture.
        """
        if self.images is None:
            return list_images(photographs("verify"))
        return list_images(self.images) if isinstance(self.images, str | Path) else list(self.images)

    @property
    def notes(self) -> list[str]:
        """What is left out of pictures that the user names.

        Raises:
            InputError: as for `paths`, or a picture cannot be read.
        """
        return [] if self.images is None else left_out(self.paths)


def verification_inputs(
    teacher: Teacher, requested: RequestedInputs, size: SizeRule, fixed: Sequence[int | None]
) -> tuple[list[Case], Comparison]:
    """The inputs that two models are compared on.

    Pictures and sizes that the user names are all used. By default the budget decides: as many of the project's
    photographs, and as large crops of them, as one run of the model may cost; never under four scenes, two sizes (one
    of them odd and not square) and one batch of 2.

    Args:
        teacher: the original.
        requested: what the user names.
        size: the sizes that both models take.
        fixed: the dimensions N, C, H, W that are frozen in one of them; None where free.

    Raises:
        InputError: as for `asvp_export.parity.cases.build_cases`.
    """

    def cases(paths: Sequence[Path], sizes: Sequence[Size]) -> list[Case]:
        return build_cases(
            paths, size=size, data_range=teacher.data_range, signature=teacher.signature, sizes=sizes, fixed=fixed
        )

    cost_a_pixel = multiply_adds(teacher)

    def cost(built: Sequence[Case]) -> float:
        return cost_a_pixel * sum(case.batch * case.input.shape[-1] * case.input.shape[-2] for case in built)

    def comparison(built: Sequence[Case], images: int, reason: str) -> tuple[list[Case], Comparison]:
        sizes = tuple(dict.fromkeys(case.size for case in built))
        first_cost = cost_a_pixel * built[0].batch * built[0].input.shape[-1] * built[0].input.shape[-2]
        return list(built), Comparison(images, sizes, len(built), round(cost(built)), round(first_cost), reason)

    paths = requested.paths
    if requested.images is not None or requested.thorough:
        reason = "all that were named" if requested.images is not None else "all of the default photographs"
        return comparison(cases(paths, requested.sizes), len(paths), reason)
    scenes = [path for path in paths if path.stem.endswith("_1")]
    for one_a_scene, side in _LADDER:
        everything = (one_a_scene, side) == _LADDER[0]
        pictures, crop = scenes if one_a_scene else paths, max(side, size.minimum)
        crops = [] if side == _LADDER[0][1] or None not in fixed[2:] else [(fixed[2] or crop, fixed[3] or crop)]
        built = cases(pictures, requested.sizes or crops)
        if cost(built) <= BUDGET or (one_a_scene, side) == _LADDER[-1]:
            hint = f"--thorough takes all {len(paths)}, whole"
            limit = f"what a budget of {BUDGET / 1e9:g}e9 multiply-adds allows; {hint}"
            if cost(built) > BUDGET:
                limit = f"the least set, over a budget of {BUDGET / 1e9:g}e9 multiply-adds; {hint}"
            return comparison(built, len(pictures), "all of the default photographs" if everything else limit)
    raise AssertionError("the ladder has a last step")


def same_inputs(first: Sequence[Case], second: Sequence[Case]) -> bool:
    """Whether two lists of cases feed a model the same values."""
    return len(first) == len(second) and all(
        (a.name, a.size) == (b.name, b.size)
        and all(x.shape == y.shape and (x == y).all() for x, y in zip(a.inputs, b.inputs, strict=True))
        for a, b in zip(first, second, strict=True)
    )
