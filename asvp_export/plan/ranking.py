"""Which layers `--layers auto:N` takes: by their spectra, from one pass over a few images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from asvp_export.errors import InputError
from asvp_export.insertion.plan import RankedLayer
from asvp_export.operator import Perturbation
from asvp_export.plan.calibration import draw
from asvp_export.plan.open_runner import open_runner
from asvp_export.plan.search import energies, strength_of
from asvp_export.progress import Printer
from asvp_export.teacher.backends import open_backend
from asvp_export.teacher.cost import multiply_adds
from asvp_export.teacher.model import Teacher

POSITIONS = 256  # of a candidate's map: what is smaller is a gate or a code, not a map to learn from
CHANNELS = 8  # of a candidate's map: what has fewer is nearly an image

_CHAIN = 3  # layers re-solved one after the other for one candidate
_LOUD = 2.0  # data ranges: strength times loudness counts up to this
_NEARLY = 0.75  # of the best value: a later layer is worth more than a little strength
_IMAGES = 4
_SIDE = 128  # pixels: spectra hardly change with the size of the picture


@dataclass(frozen=True)
class _Candidate:
    """What is known of one layer; means over the images, at the gain that it is to get."""

    strength: float
    """min over s of ||s F' - F|| / ||F||, F the clean and F' the exposed map."""

    loudness: float
    """Root mean square of the exposed map, in data ranges."""

    depth: float
    """How far behind it is called: its index among the candidates by their number, 1 for the last."""

    cost: float
    """Multiply-adds of node and inverse, of those of the teacher."""

    @property
    def value(self) -> float:
        """What the ranking goes by: the strength, less where the map is quiet or dear to protect.

        The strength hurts students that normalise. Those that do not are hurt by what in the exposed map is no multiple
        of the clean one, strength times loudness.
        """
        loud = min(1.0, self.strength * self.loudness / _LOUD)
        return self.strength * loud * (1 - self.cost)


def compensable(teacher: Teacher, nodes: Mapping[str, Perturbation]) -> dict[str, Perturbation]:
    """The candidates whose readers can be re-solved, in chains of three at most.

    Raises:
        InputError: there is none.
    """
    consumers = open_runner(teacher, list(nodes), []).consumers
    solvable = {layer: node for layer, node in nodes.items() if 0 < len(consumers.by_layer.get(layer, ())) <= _CHAIN}
    if not solvable:
        raise InputError(
            f"Compensation was asked for, and no layer of {teacher.source} is read by linear layers only; leave "
            "--compensate out."
        )
    return solvable


def rank(
    teacher: Teacher, nodes: Mapping[str, Perturbation], count: int, images: Sequence[Path], progress: Printer
) -> tuple[dict[str, Perturbation], tuple[RankedLayer, ...]]:
    """Choose the layers whose exposed maps hurt most for what the nodes cost, spread over the depth of the teacher.

    What a node does to a map follows from the singular values of the clean map alone, so one pass over a few images
    ranks all layers (`asvp_export.plan.search.strength_of`). Maps that are hardly maps, with under 8 channels or 256
    positions, are left out where there are others.

    Args:
        teacher: it is not changed.
        nodes: the candidates, each with the node that it would get.
        count: how many are chosen.
        images: inputs of the teacher.
        progress: called with a line.

    Returns:
        The chosen layers, in the order of the candidates, and the ranking.
    """
    few = list(images)[:: max(1, len(images) // _IMAGES)][:_IMAGES]
    progress(f"ranking {len(nodes)} candidate layers by their spectra on {len(few)} images")
    inputs = draw(teacher, few * 2 if len(few) == 1 else few, solved=False, side=_SIDE).held_out
    meter = _Meter(nodes, teacher.data_range.peak)
    open_backend(teacher).look(list(nodes), inputs, meter.take)
    pictures = [x[teacher.signature.image_index] for x in inputs]
    pixels = sum(picture.shape[-1] * picture.shape[-2] for picture in pictures)
    candidates = meter.candidates(multiply_adds(teacher) * pixels)
    order = sorted(candidates, key=lambda layer: -candidates[layer].value)
    chosen = _spread(order, candidates, count)
    ranking = tuple(
        RankedLayer(
            name=layer,
            rank=nodes[layer].rank,
            gain=nodes[layer].gain,
            strength=round(candidates[layer].strength, 4),
            compensated=False,
            chosen=layer in chosen,
            cost=round(candidates[layer].cost, 4),
            value=round(candidates[layer].value, 4),
        )
        for layer in order
    )
    return {layer: node for layer, node in nodes.items() if layer in chosen}, ranking


class _Meter:
    """Measures the candidates' maps as they come; none is kept.

    Args:
        nodes: the candidates, each with the node that it would get.
        peak: range of the model's values.
    """

    def __init__(self, nodes: Mapping[str, Perturbation], peak: float) -> None:
        self._nodes, self._peak = nodes, peak
        self._strengths: dict[str, list[float]] = {}
        self._loudness: dict[str, list[float]] = {}
        self._costs: dict[str, float] = {}
        self._maps: set[str] = set()  # large enough to be one

    def take(self, layer: str, clean: torch.Tensor) -> None:
        """Take in what one call of a layer made."""
        node = self._nodes[layer]
        channels, positions = clean.shape[node.axis], clean[0].numel() // clean.shape[node.axis]
        if channels >= CHANNELS and positions >= POSITIONS:
            self._maps.add(layer)
        for energy in energies(clean, node.axis):
            strength, _ = strength_of(energy, node)
            power = float(energy.sum() + (node.gain**2 - 1) * energy[: node.rank].sum())
            self._strengths.setdefault(layer, []).append(strength)
            self._loudness.setdefault(layer, []).append((power / (channels * positions)) ** 0.5 / self._peak)
        multiplied = channels * positions * (channels + 2 * node.rank)
        self._costs[layer] = self._costs.get(layer, 0.0) + len(clean) * multiplied * (2 if node.inverse else 1)

    def candidates(self, teacher_cost: float) -> dict[str, _Candidate]:
        """By layer, in the order of the nodes.

        Args:
            teacher_cost: multiply-adds of the teacher for the inputs that were looked at.
        """
        return {
            layer: _Candidate(
                strength=sum(strengths) / len(strengths),
                loudness=sum(self._loudness[layer]) / len(strengths),
                depth=(index + 1) / len(self._nodes),
                cost=min(self._costs[layer] / max(teacher_cost, 1.0), 1.0),
            )
            for index, layer in enumerate(self._nodes)
            if (strengths := self._strengths.get(layer)) and (layer in self._maps or not self._maps)
        }


def _spread(order: Sequence[str], candidates: Mapping[str, _Candidate], count: int) -> set[str]:
    """Of each of `count` equal stretches of the forward the last layer that is nearly as good as the best one there.

    Later maps hurt more (docs/results/strength.md). Where a stretch has none, the best of the others is taken.
    """
    stretches: dict[int, list[str]] = {}
    for layer in order:
        stretches.setdefault(min(int(candidates[layer].depth * count), count - 1), []).append(layer)
    chosen = {
        max(
            (layer for layer in stretch if candidates[layer].value >= _NEARLY * candidates[stretch[0]].value),
            key=lambda layer: candidates[layer].depth,
        )
        for stretch in stretches.values()
    }
    runners_up = [layer for layer in order if layer not in chosen]
    return {*chosen, *runners_up[: count - len(chosen)]}
