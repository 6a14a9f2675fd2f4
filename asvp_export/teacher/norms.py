"""Normalisation layers that store statistics: what evaluation mode makes of them."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from asvp_export.assumptions import Assumption
from asvp_export.errors import InputError
from asvp_export.teacher.model import Teacher, named_outputs

CHOICES = ("stored", "input")
OPTION = "--norm-statistics input"

_SAME_DB = 48.0  # an RMSE of one 8-bit step


def use_input_statistics(module: nn.Module, source: str, choice: str) -> None:
    """Make normalisation layers compute their statistics from each input, as they do in training mode.

    Args:
        module: a PyTorch module; its layers are changed.
        source: its name, for messages.
        choice: what the user gave.

    Raises:
        InputError: not one of CHOICES, or no layer of the module stores statistics.
    """
    if choice not in CHOICES:
        raise InputError(f"The norm statistics {choice!r} were asked for; {' or '.join(CHOICES)} was expected.")
    layers = _storing(module)
    if not layers:
        raise InputError(
            f"--norm-statistics {choice} was given; no normalisation layer of {source} stores statistics, so there is "
            "nothing to choose. Leave the option out."
        )
    for layer in layers:
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None


def statistics_assumed(teacher: Teacher) -> tuple[Assumption, ...]:
    """What evaluation mode concludes for a module with stored statistics; nothing where it has none.

    Batch normalisation is made for it, unless its statistics were never updated. Instance normalisation that stores
    statistics is rare, and often an oversight: certain only where the input's own statistics give the same picture.
    """
    layers = _storing(teacher.module)
    if not layers:
        return ()
    kinds = sorted({type(layer).__name__ for layer in layers})
    untouched = [layer for layer in layers if _untouched(layer)]
    apart = _psnr_of_both(teacher)
    because, certain = "evaluation mode uses them", False
    if untouched:
        because = f"{len(untouched)} of {len(layers)} layers hold statistics that training never updated"
    elif any(isinstance(layer, _InstanceNorm) for layer in layers):
        because += f"; the input's own give another picture ({apart:.0f} dB)"
    else:
        certain = True
    certain = certain or apart >= _SAME_DB
    return (Assumption("normalisation", f"stored statistics of {', '.join(kinds)}", because, certain, OPTION),)


def _storing(module: nn.Module) -> list[_BatchNorm | _InstanceNorm]:
    kinds = (_BatchNorm, _InstanceNorm)
    return [layer for layer in module.modules() if isinstance(layer, kinds) and layer.running_mean is not None]


def _untouched(layer: _BatchNorm | _InstanceNorm) -> bool:
    assert layer.running_mean is not None and layer.running_var is not None
    return bool((layer.running_mean == 0).all() and (layer.running_var == 1).all())


def _psnr_of_both(teacher: Teacher) -> float:
    """PSNR in dB between the main outputs by stored statistics and by the input's; 0 where the other does not run.

    Of one image. `asvp_export.parity.metrics`, which scores batches, lies above this package and needs scikit-image.
    """
    adapted = copy.deepcopy(teacher.module)
    use_input_statistics(adapted, teacher.source, "input")
    inputs = teacher.inputs(teacher.example())
    try:
        with torch.no_grad():
            outputs = [list(named_outputs(module(*inputs)).values()) for module in (teacher.module, adapted)]
    except Exception:  # a user's model may raise anything
        return 0.0
    first, second = (tensors[teacher.signature.main].double() for tensors in outputs)
    error = float((first - second).square().mean()) / teacher.data_range.peak**2
    return float("inf") if error == 0 else -10 * float(torch.log10(torch.tensor(error)))
