"""What the outputs of a file are held against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from asvp_export.errors import InputError, MachineError, one_line
from asvp_export.insertion.protected import Protected, observed
from asvp_export.insertion.strength import EffectMeter, NodeEffect
from asvp_export.operator import native
from asvp_export.parity.cases import Case
from asvp_export.parity.verify import least_psnr
from asvp_export.progress import Printer, reporter
from asvp_export.shortage import is_out_of_memory
from asvp_export.teacher.model import Teacher, named_outputs


@dataclass(frozen=True)
class Expected:
    """What the outputs of a file are held against, case by case."""

    original: list[list[np.ndarray]]
    protected: list[list[np.ndarray]]
    effects: dict[str, NodeEffect]
    names: tuple[str, ...] = ("output",)
    """Of the outputs: the floating ones."""


def expected_of_teacher(
    protected: Protected,
    cases: Sequence[Case],
    progress: Printer = lambda line: None,
    original: list[list[np.ndarray]] | None = None,
) -> Expected:
    """Outputs of the original and of the protected module in PyTorch, and the effect of the nodes meanwhile.

    The nodes run by the reference: the native kernels are among what is verified.

    Args:
        protected: what is run.
        cases: on these inputs.
        progress: shows how far the runs are.
        original: outputs of the original for them, where they are known.
    """
    meter = EffectMeter(protected.nodes)
    report, device = reporter(progress), protected.teacher.device
    if original is None:
        original = original_outputs(protected.teacher, cases, progress)
    with observed(protected, meter), native.reference_only(), report.track(cases, "protected in PyTorch") as tracked:
        outputs = list(torch_outputs(protected.module, tracked, device))
    return Expected(original, outputs, meter.effects(), protected.teacher.signature.compared)


def least_of(protected: Protected) -> float:
    """DB of the worst output of a protected module that was run already, against the original's."""
    assert protected.verified is not None, "not run yet"
    cases, expected = protected.verified
    return least_psnr(cases, expected.original, expected.protected, protected.teacher.data_range.peak)


def original_outputs(
    teacher: Teacher, cases: Sequence[Case], progress: Printer = lambda line: None
) -> list[list[np.ndarray]]:
    """The floating outputs of the original for each case."""
    with reporter(progress).track(cases, "original in PyTorch") as tracked:
        return list(torch_outputs(teacher.module, tracked, teacher.device))


def torch_outputs(module: torch.nn.Module, cases: Iterable[Case], device: str) -> Iterator[list[np.ndarray]]:
    """The floating outputs of a module for each case, float32, N,C,H,W."""
    for case in cases:
        try:
            with torch.inference_mode():
                outputs = named_outputs(module(*(torch.from_numpy(x).to(device) for x in case.inputs)))
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            reason = one_line(error, 200)
            if is_out_of_memory(error):
                raise MachineError(f"The teacher ran out of memory on {case.name} ({case.size}): {reason}.") from error
            raise InputError(
                f"The teacher does not run on {case.name} ({case.size}): {reason}. Use other images or another --size."
            ) from error
        yield case.pictures(output.float().cpu().numpy() for output in outputs.values() if output.is_floating_point())
