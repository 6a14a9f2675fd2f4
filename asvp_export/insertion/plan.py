"""A plan as a value: what was chosen and why, and the weights that go with it; saved and read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from asvp_export.environment import tool_version
from asvp_export.errors import InputError
from asvp_export.files import atomic_write
from asvp_export.operator import Perturbation
from asvp_export.options import COMPENSATIONS
from asvp_export.untrusted import checked, file_beside, no_doubles, parsed, read_regular

_FORMAT = 1
_MOST_WEIGHT_BYTES = 2**30  # of a plan: the readers of a few layers; a whole restoration model rarely has as much
_COUNTS = {"photographs", "crops", "held_out"}  # what is shown of a calibration


@dataclass(frozen=True)
class PlannedLayer:
    """What one layer got, and what stopped it."""

    name: str
    """Of the layer."""

    node: Perturbation
    """Attributes of its node, and the residual gain."""

    strength: float | None
    """Of the exposed map, on the images it was chosen on: min over s of ||s F' - F|| / ||F||; None: not measured."""

    relative_feature_change: float | None
    """On the same images: ||F' - F|| / ||F||; None: not measured."""

    stopped_by: str
    """What kept the gain from being larger."""

    consumers: tuple[str, ...] = ()
    """Weights that were re-solved for it."""

    uncompensated: str = ""
    """Why its readers were left as they are, where compensation was asked for."""


@dataclass(frozen=True)
class RankedLayer:
    """A candidate of `--layers auto`: what it can carry for its share of the allowance."""

    name: str
    """Of the layer."""

    rank: int
    gain: float
    """Of the node that it would get."""

    strength: float
    """Of the map that this node exposes."""

    compensated: bool
    """Whether its readers would be re-solved."""

    chosen: bool = False
    """Whether it carries a node now."""

    cost: float | None = None
    """Multiply-adds of node and inverse by those of the teacher; None where that was not looked at."""

    value: float | None = None
    """What the ranking goes by (`asvp_export.plan.ranking`); None in plans of before."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Which layers carry which nodes, the weights behind them, and how that was found."""

    source_sha256: str
    """Of the teacher's file."""

    layers: tuple[PlannedLayer, ...]
    """In the order in which they are first called."""

    min_psnr: float
    """dB that was asked for; the plan keeps 1 dB more."""

    compensate: str
    """"none", "solve" or "refine"."""

    held_out_psnr: float | None
    """dB of the worst calibration image that was held out; None where nothing was calibrated."""

    verified_psnr: float | None
    """dB of the worst verification image, in PyTorch; None where the gain was given."""

    uncompensated_psnr: float | None
    """dB of the worst verification image with these nodes and the original weights; None: nothing was calibrated."""

    calibration: Mapping[str, int] = field(default_factory=dict)
    """Photographs, crops and held-out inputs, forward passes."""

    ridges: Mapping[str, float] = field(default_factory=dict)
    """By weight, as a share of the Gram matrix's mean diagonal."""

    ranking: tuple[RankedLayer, ...] = ()
    """The candidates of `--layers auto`, the best first."""

    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Compensated weights and biases by name."""

    @property
    def nodes(self) -> dict[str, Perturbation]:
        """Layer name to the attributes of its node."""
        return {layer.name: layer.node for layer in self.layers}

    def as_dict(self) -> dict[str, Any]:
        """Everything but the weights, for JSON."""
        data = {name: value for name, value in vars(self).items() if name not in ("weights", "layers", "ranking")}
        data["layers"] = [{**asdict(layer), "node": layer.node.described()} for layer in self.layers]
        data["ranking"] = [asdict(layer) for layer in self.ranking]
        data["calibration"], data["ridges"] = dict(self.calibration), dict(self.ridges)
        return data

    def save(self, path: str | Path) -> list[Path]:
        """Write the plan, and its weights beside it as `<stem>.safetensors`; each file appears whole or not at all.

        Returns:
            The files.

        Raises:
            InputError: the folder does not exist. MachineError: the disk is full.
        """
        contents = self.contents(Path(path))
        for file, content in contents.items():
            atomic_write(file, content)
        return list(reversed(contents))

    def contents(self, path: Path) -> dict[Path, bytes]:
        """What `save` writes: the weights, where there are any, and then the plan, which names them by their hash."""
        files = dict[Path, bytes]()
        data = {"format": _FORMAT, "tool_version": tool_version(), **self.as_dict()}
        if self.weights:
            weights = path.with_suffix(".safetensors")  # x.plan.json, x.plan.safetensors
            files[weights] = save_tensors({name: weight.contiguous() for name, weight in sorted(self.weights.items())})
            data["weights"] = {"file": weights.name, "sha256": hashlib.sha256(files[weights]).hexdigest()}
        return files | {path: (json.dumps(data, indent=2, allow_nan=False) + "\n").encode()}

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read what `save` wrote; anyone can have written it, so that every value is checked.

        Args:
            path: at most 32 MiB, and at most 1 GiB of weights beside it.

        Raises:
            InputError: a file that is missing, damaged, no plan or of a newer format, or weights that it does not name.
        """
        path = Path(path)
        data = _parsed(path)
        try:
            about = checked(data, _About, ignore_unknown=True)
            if about.format != _FORMAT:
                raise InputError(
                    f"{path} is a plan of format {about.format}; this version reads format {_FORMAT}. Make the plan "
                    "again."
                )
            header = {field.name for field in fields(_About)}
            plan = checked({key: value for key, value in data.items() if key not in header}, cls)
            _check(plan, about)
        except ValueError as error:
            raise _damaged(path, error) from error
        return replace(plan, weights=_weights(path, about.weights)) if about.weights else plan


