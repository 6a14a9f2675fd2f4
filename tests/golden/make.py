"""Make the golden files: once a version of the file format. What is there is never made again.

python -m tests.golden.make
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

import asvp_export
from asvp_export.onnx_graph.passes import perturbation_nodes

HERE = Path(__file__).resolve().parent
SIZES = ((1, 12, 15), (2, 9, 14))  # batch, height, width
FILES = {  # name: options of the export
    "function": {"rank": 2},  # the gain is chosen: there is a plan
    "inline": {"gain": 3.0, "residual": "gain", "portable": "inline", "min_psnr": 10.0},
    "float16": {"gain": 10.0, "dtype": "fp16"},
}


class Tiny(nn.Module):
    """A residual net of 12 channels: maps N,C,H,W and a map of tokens, N,L,C."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.tokens, self.tail = nn.Linear(12, 12), nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, _, height, width = x.shape
        y = torch.relu(self.body(self.head(x)))
        tokens = self.tokens(y.flatten(2).transpose(1, 2))
        return x + 0.1 * self.tail(tokens.transpose(1, 2).reshape(n, 12, height, width))


def tiny() -> Tiny:
    """With weights from NumPy's generator, which gives the same numbers for ever."""
    net, rng = Tiny().eval(), np.random.default_rng(18)
    with torch.no_grad():
        for weight in net.parameters():
            spread = (2 / weight[0].numel()) ** 0.5 if weight.ndim > 1 else 0.05
            weight.copy_(torch.from_numpy(rng.standard_normal(weight.shape) * spread))
    return net


def outputs(file: Path, inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What onnxruntime gives without the library: outputs, and the maps behind the operator's nodes where seen."""
    model = onnx.load(file)
    exposed = [node.output[0] for node in perturbation_nodes(model)]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in exposed)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = ["output", *exposed]
    return {
        f"{name} {i}": value
        for i, x in enumerate(inputs)
        for name, value in zip(names, session.run(names, {"input": x}), strict=True)
    }


def main() -> None:
    files = [HERE / f"{name}.onnx" for name in ("original", *FILES)]
    if there := [file.name for file in files if file.exists()]:
        sys.exit(
            f"{', '.join(there)} is there already. A golden file is never made again: later versions have to read it."
        )
    teacher = asvp_export.load(tiny())
    asvp_export.export(teacher, HERE / "original.onnx", layers="none")
    for name, options in FILES.items():
        result = asvp_export.export(teacher, HERE / f"{name}.onnx", layers="head,tokens", **options)
        assert result.passed, (name, result)
        keep(name, np.float16 if options.get("dtype") == "fp16" else np.float32)


def keep(name: str, dtype: type) -> None:
    """Write the inputs and outputs of a file."""
    rng = np.random.default_rng(0)
    inputs = [rng.random((n, 3, h, w), dtype=np.float32).astype(dtype) for n, h, w in SIZES]
    kept = {f"input {i}": value for i, value in enumerate(inputs)}
    np.savez_compressed(HERE / f"{name}.npz", **kept, **outputs(HERE / f"{name}.onnx", inputs))


if __name__ == "__main__":
    main()
