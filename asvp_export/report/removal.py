"""The removal tests as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from asvp_export.report.render import Column, Table

if TYPE_CHECKING:
    from asvp_export.parity.removal import RemovalTest

_INTRO = (
    "What is left to attackers who take the nodes out of the shipped graph, on the weights that are shipped: the "
    "nodes deleted, or each replaced by the scalar or the 1x1 convolution that comes nearest to what the node makes. "
    "In PyTorch, over all inputs."
)
_OUTRO = (
    "The maps are fitted on the shipped graph alone, on crops of these same images, which is in the attackers' favour. "
    "The higher a row, the less the nodes protect; deleting nodes gives attackers the clean feature maps again."
)


def removal_table(tests: Sequence[RemovalTest]) -> Table:
    """The removal tests for a page; against ground truth too where there is some."""
    columns = ["graph", _decibels("worst, against the original"), _decibels("mean, against the original")]
    rows = [[test.name, test.min_psnr, test.mean_psnr] for test in tests]
    if tests[0].loss is None:
        return Table(columns, rows, _INTRO, _OUTRO)
    columns += [_decibels(f"{which}, against ground truth") for which in ("worst", "mean")] + [
        _decibels("lost in the mean")
    ]
    rows = [[*row, test.truth_min_psnr, test.truth_mean_psnr, test.loss] for row, test in zip(rows, tests, strict=True)]
    original_truth = tests[0].original_truth_min_psnr, tests[0].original_truth_mean_psnr
    return Table(columns, [["the original", None, None, *original_truth, None], *rows], _INTRO, _OUTRO)


def _decibels(name: str) -> Column:
    return Column(name, "z.2f", "dB")
