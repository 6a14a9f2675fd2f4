"""Restoring one picture with a shipped file: onnxruntime and numpy, no PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from asvp_export.errors import InputError
from asvp_export.graph.metadata import read_provenance
from asvp_export.images import pad_to
from asvp_export.parity.session import inputs_of, run_model, session


def restore(model: str | Path, picture: np.ndarray, *, provider: str = "cpu") -> np.ndarray:
    """Restore a whole picture: padded to what the model takes, run once, cropped back.

    Args:
        model: an ONNX file; its metadata says the size multiple and the value range (else: any size, 0..1).
        picture: [H, W, 3] float32 in 0..1.
        provider: of onnxruntime, "cpu" or "cuda".

    Returns:
        [H * scale, W * scale, 3] float32, around 0..1 (not clipped).

    Raises:
        InputError: the model does not load, or its output is not an image of the input.
    """
    opened = session(model, provider)
    if [len(one.shape) for one in inputs_of(opened)] != [4]:
        found = "; ".join(map(str, inputs_of(opened))) or "nothing"
        raise InputError(f"The model takes {found}; one image batch (N, C, H, W) was expected.")
    provenance = read_provenance(opened.get_modelmeta().custom_metadata_map)
    minimum, multiple, peak = (
        (provenance.minimum, provenance.multiple, provenance.data_range) if provenance else (1, 1, 1.0)
    )
    height, width = picture.shape[:2]
    x = np.ascontiguousarray(picture.transpose(2, 0, 1)[None], dtype=np.float32) * np.float32(peak)
    x = pad_to(x, minimum, multiple)
    y = run_model(opened, x)
    scale = y.shape[2] // x.shape[2] if y.ndim == 4 else 0
    if scale < 1 or y.shape not in [(1, c, scale * x.shape[2], scale * x.shape[3]) for c in (1, 3)]:
        raise InputError(
            f"The model's output has shape {y.shape} for an input of {x.shape}; a grey or RGB image was expected."
        )
    y = np.broadcast_to(y, (1, 3, *y.shape[2:]))
    return y[0, :, : height * scale, : width * scale].transpose(1, 2, 0).astype(np.float32) / np.float32(peak)
