"""A photograph, a small ONNX model that takes it, and what the gates are told of both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper
from skimage import data

from asvp_export.parity.cases import Case
from asvp_export.parity.verify import ImageScore
from asvp_export.signature import Signature, SizeRule, ValueRange

UNIT, WIDE = ValueRange(), ValueRange(0, 255)
FREE = {"size": SizeRule(), "data_range": UNIT, "signature": Signature()}


def model(
    *nodes: onnx.NodeProto,
    shape: Sequence[str | int | None] = ("batch", 3, "height", "width"),
    kind: int = TensorProto.FLOAT,
    inputs: Sequence[str] = ("image",),
    domain: str = "",
) -> bytes:
    """A small ONNX model from `image` to `restored`."""
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("Sqrt", ["image"], ["restored"])],
        "restorer",
        [helper.make_tensor_value_info(name, kind, shape) for name in inputs],
        [helper.make_tensor_value_info("restored", kind, None)],
    )
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def sizes_of(cases: Sequence[Case | ImageScore]) -> list[tuple[str, str, int]]:
    return [(case.name, case.size, case.batch) for case in cases]


def photograph(height: int = 96, width: int = 128, batch: int = 1) -> np.ndarray:
    """batch, 3, height, width float32 in 0..1."""
    pieces = [data.astronaut()[40 * i : 40 * i + height, 160 : 160 + width] for i in range(batch)]
    return np.stack(pieces).transpose(0, 3, 1, 2).astype(np.float32) / 255
