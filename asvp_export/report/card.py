"""The model card: a README.md as model hubs show it, with what was measured and what the defence does not do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from asvp_export.onnx_graph.describe import describe
from asvp_export.report.card_code import usage
from asvp_export.report.markdown import code, plain, table
from asvp_export.signature import NHWC

if TYPE_CHECKING:
    from asvp_export.parity.result import ParityResult

NAME = "README.md"  # where hubs look for it

_BEGIN = "<!-- asvp-export: begin; `asvp-export inspect --verify` checks what stands between these marks -->"
_END = "<!-- asvp-export: end -->"

# Nothing in it comes from a file or a user, so that it is YAML whatever these are called. The hub refuses a licence
# that it does not know; "other" is one that it does, with a name that nobody can take for one.
_FRONT = """\
---
library_name: onnx
pipeline_tag: image-to-image
license: other  # OWNER: put the licence's identifier here, or keep "other" and give its name and link below
license_name: to-be-chosen-by-the-owner
# license_link: LICENSE
# base_model: owner/name  # OWNER: where the original is on the hub
tags:
{tags}
---

# {title}

*OWNER: write here what the model restores, what it was trained on, and under which licence it comes.
As long as this line stands, the card grants none.*

"""


def card_path(model: str | Path) -> Path:
    """Where the card of an ONNX file lies."""
    return Path(model).with_name(NAME)


def generated_part(content: bytes) -> bytes | None:
    """What this tool wrote in a card, its two marks included; None where a mark is gone. The rest is the owner's."""
    begin, end = (re.escape(mark.encode()) for mark in (_BEGIN, _END))
    match = re.search(rb"^" + begin + rb"$.*^" + end + rb"$", content, re.MULTILINE | re.DOTALL)
    return match[0] if match else None


def card(result: ParityResult, model: Path) -> str:
    """The model card of an export that passed.

    Args:
        result: of the export; the card shows its gates, dB rounded down.
        model: the verified file, which need not have its name yet: that is `result.output`.
    """
    assert result.output is not None
    description: dict[str, Any] = describe(model) | {"file": result.output.name}
    types = _types(model)
    provenance = description["provenance"]
    tags = ["onnx", "onnxruntime", "image-restoration"]
    tags += ["super-resolution"] if provenance["scale"] > 1 else []
    tags += ["asvp"] if description["nodes"] else []
    parts = [
        _BEGIN,
        _about(result, description),
        _contract(description, types),
        *_assumed(result),
        _parity(result),
        _defence(result) if result.nodes else _NO_DEFENCE,
        usage(description, types),
        _END,
    ]
    front = _FRONT.format(tags="\n".join(f"- {tag}" for tag in tags), title=plain(result.output.stem))
    return front + "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _about(result: ParityResult, description: Mapping[str, Any]) -> str:
    opsets = ", ".join(f"{domain} {version}" for domain, version in description["opset"].items())
    with_nodes = (
        "An image-restoration model as one ONNX file. It carries an ASVP node (Adaptive Singular Value Perturbation) "
        f"behind {_count(len(result.nodes), 'layer')}, which changes the feature map that leaves the layer, while the "
        "output stays within a stated PSNR of the original's. Read *What the defence does not do* before you rely on "
        "it."
    )
    without_nodes = (
        "An image-restoration model as one ONNX file, verified against the original. It carries no ASVP node."
    )
    rows = {
        "file": f"{code(description['file'])}, {description['bytes']} bytes",
        "SHA-256": f"`{description['sha256']}`",
        "exported from": f"{code(result.model)}, SHA-256 `{result.source_sha256}`",
        "by": f"asvp-export {plain(description['provenance']['version'])}",
        "ONNX": f"IR {description['ir_version']}, opsets {plain(opsets)}",
    }
    return f"{with_nodes if result.nodes else without_nodes}\n\n## The file\n\n" + table(("", ""), rows.items())


def _contract(description: Mapping[str, Any], types: Mapping[str, str]) -> str:
    provenance = description["provenance"]
    main_tensors = {
        "inputs": (provenance["image"], "the image"),
        "outputs": (provenance["output"], "the restored image"),
    }
    rows = [
        (
            kind[:-1] + (f", {main_tensors[kind][1]}" if name == main_tensors[kind][0] else ""),
            code(name),
            _dims(shape),
            types[name],
        )
        for kind in ("inputs", "outputs")
        for name, shape in description[kind].items()
    ]
    values, size, scale = provenance["data_range"], provenance["size"], provenance["scale"]
    rules = [f"at least {size['minimum']} pixels"] if size["minimum"] > 1 else []
    rules += [f"multiples of {size['multiple']}"] if size["multiple"] > 1 else []
    rules += ["equal"] if size["square"] else []
    lines = ["- Channels last: N,H,W,C, in and out."] if provenance["layout"] == NHWC else []
    lines += [
        f"- Values {values['low']:g} (black) to {values['high']:g} (white); the outputs are not clipped.",
        f"- Height and width: {', '.join(rules)}. Pad an image to that at the bottom and the right, and crop the "
        "output."
        if rules
        else "- Height and width: any.",
        f"- The restored image is {'' if scale == 1 else f'{scale:g} times '}as high and wide as the image, or a "
        "border less where the model cuts one off.",
    ]
    if description["nodes"]:
        lines.append(
            "- Whole images only: the SVD inside is global, so a run on tiles differs from a run on the whole image, "
            "and padding changes it a little as well."
        )
    return "## Input and output\n\n" + table(("", "name", "shape", "type"), rows) + "\n\n" + "\n".join(lines)


