"""The code in a model card: how to run the file with onnxruntime alone, with this package, from a shell."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from asvp_export.report.markdown import visible
from asvp_export.signature import NHWC


def usage(description: Mapping[str, Any], types: Mapping[str, str]) -> str:
    """The section of a card that runs the file.

    Args:
        description: what `asvp_export.onnx_graph.describe.describe` tells of it.
        types: element type of each input and output, as NumPy calls it.
    """
    pictures = _picture_code(description, types)
    body = (
        "With onnxruntime alone; nothing of asvp-export is needed"
        + (", since each node carries its body in standard ONNX operators" if description["nodes"] else "")
        + f":\n\n```python\n{pictures or _array_code(description, types)}\n```\n\n"
    )
    native = (
        "With asvp-export installed, its session takes the same arguments and runs the nodes by the native library "
        "where there is one:\n\n```python\nimport asvp_export\n\n"
        f"session = asvp_export.InferenceSession({_string(description['file'])})\n```\n\n"
    )
    command = (
        "The command line does the same, with padding and cropping:\n\n"
        f"    asvp-export run {_shell(description['file'])} in.png -o out.png\n\n"
        if pictures
        else ""
    )
    check = (
        "This command checks that the files are what was shipped:\n\n"
        f"    asvp-export inspect --verify {_shell(description['file'])}"
    )
    return "## Run it\n\n" + body + native + command + check


def _picture_code(description: Mapping[str, Any], types: Mapping[str, str]) -> str | None:
    """Code that restores a picture; None for a model that does not map one RGB image of any size to another."""
    provenance = description["provenance"]
    shapes, channels_last = (
        [*description["inputs"].values(), *description["outputs"].values()],
        provenance["layout"] == NHWC,
    )
    channels = 3 if channels_last else 1
    if (
        len(description["inputs"]) != 1
        or len(description["outputs"]) != 1
        or any(len(s) != 4 or s[channels] != 3 for s in shapes)
    ):
        return None
    (name, shape), scale = next(iter(description["inputs"].items())), provenance["scale"]
    if any(isinstance(dim, int) for dim in (shape[1:3] if channels_last else shape[2:])) or scale != int(scale):
        return None
    minimum, multiple, square = (provenance["size"][key] for key in ("minimum", "multiple", "square"))
    to_values, to_pixels = _conversions(**provenance["data_range"])
    padding, crop = [], ""
    if minimum > 1 or multiple > 1 or square:
        bound = "height, width" if square else "size"
        bound = f"max({bound}{f', {minimum}' if minimum > multiple else ''})" if square or minimum > multiple else bound
        padding = [
            "height, width, _ = picture.shape",
            f"bottom, right = (-(-{bound} // {multiple}) * {multiple} - size for size in (height, width))",
            'picture = np.pad(picture, [(0, bottom), (0, right), (0, 0)], mode="reflect")',
        ]
        crop = "[:height, :width]" if scale == 1 else f"[: height * {scale:g}, : width * {scale:g}]"
    to_half, from_half = ("", "") if types[name] == "float32" else (f".astype(np.{types[name]})", ".astype(np.float32)")
    to_model, from_model = ("", "") if channels_last else (".transpose(2, 0, 1)", ".transpose(1, 2, 0)")
    lines = [
        "import numpy as np",
        "import onnxruntime",
        "from PIL import Image",
        "",
        f"session = onnxruntime.InferenceSession({_string(description['file'])})",
        'pixels = np.asarray(Image.open("in.png").convert("RGB"), dtype=np.float32)',
        f"picture = {to_values}",
        *padding,
        f"(restored,) = session.run(None, {{{_string(name)}: picture{to_model}[None]{to_half}}})",
        f"restored = restored[0]{from_model}{crop}{from_half}",
        f"pixels = {to_pixels}",
        'Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8)).save("out.png")',
    ]
    return "\n".join(lines)


def _conversions(low: float, high: float) -> tuple[str, str]:
    """Expressions from pixels of 0..255 to a model's values, and back."""
    span = high - low
    scaling, unscaling = ("", "") if span == 255 else (" / 255", " * 255")
    if span not in (1, 255):
        scaling, unscaling = f"{scaling} * {span:g}", f" / {span:g}{unscaling}"
    signs = "-+" if low < 0 else "+-"
    shift, unshift = (f" {sign} {abs(low):g}" if low else "" for sign in signs)
    return f"pixels{scaling}{shift}", f"(restored{unshift}){unscaling}" if low else f"restored{unscaling}"


def _array_code(description: Mapping[str, Any], types: Mapping[str, str]) -> str:
    """Code that runs the session on arrays of zeros, which the reader replaces."""
    lines = ["import numpy as np", "import onnxruntime", "", "feed = {"]
    for name, shape in description["inputs"].items():
        free = ", ".join(dict.fromkeys(str(dim) for dim in shape if not isinstance(dim, int)))
        sizes = ", ".join(str(dim if isinstance(dim, int) else 1 if i == 0 else 64) for i, dim in enumerate(shape))
        comment = f"  # free: {visible(free)}" if free else ""
        lines.append(
            f"    {_string(name)}: np.zeros(({sizes}{',' if len(shape) == 1 else ''}), np.{types[name]}),{comment}"
        )
    lines += [
        "}",
        f"session = onnxruntime.InferenceSession({_string(description['file'])})",
        "outputs = session.run(None, feed)",
    ]
    return "\n".join(lines)


def _string(text: str) -> str:
    """A Python string literal."""
    return json.dumps(text)


def _shell(text: str) -> str:
    """One word for a shell."""
    text = visible(text)
    return text if re.fullmatch(r"[\w./+-]+", text) else "'" + text.replace("'", "'\\''") + "'"
