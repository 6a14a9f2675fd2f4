"""Protecting a teacher: with given numbers, or with the strongest ones that fit a tolerance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from asvp_export.errors import InputError
from asvp_export.graph.protect import Protected, fixed, insert, nodes_for
from asvp_export.images import list_images
from asvp_export.operator import Perturbation
from asvp_export.parity.result import PRESERVATION_DB
from asvp_export.progress import Say
from asvp_export.teacher.model import Teacher

AUTO = "auto"
DEFAULT_GAIN = 1.1  # beside no tolerance to fit: `Perturbation`'s own
MAX_GAIN = 10.0
COMPENSATIONS = ("none", "solve", "refine")


def protect(
    teacher: Teacher,
    layers: Sequence[str] | str = AUTO,
    *,
    rank: int | str = AUTO,
    gain: float | str = AUTO,
    energy: float = 1.0,
    axis: int | None = None,
    min_psnr: float = PRESERVATION_DB,
    max_gain: float = MAX_GAIN,
    compensate: str = "none",
    images: str | Path | None = None,
    verify_images: str | Path | None = None,
    progress: Say = lambda line: None,
) -> Protected:
    """Insert one node behind each selected layer; a layer that is called several times gets it at each call.

    With `gain="auto"` the nodes get the ranks and gains that buy the most strength while the worst verification image
    keeps `min_psnr` and 1 dB to spare. With `compensate` the layers that read a protected tensor are re-solved so that the
    outputs come back to the original's, where all of them are linear in it.

    Args:
        teacher: from `asvp_export.load`; it is not changed.
        layers: names or globs of the modules (`*` stays inside one dotted part, `**` crosses dots); "auto" or "auto:N": the
            N (3) layers that take the largest strength for the allowance; "none" or nothing: no node.
        rank: how many leading singular values are amplified (at most the layer's channels); "auto": what is best with the
            gain, 1 beside a gain that is given.
        gain: the factor on them, or "auto".
        energy: share of the squared singular values after which the count stops.
        axis: the channel axis; by default what the layer's output shows.
        min_psnr: dB that the worst image has to reach against the original, for "auto".
        max_gain: no gain that is chosen is larger.
        compensate: "none"; "solve" (in closed form); "refine" (then a training of all weights behind the first node against
            the original's outputs, minutes).
        images: folder of inputs of the teacher to calibrate on; without `verify_images` two fifths of them are kept to
            verify on. By default the project's own photographs.
        verify_images: folder of inputs to verify on.
        progress: called with a line at each step.

    Returns:
        The protected teacher, with its plan where numbers were fitted.

    Raises:
        InputError: an attribute out of range, an unknown layer or one that cannot carry the node, a tolerance that no gain
            meets, too few images, or compensation where no reader is linear.
    """
    check_wishes(rank, gain, max_gain, compensate, energy)
    automatic = gain == AUTO
    if isinstance(layers, str):
        layers = [layers]
    asked = [word for word in layers if word == AUTO or word.startswith(f"{AUTO}:")]
    if asked and len(layers) > 1:
        raise InputError(f"The layers {', '.join(layers)} were asked for; auto stands alone.")
    known = Perturbation(
        1 if rank == AUTO else int(rank),
        DEFAULT_GAIN if gain == AUTO else float(gain),
        energy,
        1 if axis is None else axis,
    )
    if not asked and not automatic and compensate == "none":
        return fixed(teacher, layers, known, axis)
    count = _count(asked[0]) if asked else 0
    nodes = nodes_for(teacher, ["**"] if asked else layers, known, axis)
    if not nodes:
        return insert(teacher, {})
    from asvp_export.plan.planner import Wishes, plan

    wishes = Wishes(
        ranks=() if rank == AUTO and gain == AUTO else (known.rank,),
        gain=None if gain == AUTO else known.gain,
        min_psnr=min_psnr,
        max_gain=max_gain,
        compensate=compensate,
        count=count,
    )
    calibrate, verify = images_for(images, verify_images)
    return replace(plan(teacher, nodes, wishes, calibrate, verify, progress), verify_images=tuple(verify))


def images_for(images: str | Path | None, verify_images: str | Path | None) -> tuple[list[Path], list[Path]]:
    """Which pictures are calibrated on, and which others verified on."""
    from asvp_export.plan.calibration import default_images, split

    if images is None:
        return default_images(), list_images(verify_images) if verify_images is not None else _own()
    found = list_images(images)
    return (found, list_images(verify_images)) if verify_images is not None else split(found)


def _own() -> list[Path]:
    from asvp_export.images import photographs

    return list_images(photographs("verify"))


def _count(word: str) -> int:
    number = word.partition(":")[2] or "3"
    if not number.isdecimal() or int(number) < 1:
        raise InputError(f"The layers {word!r} were asked for; auto or auto:N, N a number from 1 on, was expected.")
    return int(number)


def check_wishes(rank: int | str, gain: float | str, max_gain: float, compensate: str, energy: float) -> None:
    """What is wrong with the numbers and words alone.

    Raises:
        InputError: an attribute out of range, or a word that is not known.
    """
    if compensate not in COMPENSATIONS:
        raise InputError(f"The compensation {compensate!r} was asked for; {', '.join(COMPENSATIONS)} are known.")
    for what, value in (("rank", rank), ("gain", gain)):
        if isinstance(value, str) and value != AUTO:
            raise InputError(f"The {what} {value!r} was asked for; a number or auto was expected.")
    if not (math.isfinite(max_gain) and max_gain > 1):
        raise InputError(f"The largest gain {max_gain:g} was asked for; a number over 1 was expected.")
    Perturbation(1 if rank == AUTO else int(rank), DEFAULT_GAIN if gain == AUTO else float(gain), energy)
