"""Whether the inlined bodies of a file do what its metadata says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from asvp_export.errors import AsvpError
from asvp_export.onnx_graph.inline import Body, inlined_bodies
from asvp_export.onnx_graph.names import NodeName, read_name
from asvp_export.operator import Perturbation, reference
from asvp_export.runtime.session import run_model, session

_DISTANCE = 1e-4  # of the change: the function's tolerance in docs/concepts/operator.md, where spectra have gaps
_NODES_A_COMPONENT = 24  # at least: one for each squaring of the Gram matrix
_ROUNDING = 1e-6  # of the map: float32 between the body's nodes


def misbehaving(model: onnx.ModelProto, layers: dict[str, Perturbation]) -> list[str]:
    """The layers without an inlined body, or with one that computes something else than the operator.

    Each body is cut out of the graph and run on one map against the reference, so that it does not matter which version
    of this tool wrote it.

    Args:
        model: a file with inlined bodies.
        layers: what its metadata names.
    """
    bodies = inlined_bodies(model)
    by_name = {name: body for call, body in bodies.items() if (name := read_name(call, layers)) is not None}
    wrong = {layer for layer in layers if NodeName(layer) not in by_name}
    for name, body in by_name.items():
        layer = layers.get(name.layer)
        node = layer and (layer.inverse if name.inverse else layer)
        if node is None or not _behaves(model, body, node) or not _in_front(by_name, name, body, layers):
            wrong.add(name.layer)
    return [layer for layer in layers if layer in wrong]


def _in_front(by_name: Mapping[NodeName, Body], name: NodeName, body: Body, layers: Mapping[str, Perturbation]) -> bool:
    """Whether node and inverse stand one behind the other, where there is an inverse."""
    if name.inverse:
        before = by_name.get(name.exposing)
        return before is not None and before.output == body.input
    return layers[name.layer].inverse is None or replace(name, inverse=True) in by_name


def _behaves(model: onnx.ModelProto, body: Body, node: Perturbation) -> bool:
    # Fewer nodes cannot compute it; without this check the metadata could ask for a map of any size.
    if len(body.nodes) < _NODES_A_COMPONENT * node.rank:
        return False
    x = _feature_map(node)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, x.ndim * [None]) for name in (body.input, body.output)
    ]
    graph = helper.make_graph(body.nodes, "body", ends[:1], ends[1:])
    alone = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    try:
        y = run_model(session(alone.SerializeToString(), library=False), x)[0]
    except AsvpError:
        return False
    expected = reference(torch.from_numpy(x), **node.attributes()).numpy()
    allowed = _DISTANCE * np.linalg.norm(expected - x) + _ROUNDING * np.linalg.norm(x)
    return y.shape == x.shape and bool(np.linalg.norm(y - expected) <= allowed)


def _feature_map(node: Perturbation) -> np.ndarray:
    """A map whose singular values fall from 1 to 1/2 in equal steps."""
    channels, rng = node.rank + 2, np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((rows, channels)))[0] for rows in (channels, 4 * channels))
    matrix = ((left * np.linspace(1, 0.5, channels)) @ right.T).astype(np.float32)
    dimensions = max(4, node.axis + 1, 1 - node.axis)
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(1, channels, *(dimensions - 3) * [1], -1), 1, node.axis))
