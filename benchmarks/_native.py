"""The library's kernel as torch.ops.asvp.perturb calls it, without what surrounds it there."""

from __future__ import annotations

from collections.abc import Callable

import torch

from asvp_export.operator import Perturbation, native


def native_call(x: torch.Tensor, y: torch.Tensor, node: Perturbation, alone: bool = False) -> Callable[[], None]:
    """A call from x into y, which is there already, on PyTorch's own threads.

    Args:
        x: a dense feature map on the CPU.
        y: of x's shape and strides.
        node: rank, gain, energy and axis.
        alone: on the calling thread only.
    """
    library, problem = native._library(), native._problem(x, node)
    assert problem is not None
    size = library.asvp_workspace_cpu(problem)
    scratch = torch.empty(size + 64, dtype=torch.uint8)
    parallel, host = (None, None) if alone else native._threads()

    def call(at: int = scratch.data_ptr() + -scratch.data_ptr() % 64, keep: object = (x, y, scratch)) -> None:
        assert not library.asvp_perturb_cpu(problem, x.data_ptr(), y.data_ptr(), at, size, parallel, host)

    return call