@dataclass(frozen=True)
class _WeightsFile:
    file: str
    sha256: str


@dataclass(frozen=True)
class _About:
    """What a saved plan holds beside the plan."""

    format: int
    tool_version: str
    weights: _WeightsFile | None = None


def _parsed(path: Path) -> Any:
    content = read_regular(path, "plan")
    try:
        return parsed(content)
    except ValueError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, reason: ValueError) -> InputError:
    return InputError(f"{path} is damaged, or not a plan of asvp-export ({reason}); name the .plan.json of an export.")


def _check(plan: Plan, about: _About) -> None:
    """Refuse values that fit their types and not each other; raises ValueError."""
    no_doubles((layer.name for layer in plan.layers), "layer")
    if plan.compensate not in COMPENSATIONS:
        raise ValueError(
            f"compensate is {plan.compensate!r}; {', '.join(COMPENSATIONS[:-1])} or {COMPENSATIONS[-1]} was expected"
        )
    if plan.calibration and not plan.calibration.keys() >= _COUNTS:
        raise ValueError(f"calibration has no {min(_COUNTS - plan.calibration.keys())}")
    if about.weights and None in (plan.verified_psnr, plan.uncompensated_psnr):
        raise ValueError("it has weights, but not the PSNR with and without them")
    if about.weights:
        file_beside(about.weights.file)


def _weights(plan: Path, stored: _WeightsFile) -> dict[str, torch.Tensor]:
    path = plan.with_name(stored.file)
    if not path.exists():
        raise InputError(f"The weights of {plan}, {path.name}, are not beside it; put them there.")
    blob = read_regular(path, "file of weights", _MOST_WEIGHT_BYTES)
    if hashlib.sha256(blob).hexdigest() != stored.sha256:
        raise InputError(f"{path} is not the file that {plan.name} names (its sha256 differs); make the plan again.")
    try:
        weights = dict(sorted(load_tensors(blob).items()))  # the reader's own order differs from run to run
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged, or not a safetensors file; make the plan again.") from error
    for name, weight in weights.items():
        if not weight.is_floating_point() or not bool(torch.isfinite(weight).all()):
            problem = (
                f"of type {str(weight.dtype).removeprefix('torch.')}"
                if not weight.is_floating_point()
                else "not finite"
            )
            raise InputError(f"The weight {name} in {path} is {problem}; finite floating-point numbers were expected.")
    return weights


def plan_path(output: Path) -> Path:
    """Where the plan of an export lies, beside its file."""
    return output.with_name(f"{output.stem}.plan.json")
