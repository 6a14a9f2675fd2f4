"""Which layers of a teacher can carry a node, and what is measured of them; modules and graphs alike."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

import asvp_export.operator  # noqa: F401  registers torch.ops.asvp.perturb
from asvp_export.errors import InputError, MachineError, summary
from asvp_export.operator.spectrum import squared_singular_values
from asvp_export.selection.axes import Probe, channel_axis
from asvp_export.shortage import is_out_of_memory
from asvp_export.signature import shape_text
from asvp_export.teacher.backends import Backend, open_backend
from asvp_export.teacher.backends.base import LayerNames, LayerOutputs
from asvp_export.teacher.backends.torch_backend import now
from asvp_export.teacher.model import Teacher

_TIMED_RUNS = 3


@dataclass(frozen=True)
class Layer:
    """A module that can carry a node, measured on the teacher's example image."""

    name: str
    """Its dotted name in `named_modules()`."""

    type: str
    """Its class name; in a .pt2 archive that of the module that was exported."""

    calls: int
    """How often one forward calls it; the node acts at each call."""

    shape: tuple[int, ...]
    """Shape of the first call's output, the batch first."""

    axis: int
    """The channel axis for the node: 1 for N,C,H,W; -1 for N,L,C and N,H,W,C."""

    leading_share: float
    """s_1^2 / sum s_i^2 of the first sample's C x L matrix, float64; 0 for a map of zeros."""

    effective_rank: float
    """exp of the entropy of s_i^2 / sum s_i^2; 0 for a map of zeros. Roy and Vetterli (2007), "The effective rank",
    define it with s_i; this is the variant with energies s_i^2, the shares on which the node's `energy` acts too."""

    layer_ms: float
    """Milliseconds of the module's first call, median of a few forwards."""

    node_ms: float
    """Milliseconds of the PyTorch operator (rank 1) on the first call's output, median of a few runs."""


@dataclass
class Survey:
    """Which layers can carry a node."""

    axes: dict[str, int]
    """Carriers and their channel axes, in the order in which their first outputs appear in a forward."""

    reasons: dict[str, str]
    """Every other layer, and why not."""

    outputs: dict[str, LayerOutputs]
    """What each layer returned."""

    names: LayerNames
    """What the layers are called."""


@dataclass(frozen=True)
class ListedLayers:
    """A teacher and its layers."""

    teacher: Teacher
    """The model, with what was concluded of it."""

    layers: tuple[Layer, ...]
    """Those that can carry the node."""

    refused: Mapping[str, str]
    """The others, and why not."""


def survey_layers(teacher: Teacher) -> tuple[list[Layer], dict[str, str]]:
    """List the modules whose output can carry a node, and say of every other why it cannot.

    A carrier returns one floating tensor from every call, with the batch on axis 0, one channel axis and at least one
    spatial axis. Which axis is which is observed: a second forward takes another height, another width and two
    images, and the one axis besides the batch that does not change is the channels. Where that forward is impossible
    (a .pt2 archive with static sizes) the layout is inferred from the shape: in four dimensions channels are last
    where only axes 1 and 2 have the image's proportions, otherwise on axis 1; in three they are the axis that is not
    a pixel count of the image at some power of two; what stays unclear is refused.

    Args:
        teacher: the teacher; six forwards at about 64 x 96 pixels.

    Returns:
        The layers in the order of their first outputs in a forward, and a dictionary from name to reason for the rest.

    Raises:
        InputError: the teacher fails on its own example.
    """
    backend = open_backend(teacher)
    survey = _survey(teacher, backend)
    example = teacher.example()
    with _refusing(teacher, example):
        times = backend.layer_times(survey.axes)
        measured = _measured(teacher, backend, survey, example)
    layers = []
    for name, axis in survey.axes.items():
        if name not in measured:
            survey.reasons[name] = "returns NaN or Inf for the example image"
            continue
        share, rank, node_ms = measured[name]
        shapes = survey.outputs[name].shapes
        kind = survey.names.kinds[name]
        layers.append(Layer(name, kind, len(shapes), shapes[0], axis, share, rank, times[name], node_ms))
    return layers, survey.reasons


