"""Which layers `--layers auto:N` takes where nothing is compensated: by their spectra, from one pass over a few images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from asvp_export.errors import InputError
from asvp_export.operator import Perturbation
from asvp_export.plan.calibration import Inputs, draw
from asvp_export.plan.record import RankedLayer
from asvp_export.plan.search import energies, strength_of
from asvp_export.progress import Say
from asvp_export.teacher.cost import multiply_adds
from asvp_export.teacher.layers import graph_of
from asvp_export.teacher.model import Teacher
from asvp_export.teacher.onnx_graph import named_tensors
from asvp_export.teacher.onnx_model import OnnxModule, array, guarded

POSITIONS = 256  # of a candidate's map: what is smaller is a gate or a code, not a map to learn from
CHANNELS = 8  # of a candidate's map: what has fewer is nearly an image

_IMAGES = 4
_AT_ONCE = 64  # tensors of a graph
_SIDE = 128  # pixels: spectra hardly change with the size of the picture


@dataclass(frozen=True)
class _Candidate:
    """What is known of one layer."""

    strength: float
    """Mean over the images, at the gain that it is to get."""

    share: float
    """Multiply-adds of node and inverse, of those of the teacher."""

    @property
    def value(self) -> float:
        """What the ranking goes by: the strength, less what the node costs of it."""
        return self.strength * (1 - self.share)


def rank(
    teacher: Teacher, nodes: Mapping[str, Perturbation], count: int, images: Sequence[Path], progress: Say
) -> tuple[dict[str, Perturbation], tuple[RankedLayer, ...]]:
    """Choose the layers whose maps take the largest strength for what the node costs.

    Of two neighbours in the forward, which show nearly the same map, one is taken. The strength of a node follows from the singular values of the clean map alone, so one pass over a few images ranks
    all layers (`asvp_export.plan.search.strength_of`). Maps that are hardly maps, with under 8 channels or 256 positions,
    are left out.

    Args:
        teacher: it is not changed.
        nodes: the candidates, each with the node that it would get.
        count: how many are chosen.
        images: inputs of the teacher.
        progress: called with a line.

    Returns:
        The chosen layers, in the order of the candidates, and the ranking.

    Raises:
        InputError: no layer has a map to protect.
    """
    some = list(images)[:: max(1, len(images) // _IMAGES)][:_IMAGES]
    progress(f"ranking {len(nodes)} candidate layers by their spectra on {len(some)} images")
    inputs = draw(teacher, some, solved=False, side=_SIDE).held_out
    pixels = sum(one[teacher.signature.place].shape[-1] * one[teacher.signature.place].shape[-2] for one in inputs)
    whole = multiply_adds(teacher) * pixels
    strengths: dict[str, list[float]] = {}
    costs: dict[str, float] = {}

    def take(layer: str, clean: torch.Tensor) -> None:
        node = nodes[layer]
        channels, positions = clean.shape[node.axis], clean[0].numel() // clean.shape[node.axis]
        if channels < CHANNELS or positions < POSITIONS:
            return
        strengths.setdefault(layer, []).extend(strength_of(one, node)[0] for one in energies(clean, node.axis))
        one = channels * positions * (channels + 2 * node.rank)
        costs[layer] = costs.get(layer, 0.0) + len(clean) * one * (2 if node.inverse else 1)

    _look(teacher, list(nodes), inputs, take)
    found = {
        layer: _Candidate(sum(values) / len(values), min(costs[layer] / max(whole, 1.0), 1.0))
        for layer, values in strengths.items()
        if values
    }
    if not found:
        raise InputError(f"No layer of {teacher.source} has a map to protect; name one with --layers.")
    order = sorted(found, key=lambda layer: -found[layer].value)
    chosen = _apart(order, list(nodes), count)
    ranking = tuple(
        RankedLayer(
            layer, nodes[layer].rank, nodes[layer].gain, round(found[layer].strength, 4), False, layer in chosen,
            round(found[layer].share, 4),
        )
        for layer in order
    )  # fmt: skip
    return {layer: node for layer, node in nodes.items() if layer in chosen}, ranking


def _apart(order: Sequence[str], forward: Sequence[str], count: int) -> set[str]:
    """The best ones; a neighbour of one in the forward shows nearly the same map, and comes only when there is no other."""
    place = {layer: i for i, layer in enumerate(forward)}
    chosen: list[str] = []
    for layer in order:
        if all(abs(place[layer] - place[other]) > 1 for other in chosen):
            chosen.append(layer)
    return set([*chosen, *(layer for layer in order if layer not in chosen)][:count])


def _look(
    teacher: Teacher, layers: Sequence[str], inputs: Sequence[Inputs], take: Callable[[str, torch.Tensor], None]
) -> None:
    """Hand each feature map of the layers over, call by call and input by input; none is kept."""
    if (graph := graph_of(teacher)) is not None:
        _look_at_graph(graph, layers, inputs, take)
        return
    hooks = [
        teacher.module.get_submodule(layer).register_forward_hook(lambda m, i, output, layer=layer: take(layer, output))
        for layer in layers
    ]
    try:
        with torch.no_grad():
            for one in inputs:
                teacher.module(*one)
    finally:
        for hook in hooks:
            hook.remove()


def _look_at_graph(
    graph: OnnxModule, layers: Sequence[str], inputs: Sequence[Inputs], take: Callable[[str, torch.Tensor], None]
) -> None:
    tensors, _ = named_tensors(graph.model)
    for first in range(0, len(layers), _AT_ONCE):
        some = layers[first : first + _AT_ONCE]
        names = [tensors[layer] for layer in some]
        opened = graph.session(names)
        for one in inputs:
            values = graph.cast(one)
            feeds = {given.name: array(values[given.name]) for given in opened.get_inputs()}
            for layer, value in zip(some, guarded(opened.run, names, feeds), strict=True):
                take(layer, torch.from_numpy(value))
