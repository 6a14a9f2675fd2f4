"""The protected file (function body) beside the unprotected one, in onnxruntime on the CPU, 256 x 256."""

from __future__ import annotations

import numpy as np
from _teachers import LAYER, TASKS, teacher

import asvp_export
from asvp_export.graph.export import to_onnx
from asvp_export.graph.passes import without_nodes
from asvp_export.parity.latency import latency
from asvp_export.parity.session import session


def main() -> None:
    print("| teacher | rank | unprotected, ms | protected, ms | ratio |")
    print("|---|---|---|---|---|")
    for task in TASKS:
        model = teacher(task)
        x = model.example(256, 256).numpy().astype(np.float32)
        for rank in (1, 4):
            written = to_onnx(asvp_export.protect(model, LAYER, rank=rank))
            pair = [session(m.SerializeToString(), threads=2) for m in (without_nodes(written), written)]
            plain, protected = latency(*pair, x, repeats=40)
            print(f"| {task} | {rank} | {plain:.1f} | {protected:.1f} | {protected / plain:.2f} |", flush=True)


if __name__ == "__main__":
    main()
