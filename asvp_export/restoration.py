"""Restoring one picture with a shipped file: onnxruntime and numpy, no PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from asvp_export.errors import InputError
from asvp_export.graph.metadata import Provenance, read_provenance, tiling_notes
from asvp_export.images import as_channels, pad_to
from asvp_export.parity.session import ModelInput, float_outputs, inputs_of, run_model, session
from asvp_export.signature import SizeRule, ValueRange
from asvp_export.tiles import Tiling, run_tiled


def restore(
    model: str | Path,
    picture: np.ndarray,
    *,
    provider: str = "cpu",
    tiling: Tiling | None = None,
    others: Mapping[str, np.ndarray] | Sequence[np.ndarray] = (),
    note: Callable[[str], None] = lambda line: None,
) -> np.ndarray:
    """Restore a picture: padded to what the model takes, run once (or tile by tile), cropped back.

    Args:
        model: an ONNX file; its metadata says the sizes and the value range (else: any size, 0..1).
        picture: [H, W, 3] float32 in 0..1.
        provider: of onnxruntime, "cpu" or "cuda".
        tiling: run tile by tile, for pictures that memory does not hold whole. The SVD of a node is then the tile's own:
            the result differs from that of one run (docs/compatibility.md says by how much).
        others: what the model takes besides the image (a noise map, a noise level), by name or in order; a mapping may hold
            more, such as an example of the image itself.
        note: called with a line where tiles are not what the architecture is made for.

    Returns:
        [H * scale, W * scale, 3] float32, around 0..1 (not clipped); less where the model cuts a border off.

    Raises:
        InputError: the model does not load, or its output is not an image of the input.
    """
    opened = session(model, provider)
    provenance = read_provenance(opened.get_modelmeta().custom_metadata_map)
    size, values = (provenance.size, provenance.data_range) if provenance else (SizeRule(), ValueRange())
    inputs = inputs_of(opened)
    image = _image(inputs, provenance)
    rest = [one.name for one in inputs if one is not image]
    given = others if isinstance(others, Mapping) else dict(zip(rest, others, strict=False))
    found = "; ".join(map(str, inputs)) or "nothing"
    if image is None or (not others and rest):
        raise InputError(
            f"The model takes {found}; one image batch (N, C, H, W) was expected, or the others by --inputs."
        )
    if missing := [name for name in rest if name not in given]:
        raise InputError(f"The model takes {found}; {missing[0]} is not among the inputs that were given.")
    if rest and tiling:
        raise InputError("Tiles were asked for; they are for models that take one picture and nothing else.")
    channels = image.shape[1]
    height, width = picture.shape[:2]
    maps = {name: pad_to(value, size) if value.shape[2:] == (height, width) else value for name, value in given.items()}
    x = as_channels(picture[None], channels if isinstance(channels, int) else 3)
    x = np.ascontiguousarray(values.of(pad_to(x, size)))
    main = _main(opened, provenance)

    def run(part: np.ndarray) -> np.ndarray:
        return run_model(opened, *(part if one is image else maps[one.name] for one in inputs))[main]

    for line in tiling_notes(provenance) if tiling else ():
        note(line)
    y = run_tiled(run, x, tiling.fitting(size)) if tiling else run(x)
    if y.ndim != 4 or y.shape[:2] not in [(1, 1), (1, 3)]:
        raise InputError(
            f"The model's output has shape {y.shape} for an input of {x.shape}; a grey or RGB image was expected."
        )
    rows, columns = (y.shape[axis] * side // x.shape[axis] for axis, side in ((2, height), (3, width)))
    y = np.broadcast_to(y, (1, 3, *y.shape[2:]))
    return values.to_unit(y[0, :, :rows, :columns].transpose(1, 2, 0))


def _image(inputs: Sequence[ModelInput], provenance: Provenance | None) -> ModelInput | None:
    """The input that the metadata names, else the first, where it is an image batch."""
    named = [one for one in inputs if provenance and one.name == provenance.image]
    found = next(iter((*named, *inputs)), None)
    return found if found and len(found.shape) == 4 else None


def _main(opened: ort.InferenceSession, provenance: Provenance | None) -> int:
    """Which floating output is the restored image: the one that the metadata names, else the first."""
    names = [one.name for one in float_outputs(opened)]
    return names.index(provenance.output) if provenance and provenance.output in names else 0
