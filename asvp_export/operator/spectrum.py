"""Singular values of feature maps, by their Gram matrices."""

from __future__ import annotations

import torch


def squared_singular_values(x: torch.Tensor, axis: int) -> torch.Tensor:
    """The s_i^2 of each sample's channels-by-positions matrix: the eigenvalues of its Gram matrix, in float64.

    The Gram matrix is that of the smaller side. What lies under 1e-16 of the largest is rounding.

    Args:
        x: a feature map [N, ...] of any floating type.
        axis: its channel axis, not 0.

    Returns:
        [N, min(C, L)] float64 on x's device, descending, none negative; NaN for a sample that is not finite.
    """
    matrices = x.detach().movedim(axis, 1).flatten(2).double()  # [N, C, L]
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    gram = wide @ wide.mT
    finite = torch.isfinite(gram).flatten(1).all(1)[:, None]
    values = torch.linalg.eigvalsh(gram.where(finite[:, :, None], torch.zeros_like(gram)))
    return values.flip(1).clamp_min(0).where(finite, torch.nan)
