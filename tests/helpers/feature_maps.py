"""What a page draws of feature maps, computed in another way: by numpy, from the tensors of the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

import asvp_export
from asvp_export.onnx_graph.pairs import pairs
from asvp_export.parity.result import ParityResult
from tests.helpers.two_gains import stock


@dataclass(frozen=True)
class Drawn:
    """One layer's maps as they are to be drawn, [h, w] each, and the figures beside them."""

    channel: int
    maps: list[np.ndarray]
    factor: float
    changes: list[float]
    strength: float


def expected(maps: list[np.ndarray], step: int = 1) -> Drawn:
    """Of clean, exposed and residual map of one sample, [C, H, W]."""
    clean, *others = (np.asarray(feature_map, np.float64) for feature_map in maps)
    channel = max(range(len(clean)), key=lambda c: clean[c].std())
    (factor,), *_ = np.linalg.lstsq(others[0].reshape(-1, 1), clean.ravel(), rcond=None)
    size = np.linalg.norm(clean)
    return Drawn(
        channel,
        [means(feature_map[channel], step) for feature_map in (clean, *others)],
        float(factor),
        [float(np.linalg.norm(feature_map - clean) / size) for feature_map in others],
        float(np.linalg.norm(factor * others[0] - clean) / size),
    )


def means(x: np.ndarray, step: int) -> np.ndarray:
    """Of blocks of step x step, smaller at the lower and the right border."""
    rows, columns = (range(0, side, step) for side in x.shape)
    return np.array([[x[i : i + step, j : j + step].mean() for j in columns] for i in rows])


def grey(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """[h, w] as it is drawn from black to white."""
    return np.rint(255 * np.clip((values - low) / (high - low), 0, 1))


def shown_input(result: ParityResult, pictures: Path, teacher: asvp_export.Teacher) -> torch.Tensor:
    """The input whose maps are shown: the middle of a picture."""
    assert result.evidence
    name, _, size = result.evidence.singular_values_of.partition(", ")
    height, width = map(int, size.split("x"))
    x = asvp_export.images.read_image(pictures / name)
    top, left = (x.shape[0] - height) // 2, (x.shape[1] - width) // 2
    x = x[top : top + height, left : left + width].transpose(2, 0, 1)[None].copy()
    return torch.from_numpy(asvp_export.images.pad_to(x, teacher.size))


def maps_in_file(path: Path, x: torch.Tensor) -> dict[str, list[np.ndarray]]:
    """Clean, exposed and residual map of each protected layer in a stock onnxruntime; two maps without an inverse."""
    model, maps = onnx.load(path), {}
    for pair in pairs(model):
        tensors = [pair.node.input[0], pair.node.output[0], *([pair.readers] if pair.inverse else [])]
        maps[pair.name.layer] = [tensor.numpy() for tensor in stock(path, x, *tensors)]
    return maps
