"""Factories for `--arch`: models of other libraries, small, with random weights until a state dict comes."""

from __future__ import annotations

import torch
from torch import nn


def swin2sr() -> nn.Module:
    """Hugging Face's Swin2SR x2; its forward returns a mapping with the key `reconstruction`."""
    from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

    config = Swin2SRConfig(
        image_size=16,
        embed_dim=24,
        depths=[2, 2],
        num_heads=[2, 2],
        window_size=8,
        mlp_ratio=2.0,
        upscale=2,
        upsampler="pixelshuffledirect",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Swin2SRForImageSuperResolution(config).eval()
