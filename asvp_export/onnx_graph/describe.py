"""What stands in a shipped file: nodes, attributes, provenance."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

import onnx

from asvp_export.errors import InputError, one_line
from asvp_export.onnx_graph.inline import fold
from asvp_export.onnx_graph.metadata import read_provenance
from asvp_export.onnx_graph.opening import check_strange
from asvp_export.onnx_graph.pairs import pairs
from asvp_export.onnx_graph.passes import attributes_of
from asvp_export.untrusted import read_regular

MOST_MODEL_BYTES = 2**31  # protobuf holds no more


def describe(path: str | Path) -> dict[str, object]:
    """Read an ONNX file and tell what the defence in it is.

    Args:
        path: the file; its external data has to lie beside it, and is not read.

    Returns:
        `file`, `bytes`, `sha256`, `ir_version`, `opset` (domain to version), `inputs` and `outputs` (name to shape),
        `nodes` (name, rank, gain, energy, axis, residual: the factor that the layer's readers get), `functions`
        (overload to number of nodes), `provenance` (None where the file has no `asvp.` metadata).

    Raises:
        InputError: the file is not there, not an ONNX model, or without its external data.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"The file {path} does not exist or is a folder; an ONNX file was expected.")
    try:
        content = read_regular(path, "file", MOST_MODEL_BYTES)
        model = onnx.load_from_string(content)
        check_strange(model, path)
        onnx.checker.check_model(str(path))
    except InputError:
        raise
    except Exception as error:  # protobuf's and the checker's errors have no common base
        reason = one_line(error, 200)
        raise InputError(f"The file {path} is not an ONNX model ({reason}); an exported file was expected.") from error
    provenance = read_provenance({p.key: p.value for p in model.metadata_props})
    imports = {o.domain or "ai.onnx": o.version for o in model.opset_import}
    fold(model)
    return {
        "file": path.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "ir_version": model.ir_version,
        "opset": imports,
        "inputs": {v.name: _shape(v) for v in model.graph.input},
        "outputs": {v.name: _shape(v) for v in model.graph.output},
        "nodes": [
            {"name": pair.node.name, **attributes_of(pair.node).attributes(), "residual": pair.residual_gain}
            for pair in pairs(model, provenance.layers if provenance else ())
        ],
        "functions": {f"{f.domain}.{f.name}:{f.overload}": len(f.node) for f in model.functions},
        "provenance": asdict(provenance) if provenance else None,
    }


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in value.type.tensor_type.shape.dim]
