"""What the outputs of a file are held against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from asvp_export.errors import InputError, MachineError
from asvp_export.graph.protect import Protected, observed
from asvp_export.graph.strength import EffectMeter, NodeEffect
from asvp_export.operator import native
from asvp_export.parity.cases import Case
from asvp_export.teacher.model import named_outputs


@dataclass(frozen=True)
class Expected:
    """What the outputs of a file are held against, case by case."""

    original: list[list[np.ndarray]]
    protected: list[list[np.ndarray]]
    effects: dict[str, NodeEffect]
    names: tuple[str, ...] = ("output",)
    """Of the outputs: the floating ones."""


def expected_of_teacher(protected: Protected, cases: Sequence[Case]) -> Expected:
    """Outputs of the original and of the protected module in PyTorch, and the effect of the nodes meanwhile.

    The nodes run by the reference: the native kernels are among what is verified.
    """
    meter = EffectMeter(protected.nodes)
    original = list(_torch_outputs(protected.teacher.module, cases, protected.teacher.device))
    with observed(protected, meter), native.reference_only():
        outputs = list(_torch_outputs(protected.module, cases, protected.teacher.device))
    return Expected(original, outputs, meter.effects(), protected.teacher.signature.compared)


def _torch_outputs(module: torch.nn.Module, cases: Sequence[Case], device: str) -> Iterator[list[np.ndarray]]:
    for case in cases:
        try:
            with torch.inference_mode():
                outputs = named_outputs(module(*(torch.from_numpy(x).to(device) for x in case.inputs)))
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            if "memory" in reason:
                raise MachineError(f"The teacher ran out of memory on {case.name} ({case.size}): {reason}.") from error
            raise InputError(
                f"The teacher does not run on {case.name} ({case.size}): {reason}. Use other images or another --size."
            ) from error
        yield [one.float().cpu().numpy() for one in outputs.values() if one.is_floating_point()]
