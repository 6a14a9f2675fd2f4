"""What is shipped beside a file: read, changed, and made up for a file without nodes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from asvp_export.environment import tool_version
from asvp_export.onnx_graph.metadata import Provenance, write_provenance
from asvp_export.parity.result import ParityResult
from asvp_export.parity.verify import GateResult, ImageScore
from asvp_export.signature import SizeRule, ValueRange


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def digest(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def data_file(folder: Path) -> Path:
    return next(folder.glob("p.*.data"))


UNIT, ANY_SIZE = ValueRange(), SizeRule()
GREY = {"grey": ["n", 1, "h", "w"], "le`vel": ["n", 1, 1, 1]}


def plain_result(
    path: Path,
    shapes: dict[str, list[int | str]] = GREY,
    values: ValueRange = UNIT,
    size: SizeRule = ANY_SIZE,
    kind: int = TensorProto.FLOAT,
    **changes: Any,
) -> ParityResult:
    """A file without nodes that adds its inputs up, and the result that its export would give."""
    image, shape = next(iter(shapes.items()))
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    output = helper.make_tensor_value_info("out", kind, shape)
    graph = helper.make_graph([helper.make_node("Sum", list(shapes), ["out"])], "sum", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    source = "5" * 64
    write_provenance(model, Provenance(tool_version(), {}, source, values, 1.0, size, image, "out"))
    onnx.save(model, path)
    gate = GateResult(200.0, 200.0, 1.0, 48.0, True, (ImageScore("a.png", "48x64", 1, 200.0, 1.0),))
    fields = {
        "passed": True,
        "model": "source.pt",
        "source_sha256": source,
        "output": path,
        "output_sha256": digest(path.read_bytes())["sha256"],
        "nodes": {},
        "effects": {},
        "fidelity": gate,
        "preservation": gate,
        "latency_ms": (1.0, 1.0),
    }
    return ParityResult(**{**fields, **changes})


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
