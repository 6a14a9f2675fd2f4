"""What the shipped file says about itself: `metadata_props` with the prefix `asvp.`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import onnx

from asvp_export.assumptions import Assumption
from asvp_export.errors import InputError
from asvp_export.operator import Perturbation
from asvp_export.signature import NCHW, NHWC, SizeRule, ValueRange

PREFIX = "asvp."

# The SVD is global: tiles of an image have other singular values than the whole.
SCOPE = "whole-image"

# The operator's body stands in the graph itself, for readers that do not resolve model-local functions.
INLINE = "inline"


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

    gates: dict[str, Any] = field(default_factory=dict)
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


def write_provenance(model: onnx.ModelProto, provenance: Provenance) -> None:
    """Replace the model's `asvp.` entries; others stay. Keys come in one order, so that bytes repeat."""
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
        **({"assumptions": _json([one.as_dict() for one in provenance.assumptions])} if provenance.assumptions else {}),
        **({"layout": provenance.layout} if provenance.layout != NCHW else {}),
    }
    others = {p.key: p.value for p in model.metadata_props if not p.key.startswith(PREFIX)}
    onnx.helper.set_model_props(model, others | {PREFIX + key: value for key, value in entries.items()})


def read_provenance(properties: dict[str, str]) -> Provenance | None:
    """The metadata of a file, or None where it has none of ours.

    Args:
        properties: of an onnx.ModelProto or of an onnxruntime session (`custom_metadata_map`).

    Raises:
        InputError: there is an `asvp.` entry, but not all of them, or not as this tool writes them.
    """
    ours = {key.removeprefix(PREFIX): value for key, value in properties.items() if key.startswith(PREFIX)}
    if not ours:
        return None
    try:
        layers = json.loads(ours["layers"])
        size = json.loads(ours["size"])
        if not isinstance(layers, list):
            raise TypeError("layers is no list")
        found = Provenance(
            version=ours["version"],
            layers={layer.pop("name"): Perturbation(**layer) for layer in layers},
            source_sha256=ours["source_sha256"],
            data_range=ValueRange.read(json.loads(ours["data_range"])),
            scale=float(json.loads(ours["scale"])),
            size=SizeRule(int(size["minimum"]), int(size["multiple"]), bool(size["square"])),
            image=ours["image"],
            output=ours["output"],
            gates=json.loads(ours["gates"]),
            scope=ours["scope"],
            portable=ours.get("portable", ""),
            tiling=ours.get("tiling", ""),
            compensated=ours.get("compensated", ""),
            assumptions=tuple(Assumption(**one) for one in json.loads(ours.get("assumptions", "[]"))),
            layout=ours.get("layout", NCHW),
        )
        _check_ranges(found)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, InputError) as error:
        raise InputError(
            f"The file's asvp metadata cannot be read ({type(error).__name__}: {error}); it was changed after the "
            "export, or written by another version. Export it anew."
        ) from error
    return found


def tiling_notes(provenance: Provenance | None) -> list[str]:
    """What who cuts pictures into tiles has to know of the architecture."""
    advice = {
        "discouraged": "The architecture looks at the whole image: tiles are discouraged.",
        "internal": "The architecture cuts the image into tiles itself: hand it the whole image.",
    }
    return [advice[provenance.tiling]] if provenance and provenance.tiling in advice else []


def _check_ranges(found: Provenance) -> None:
    """Anyone can edit metadata: refuse values that padding, scaling or printing would stumble over."""
    whole = {"multiple": found.size.multiple, "minimum": found.size.minimum}
    wrong = [f"{name} {value}" for name, value in whole.items() if not 1 <= value <= 2**16]
    if not 2**-16 <= found.scale <= 2**16:
        wrong.append(f"scale {found.scale}")
    if found.layout not in (NCHW, NHWC):
        wrong.append(f"layout {found.layout}")
    if wrong:
        raise ValueError(", ".join(wrong))
    for gate in found.gates.values():
        float(gate["threshold"])
        float(gate["min_psnr"] or 0)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
