"""Random cases by every way in which the operator runs: docs/results/reliability.md has the worst of many more."""

from __future__ import annotations

import pytest

from tests.helpers.cases import TYPES, cases
from tests.helpers.paths import execution_paths, judged


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_random_case_is_outside_of_what_the_operator_promises(folder, seed):
    paths = execution_paths(folder)
    seen = set()
    for setting, group in cases(100, seed):
        for case in group:
            for one in judged(case, paths):
                assert one.errors.worst <= 1, (
                    f"{one.path}: {one.errors.worst:.3g} of what is allowed; {one.errors.message}"
                )
                seen.add((one.path, one.pair, setting.dtype))
    assert {(path, False, dtype) for path in paths for dtype in TYPES} <= seen
