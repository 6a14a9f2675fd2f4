"""Random cases by every way in which the operator runs: docs/results/reliability.md has the worst of many more."""

from __future__ import annotations

import pytest

from tests.helpers.cases import TYPES, cases
from tests.helpers.paths import judged, ways


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_random_case_is_outside_of_what_the_operator_promises(folder, seed):
    all_ways = ways(folder)
    seen = set()
    for setting, group in cases(100, seed):
        for case in group:
            for one in judged(case, all_ways):
                assert one.errors.worst <= 1, f"{one.way}: {one.errors.worst:.3g} of what is allowed; {one.errors.said}"
                seen.add((one.way, one.pair, setting.dtype))
    assert {(way, False, dtype) for way in all_ways for dtype in TYPES} <= seen