def _assumed(result: ParityResult) -> list[str]:
    """What was concluded of the original, the certain last; nothing where nothing was."""
    rows = [
        (
            plain(assumption.about),
            plain(assumption.concluded),
            plain(assumption.because),
            "yes" if assumption.certain else "no",
        )
        for assumption in sorted(result.assumptions, key=lambda assumption: assumption.certain)
    ]
    about = "What the exporter concluded of the original when it loaded it. The parity below was measured under it."
    return (
        [f"## Assumptions\n\n{about}\n\n" + table(("about", "concluded", "because", "certain"), rows)] if rows else []
    )


def _parity(result: ParityResult) -> str:
    against = {"fidelity": "the protected model in PyTorch", "preservation": "the unprotected original"}
    rows = []
    for name, gate in result.gates.items():
        shown = gate.as_dict()
        decibels = [f"{shown[key]:.2f} dB" for key in ("min_psnr", "mean_psnr")]
        rows.append((name, against[name], *decibels, _number(shown["min_ssim"]), f"{gate.threshold:g} dB"))
    inputs = len({(score.name, score.size, score.batch) for score in result.preservation.per_image})
    sizes = sorted({score.size for score in result.preservation.per_image})
    shown_sizes = ", ".join(sizes[:6]) + (f" and {len(sizes) - 6} more" if len(sizes) > 6 else "")
    paths = {"function": "by the function body that it carries", "library": "by the native library of asvp-export"}
    notes = "".join(f"\n- {plain(note)}" for note in result.notes)
    return (
        "## Parity\n\n"
        f"The file in onnxruntime on {_count(inputs, 'input')} ({shown_sizes} pixels), run "
        f"{' and '.join(paths[name] for name in result.execution_paths)}. The worst input decides; dB and SSIM are "
        "rounded down, 200 dB is identical.\n\n"
        + table(("gate", "the file against", "worst PSNR", "mean PSNR", "worst SSIM", "needed"), rows)
        + "\n\nThe gates measure how near the file is to the original, not how well the original restores."
        + ("\n" + notes if notes else "")
    )


def _defence(result: ParityResult) -> str:
    rows = []
    for name, node in result.nodes.items():
        effect = result.effects.get(name)
        shares = [f"{share:.4f}" for share in (effect.relative_feature_change, effect.strength)] if effect else ["", ""]
        rows.append(
            (
                code(name),
                f"{node.rank}",
                *(f"{x:g}" for x in (node.gain, node.residual_gain, node.energy)),
                f"{node.axis}",
                *shares,
            )
        )
    heads = ("layer", "rank", "gain", "residual", "energy", "axis", "feature change", "strength")
    return (
        "## The defence\n\n"
        + table(heads, rows)
        + "\n\n"
        + _THREATS.replace("DELETED", _deleted(result)).replace("CLEAN", _clean_behind(result))
    )


def _clean_behind(result: ParityResult) -> str:
    """Which layers' readers get the clean map."""
    clean = [code(name) for name, node in result.nodes.items() if node.inverse and node.residual_gain == 1]
    if not clean:
        return "No map behind the layer is clean."
    which = "each layer" if len(clean) == len(result.nodes) else ", ".join(clean)
    return f"The map behind\n  the second node of {which} is clean too: there the residual is 1."


def _deleted(result: ParityResult) -> str:
    """What the output is worth without the nodes."""
    if not result.removal_tests:
        return "Deleting the nodes\n  moves the output by no more than what *preservation* above shows."
    by_name = {test.name: test.as_dict()["min_psnr"] for test in result.removal_tests}
    shown = {name: "nothing finite" if value is None else f"{value:.2f} dB" for name, value in by_name.items()}
    return (
        f"In the worst case\n  the outputs are {shown['shipped']} from the original's with the nodes, and "
        f"{shown['nodes deleted']} without them. With the\n  nodes replaced by the scalar or the 1x1 map that comes "
        f"nearest to them, they are {shown['best scalar']} and\n  {shown['best 1x1 map']} from the original's."
    )


# No claim in it is stronger than docs/concepts/threat-model.md.
_THREATS = """\
Behind each layer the `rank` leading singular values of its feature map are multiplied by `gain`.
That is the exposed map. A second node gives the layers that read it the same map with `residual`
instead of `gain`. *Strength* is how far the exposed map is from every multiple of the clean one
(0: the same, 1: nothing left).

## What the defence does not do

It aims at one thing: training another model (a student) on the feature maps that this graph
exposes, with the graph as it is. How much that costs a student was not measured for this file, so
do not count on it. Nothing here is cryptography: the file is open, and everyone who has it can read
and change it.

- Attackers who read one tensor further up, before the node, have the clean feature maps. CLEAN
- Attackers who delete the nodes, or undo them (rank and gain stand in the file), have them too. DELETED
- Attackers who normalise the feature maps remove what a rescaling can; the *strength* above is the
  rest.
- Attackers who distil from the outputs alone are not hindered: the outputs are preserved, by design.
- People who take the file and use it are not hindered: it is there to be used."""

_NO_DEFENCE = """\
## No defence

The file carries no ASVP node. Nothing in it keeps anyone from training another model on its
feature maps or its outputs."""


def _types(model: Path) -> dict[str, str]:
    """Element type of each input and output, as NumPy calls it."""
    graph = onnx.load(model, load_external_data=False).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    return {name: str(onnx.helper.tensor_dtype_to_np_dtype(kind)) for name, kind in kinds.items()}


def _dims(shape: Sequence[int | str]) -> str:
    return " x ".join(plain(str(dim)) for dim in shape)


def _number(ssim: object) -> str:
    return f"{ssim:.5f}" if isinstance(ssim, float) else "none"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
