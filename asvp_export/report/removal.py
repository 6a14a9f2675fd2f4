"""The strip tests as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from asvp_export.report.render import Column, Table

if TYPE_CHECKING:
    from asvp_export.parity.removal import Strip

_INTRO = (
    "What is left to a thief who takes the nodes out of the shipped graph, on the weights that are shipped: the nodes deleted, or in the "
    "place of each the scalar or the 1x1 convolution that comes nearest to what the node makes. In PyTorch, over all inputs."
)
_OUTRO = (
    "The maps are fitted on the shipped graph alone, on crops of these same images, which is in the thief's favour. The higher a row, the less "
    "the nodes hold him; deleting nodes gives him the clean feature maps again."
)


def strip_table(strips: Sequence[Strip]) -> Table:
    """The strip tests for a page; against ground truth too where there is some."""
    columns = ["graph", _decibels("worst, against the original"), _decibels("mean, against the original")]
    rows = [[one.name, one.min_psnr, one.mean_psnr] for one in strips]
    if strips[0].loss is None:
        return Table(columns, rows, _INTRO, _OUTRO)
    columns += [_decibels(f"{which}, against ground truth") for which in ("worst", "mean")] + [
        _decibels("lost in the mean")
    ]
    rows = [[*row, one.truth_min_psnr, one.truth_mean_psnr, one.loss] for row, one in zip(rows, strips, strict=True)]
    own = strips[0].original_truth_min_psnr, strips[0].original_truth_mean_psnr
    return Table(columns, [["the original", None, None, *own, None], *rows], _INTRO, _OUTRO)


def _decibels(name: str) -> Column:
    return Column(name, "z.2f", "dB")