def survey_of(teacher: Teacher) -> Survey:
    """Run a teacher at two sizes and judge every layer.

    Raises:
        InputError: the teacher fails on its own example.
        MachineError: memory ran out.
    """
    return _survey(teacher, open_backend(teacher))


def _survey(teacher: Teacher, backend: Backend) -> Survey:
    image = teacher.example()
    with _refusing(teacher, image):
        first = backend.outputs(image)
    second = _second_run(teacher, backend, image.shape[-2])
    probe = Probe(
        (image.shape[0], teacher.static_shape[0] or 2), (image.shape[-2], image.shape[-1]), teacher.signature.frames
    )
    excluded = backend.excluded(first)
    axes: dict[str, int] = {}
    reasons: dict[str, str] = {}
    for name, outputs in first.items():
        verdict = channel_axis(outputs, None if second is None else second.get(name, LayerOutputs()), probe)
        if isinstance(verdict, int):
            verdict = excluded.get(name, verdict)
        if isinstance(verdict, int):
            axes[name] = verdict
        else:
            reasons[name] = verdict
    reasons |= {name: reason for name, reason in excluded.items() if name not in first}
    return Survey(axes, reasons, first, backend.names)


def _second_run(teacher: Teacher, backend: Backend, height: int) -> dict[str, LayerOutputs] | None:
    """What the layers return at another height, width and batch; None where the teacher takes no other size."""
    if teacher.static_shape[2] is not None or teacher.static_shape[3] is not None:
        return None
    # Not 128 x 64, which has as many positions as 64 x 96 once both are padded to a multiple of 64.
    image = teacher.example(height * (2 if teacher.size.square else 3), height, batch=2)
    try:
        with _refusing(teacher, image):
            return backend.outputs(image)
    except InputError:  # a .pt2 archive with an upper bound on its sizes
        return None


@contextmanager
def _refusing(teacher: Teacher, image: torch.Tensor) -> Iterator[None]:
    """What goes wrong in a run, as an error that names the teacher and the image."""
    try:
        yield
    except Exception as error:  # a user's module may raise anything
        shape = shape_text(image.shape)
        if is_out_of_memory(error):
            raise MachineError(f"Memory ran out while {teacher.source} ran at {shape}.") from error
        raise InputError(f"{teacher.source} fails on an image of {shape}: {summary(error)}.") from error


def _measured(
    teacher: Teacher, backend: Backend, survey: Survey, image: torch.Tensor
) -> dict[str, tuple[float, float, float]]:
    """Leading share, effective rank and the node's milliseconds for each first output; none where it is not finite."""
    measured: dict[str, tuple[float, float, float]] = {}
    visited: set[str] = set()

    def measure(name: str, output: torch.Tensor) -> None:
        if name in visited:
            return
        visited.add(name)
        axis = survey.axes[name]
        if torch.isfinite(output).all():
            measured[name] = (*_spectrum(output[:1], axis), _node_time(output, axis))

    carriers = list(survey.axes)
    # The example is small: the graph runs once, not once for every few of its tensors.
    backend.look(carriers, [teacher.inputs(image)], measure, at_once=max(1, len(carriers)))
    return measured


def _spectrum(sample: torch.Tensor, axis: int) -> tuple[float, float]:
    """Leading share and effective rank of a feature map [1, ...] with the channels on `axis`; 0 for a map of zeros."""
    (energies,) = squared_singular_values(sample.cpu(), axis)
    total = energies.sum()
    if total == 0:
        return 0.0, 0.0
    shares = energies / total
    entropy = -torch.special.xlogy(shares, shares).sum()
    return float(shares[0]), float(entropy.exp())


def _node_time(output: torch.Tensor, axis: int) -> float:
    times = []
    for _ in range(_TIMED_RUNS + 1):
        begin = now(str(output.device))
        torch.ops.asvp.perturb(output, 1, 1.1, 1.0, axis)
        times.append(1000 * (now(str(output.device)) - begin))
    return statistics.median(times[1:])  # the first one warms up
