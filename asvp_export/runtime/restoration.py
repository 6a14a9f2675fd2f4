"""Restoring one picture with a shipped file: onnxruntime and numpy, no PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from asvp_export.errors import InputError
from asvp_export.images import as_channels, pad, pad_to
from asvp_export.onnx_graph.metadata import Provenance, read_provenance, tiling_notes
from asvp_export.options import RunOptions
from asvp_export.runtime.session import ModelInput, float_outputs, run_model, session, session_inputs
from asvp_export.runtime.tiles import Tiling, run_tiled
from asvp_export.signature import (
    NHWC,
    SizeRule,
    ValueRange,
    channels_to_end,
    channels_to_front,
    looks_channels_last,
    shape_text,
)


def restore(
    model: str | Path,
    picture: np.ndarray,
    *,
    provider: str = RunOptions.provider,
    tiling: Tiling | None = None,
    others: Mapping[str, np.ndarray] | Sequence[np.ndarray] = (),
    note: Callable[[str], None] = lambda line: None,
) -> np.ndarray:
    """Restore a picture: padded to what the model takes, run once (or tile by tile), cropped back.

    A file of one fixed size restores larger pictures in tiles of that size; one of a fixed batch gets the picture
    repeated.

    Args:
        model: an ONNX file; its metadata says the sizes and the value range (else: any size, 0..1).
        picture: [H, W, 3] float32 in 0..1.
        provider: of onnxruntime, "cpu" or "cuda".
        tiling: run tile by tile, for pictures that memory does not hold whole. The SVD of a node is then the tile's
            own: the result differs from that of one run (docs/results/compatibility.md says by how much).
        others: what the model takes besides the image (a noise map, a noise level), by name or in order; a mapping may
            hold more, such as an example of the image itself.
        note: called with a line where tiles are not what the architecture is made for, or a fixed size asks for them.

    Returns:
        [H * scale, W * scale, 3] float32, around 0..1 (not clipped); less where the model cuts a border off.

    Raises:
        InputError: the model does not load, or its output is not an image of the input.
    """
    opened = session(model, provider)
    provenance = read_provenance(opened.get_modelmeta().custom_metadata_map)
    size, values = (provenance.size, provenance.data_range) if provenance else (SizeRule(), ValueRange())
    inputs = session_inputs(opened)
    image = _image(inputs, provenance)
    image, arrays = _checked(inputs, image, others, tiling)
    channels_last = provenance.layout == NHWC if provenance else looks_channels_last(image.shape)
    batch, channels, *sides = _channels_first(
        [dim if isinstance(dim, int) else None for dim in image.shape], channels_last
    )
    height, width = picture.shape[:2]
    beside = {
        name: channels_to_front(value) if channels_last and value.ndim == 4 else value for name, value in arrays.items()
    }
    follow = [name for name, value in beside.items() if value.shape[2:] == (height, width)]
    beside |= {name: _padded(beside[name], size, sides) for name in follow}
    x = np.ascontiguousarray(values.of(_padded(as_channels(picture[None], channels or 3), size, sides)))
    tiles = _tiles(x.shape[2:], sides, tiling, size)
    if tiles:
        fixed = _fixed_notes(tiles, (height, width), alone=len(inputs) == 1) if any(sides) else []
        for line in (*fixed, *tiling_notes(provenance)):
            note(line)
    main = _main(opened, provenance)

    def run(part: np.ndarray) -> np.ndarray:
        parts = (_repeated(part if model_input is image else beside[model_input.name], batch) for model_input in inputs)
        parts = (np.ascontiguousarray(channels_to_end(x)) if channels_last and x.ndim == 4 else x for x in parts)
        output = np.atleast_1d(run_model(opened, *parts)[main])[:1]
        return channels_to_front(output) if channels_last and output.ndim == 4 else output

    y = run_tiled(run, x, tiles) if tiles else run(x)
    if y.ndim != 4 or y.shape[:2] not in [(1, 1), (1, 3)]:
        raise InputError(
            f"The model's output has shape {y.shape} for an input of {x.shape}; a grey or RGB image was expected."
        )
    rows, columns = (y.shape[axis] * side // x.shape[axis] for axis, side in ((2, height), (3, width)))
    y = np.broadcast_to(y, (1, 3, *y.shape[2:]))
    return values.to_unit(y[0, :, :rows, :columns].transpose(1, 2, 0))


def _checked(
    inputs: Sequence[ModelInput],
    image: ModelInput | None,
    others: Mapping[str, np.ndarray] | Sequence[np.ndarray],
    tiling: Tiling | None,
) -> tuple[ModelInput, Mapping[str, np.ndarray]]:
    """The image input, and what was given beside it by name, where that is all that the model takes."""
    names = [model_input.name for model_input in inputs if model_input is not image]
    arrays = others if isinstance(others, Mapping) else dict(zip(names, others, strict=False))
    described = "; ".join(map(str, inputs)) or "nothing"
    if image is None or (not others and names):
        raise InputError(
            f"The model takes {described}; one image batch (N, C, H, W or N, H, W, C) was expected. Give examples of "
            "other inputs with --inputs."
        )
    if missing := [name for name in names if name not in arrays]:
        raise InputError(
            f"The model takes {described}; {missing[0]} was not given. Add it to the other inputs (--inputs)."
        )
    if names and tiling:
        raise InputError(
            "Tiles were asked for; only a model whose single input is one picture runs in tiles. Leave --tile out."
        )
    return image, arrays


def _padded(x: np.ndarray, rule: SizeRule, sides: Sequence[int | None]) -> np.ndarray:
    """Padded to what the rule asks for, and to the sides that are fixed."""
    x = pad_to(x, rule)
    height, width = (max(side, fixed or 0) for side, fixed in zip(x.shape[2:], sides, strict=True))
    return pad(x, height, width)


def _tiles(padded: Sequence[int], sides: Sequence[int | None], tiling: Tiling | None, rule: SizeRule) -> Tiling | None:
    """The tiles to run: those asked for, or the file's own size where the picture is larger; None: run it whole."""
    if not any(sides):
        return tiling.fitting(rule) if tiling else None
    free = rule.fit(tiling.size) if tiling else max(padded)
    height, width = (fixed or min(free, side) for fixed, side in zip(sides, padded, strict=True))
    if (height, width) == tuple(padded):
        return None
    overlap = tiling.overlap if tiling else Tiling.overlap
    return Tiling(height, min(overlap, height // 2, width // 2), width)


def _fixed_notes(tiles: Tiling, picture: Sequence[int], alone: bool) -> list[str]:
    """What a user has to know of a fixed size run tile by tile; refused where the file takes more than a picture."""
    mismatch = (
        f"The file takes {shape_text(tiles.sides)} (height x width) only and the picture is {shape_text(picture)}"
    )
    if not alone:
        raise InputError(f"{mismatch}; only a model whose single input is one picture runs in tiles. Crop the picture.")
    return [
        f"{mismatch}: it is restored in tiles that share {tiles.overlap} pixels, which differs from a run on the whole."
    ]


def _repeated(x: np.ndarray, batch: int | None) -> np.ndarray:
    """A batch of 1 as often as a file whose batch is fixed asks for."""
    return np.repeat(x, batch, axis=0) if batch is not None and x.shape[:1] == (1,) else x


def _channels_first(sizes: Sequence[int | None], channels_last: bool) -> list[int | None]:
    """N, C, H, W of sizes that may be N, H, W, C."""
    return [sizes[0], sizes[3], sizes[1], sizes[2]] if channels_last else list(sizes)


def _image(inputs: Sequence[ModelInput], provenance: Provenance | None) -> ModelInput | None:
    """The input that the metadata names, else the first, where it is an image batch."""
    named = [model_input for model_input in inputs if provenance and model_input.name == provenance.image]
    candidate = next(iter((*named, *inputs)), None)
    return candidate if candidate and len(candidate.shape) == 4 else None


def _main(opened: ort.InferenceSession, provenance: Provenance | None) -> int:
    """Which floating output is the restored image: the one that the metadata names, else the first."""
    names = [output.name for output in float_outputs(opened)]
    return names.index(provenance.output) if provenance and provenance.output in names else 0
