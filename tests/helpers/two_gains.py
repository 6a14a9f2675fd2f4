"""Nodes and their inverses: a net with maps of every layout, what the maps hold, and how near an output comes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

import asvp_export
from asvp_export.insertion.protected import observed


class Tokens(nn.Module):
    """Maps of every layout: N,C,H,W, tokens N,L,C and N,H,W,C, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.tail = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 3, 3, padding=1)
        self.tokens, self.grid = nn.Linear(12, 12), nn.Linear(12, 10)
        self.back = nn.Linear(10, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, _, height, width = x.shape
        tokens = self.tokens(self.embed(x).flatten(2).transpose(1, 2))
        grid = self.grid(tokens.reshape(n, height, width, 12))
        return x + 0.1 * self.tail(torch.relu(self.back(grid)).permute(0, 3, 1, 2))


def tokens() -> Tokens:
    torch.manual_seed(1)
    return Tokens()


def decibels(actual: np.ndarray | torch.Tensor, expected: np.ndarray | torch.Tensor) -> float:
    """Of all values; the peak is that of the gates, 1 or the range of what is wanted."""
    ours, theirs = torch.as_tensor(actual).double(), torch.as_tensor(expected).double()
    peak = max(1.0, float(theirs.max() - theirs.min()))
    return float(10 * torch.log10(peak**2 / ((ours - theirs).square().mean() + 1e-20)))


def maps_of(
    protected: asvp_export.Protected, image: torch.Tensor
) -> list[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Layer, clean, exposed and residual map at each node that a forward passes."""
    observed_maps = []
    with observed(protected, lambda layer, *maps: observed_maps.append((layer, *(tensor.clone() for tensor in maps)))):
        protected(image)
    return observed_maps


def stock(model: onnx.ModelProto | Path, x: torch.Tensor, *tensors: str) -> list[torch.Tensor]:
    """Outputs, or tensors of the main graph, in onnxruntime without anything of ours."""
    shown = onnx.ModelProto()
    shown.CopyFrom(onnx.load(model) if isinstance(model, Path) else model)
    outputs = {value.name for value in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in outputs)
    opened = ort.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    return [
        torch.from_numpy(value) for value in opened.run(list(tensors) or None, {opened.get_inputs()[0].name: x.numpy()})
    ]
