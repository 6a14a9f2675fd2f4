"""What the shipped file says about itself: `metadata_props` with the prefix `asvp.`."""

from __future__ import annotations

import json
import math
import reprlib
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import onnx

from asvp_export.assumptions import Assumption
from asvp_export.errors import InputError
from asvp_export.operator import Perturbation
from asvp_export.signature import NCHW, NHWC, SizeRule, ValueRange
from asvp_export.untrusted import checked, no_doubles, parsed

PREFIX = "asvp."

# The SVD is global: tiles of an image have other singular values than the whole.
SCOPE = "whole-image"

MOST_DB = 100.0
"""No gate says more: over it only the rounding of float32 is measured, which changes with the number of threads."""

# The operator's body stands in the graph itself, for readers that do not resolve model-local functions.
INLINE = "inline"


def stamp_of(psnr: float) -> float | None:
    """A PSNR in dB as a gate of the metadata says it: rounded down to 0.1, `MOST_DB` at most; None: not finite."""
    capped = min(psnr, MOST_DB)
    return math.floor(capped * 10) / 10 if math.isfinite(capped) else None


def same_stamp(first: float | None, second: float | None) -> bool:
    """Whether two stamps are of one file: measurements one after the other may differ by a step of 0.1 dB."""
    return first == second or (first is not None and second is not None and abs(first - second) < 0.15)


@dataclass(frozen=True)
class Provenance:
    """The metadata of one shipped file."""

    version: str
    """Of asvp-export."""

    layers: dict[str, Perturbation]
    """Layer name to the attributes of its node and the residual gain; files of before have none, and no inverse."""

    source_sha256: str
    """Of the file that the teacher was loaded from."""

    data_range: ValueRange
    """The values of black and white."""

    scale: float
    """Height of the main output over that of the image."""

    size: SizeRule
    """The heights and widths that the model takes."""

    image: str = "input"
    """Name of the image input."""

    output: str = "output"
    """Name of the main output."""

    gates: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Gate name to its threshold and the least PSNR measured, in dB rounded down to 0.1."""

    scope: str = SCOPE
    """How much of an image one run has to see."""

    portable: str = ""
    """INLINE where the bodies are written into the graph; "" where nodes call the functions."""

    tiling: str = ""
    """What the architecture says of tiles: "supported", "discouraged" or "internal"; "" where it is not known."""

    compensated: str = ""
    """How the weights behind the nodes were changed, "solve" or "refine"; "" where they are the teacher's."""

    assumptions: tuple[Assumption, ...] = ()
    """What was concluded of the original when it was loaded."""

    layout: str = NCHW
    """Of the image that goes in and the main output, NCHW or NHWC."""


_FIELDS = {field.name for field in fields(Provenance)}  # newer versions may write more, which is passed over
_JSON = {"layers", "data_range", "scale", "size", "gates", "assumptions"}  # the others are texts


def write_provenance(model: onnx.ModelProto, provenance: Provenance) -> None:
    """Replace the model's `asvp.` entries; others stay. Keys come in one order, so that bytes repeat."""
    assumptions = [assumption.as_dict() for assumption in provenance.assumptions]
    entries = {
        "version": provenance.version,
        "layers": _json([{"name": name, **node.described()} for name, node in provenance.layers.items()]),
        "source_sha256": provenance.source_sha256,
        "data_range": _json([provenance.data_range.low, provenance.data_range.high]),
        "scale": _json(provenance.scale),
        "size": _json(asdict(provenance.size)),
        "image": provenance.image,
        "output": provenance.output,
        "gates": _json(provenance.gates),
        "scope": provenance.scope,
        **({"portable": provenance.portable} if provenance.portable else {}),
        **({"tiling": provenance.tiling} if provenance.tiling else {}),
        **({"compensated": provenance.compensated} if provenance.compensated else {}),
        **({"assumptions": _json(assumptions)} if assumptions else {}),
        **({"layout": provenance.layout} if provenance.layout != NCHW else {}),
    }
    foreign = {p.key: p.value for p in model.metadata_props if not p.key.startswith(PREFIX)}
    onnx.helper.set_model_props(model, foreign | {PREFIX + key: value for key, value in entries.items()})


def read_provenance(properties: dict[str, str]) -> Provenance | None:
    """The metadata of a file, or None where it has none of ours.

    Args:
        properties: of an onnx.ModelProto or of an onnxruntime session (`custom_metadata_map`).

    Raises:
        InputError: there is an `asvp.` entry, but not all of them, or not as this tool writes them: anyone can have
            written it, so that every value is checked.
    """
    ours = {key.removeprefix(PREFIX): value for key, value in properties.items() if key.startswith(PREFIX)}
    if not ours:
        return None
    try:
        data = {key: parsed(text) if key in _JSON else text for key, text in ours.items() if key in _FIELDS}
        data["layers"], data["data_range"] = _by_name(data.get("layers")), _range(data.get("data_range"))
        provenance = checked(data, Provenance)
        _check_ranges(provenance)
    except (ValueError, InputError) as error:
        raise InputError(
            f"The file's asvp metadata cannot be read ({str(error).rstrip('.')}); it was changed after the export, or "
            "written by another version. Export it again."
        ) from error
    return provenance


def _by_name(layers: object) -> dict[str, object]:
    """The layers as they stand in the metadata, a list of objects, by their names."""
    if not isinstance(layers, list) or not all(
        isinstance(layer, dict) and isinstance(layer.get("name"), str) for layer in layers
    ):
        raise ValueError("layers is not a list of objects with names")
    no_doubles((layer["name"] for layer in layers), "layer")
    return {layer.pop("name"): layer for layer in layers}


def _range(bounds: object) -> dict[str, object]:
    """The values of black and white as they stand in the metadata, a pair."""
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise ValueError("data_range is not a pair of numbers")
    return {"low": bounds[0], "high": bounds[1]}


def tiling_notes(provenance: Provenance | None) -> list[str]:
    """What a user who runs the model on tiles has to know of the architecture."""
    advice = {
        "discouraged": "The architecture looks at the whole image: tiles are discouraged.",
        "internal": "The architecture cuts the image into tiles itself: hand it the whole image.",
    }
    return [advice[provenance.tiling]] if provenance and provenance.tiling in advice else []


def _check_ranges(provenance: Provenance) -> None:
    """Anyone can edit metadata: refuse values that padding, scaling or printing would stumble over."""
    sizes = {"multiple": provenance.size.multiple, "minimum": provenance.size.minimum}
    wrong = [f"{name} {value}" for name, value in sizes.items() if not 1 <= value <= 2**16]
    if not 2**-16 <= provenance.scale <= 2**16:
        wrong.append(f"scale {provenance.scale}")
    if provenance.layout not in (NCHW, NHWC):
        wrong.append(f"layout {provenance.layout}")
    if wrong:
        raise ValueError(", ".join(wrong))
    ValueRange.read((provenance.data_range.low, provenance.data_range.high))
    for name, gate in provenance.gates.items():
        if gate.keys() != {"threshold", "min_psnr"} or gate["threshold"] is None:
            raise ValueError(f"the gate {reprlib.repr(name)} has no threshold and min_psnr")


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
