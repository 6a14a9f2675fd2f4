"""A whole export, verification apart, beside a bare torch.onnx.export of the same teacher."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import asvp_export
from asvp_export.insertion.protected import to_onnx
from asvp_export.onnx_graph.publish import Staging
from asvp_export.parity.latency import in_turns
from asvp_export.teacher.backends.tracing import _quiet
from benchmarks._teachers import LAYER, TASKS, teacher


def bare(model: asvp_export.Teacher, path: Path) -> None:
    shapes = ({0: "batch", 2: "height", 3: "width"},)
    with _quiet():
        torch.onnx.export(
            model.module,
            (model.example(batch=2),),
            path,
            dynamo=True,
            opset_version=18,
            dynamic_shapes=shapes,
            verbose=False,
        )


def ours(model: asvp_export.Teacher, path: Path) -> None:
    """Insertion, export, function body, metadata, checker and the write; the layers were looked up before."""
    protected = asvp_export.protect(model, LAYER, gain=1.1)
    with Staging(path, force=True) as staging:
        staging.write(to_onnx(protected))
        staging.publish()


def main() -> None:
    print("| teacher | bare torch.onnx.export, s | asvp-export without verification, s | ratio |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for task in TASKS:
            model = teacher(task)
            plain, protected = in_turns(
                5,
                lambda m=model: bare(m, Path(folder) / "bare.onnx"),
                lambda m=model: ours(m, Path(folder) / "ours.onnx"),
            )
            print(f"| {task} | {plain / 1000:.2f} | {protected / 1000:.2f} | {protected / plain:.2f} |", flush=True)


if __name__ == "__main__":
    main()
