"""Small valid files that fuzzing starts from, made by our own code."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from PIL import Image
from safetensors.torch import save as save_tensors

import asvp_export
from asvp_export.insertion.plan import Plan
from asvp_export.onnx_graph.metadata import PREFIX
from tests.helpers.teachers import recurrent, save_pictures


def saved(content: object) -> bytes:
    """What torch.save writes."""
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def state_dicts() -> list[bytes]:
    """A plain one, one of a training, one in the older plain format, one of safetensors."""
    state = recurrent().state_dict()
    older = io.BytesIO()
    torch.save(state, older, _use_new_zipfile_serialization=False)
    training = {"params_ema": {f"module.{name}": x for name, x in state.items()}, "step": 3}
    return [saved(state), saved(training), older.getvalue(), save_tensors(dict(state))]


def _archive() -> bytes:
    stream = io.BytesIO()
    program = torch.export.export(recurrent().eval(), (torch.rand(1, 3, 32, 32),))
    torch.export.save(program, stream)
    return stream.getvalue()


def _script() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(recurrent().eval()), stream)
    return stream.getvalue()


def exported(folder: Path) -> Path:
    """A protected file with its plan, report and manifest."""
    pictures = save_pictures(folder / "pictures", count=1)
    protected = asvp_export.protect(asvp_export.load(recurrent()), "auto:1", images=pictures)
    result = asvp_export.export(protected, folder / "p.onnx", images=pictures)
    assert result.passed
    return folder / "p.onnx"


def shipped() -> dict[str, bytes]:
    """By suffix: the ONNX file of `exported`, its plan, report and manifest; and its metadata as one JSON object."""
    with TemporaryDirectory() as name:
        path = exported(Path(name))
        files = {kind: path.with_suffix(f".{kind}.json").read_bytes() for kind in ("plan", "report", "manifest")}
        model = onnx.load(path)
    properties = {one.key: one.value for one in model.metadata_props if one.key.startswith(PREFIX)}
    return files | {"onnx": model.SerializeToString(), "metadata": json.dumps(properties).encode()}


def plan_with_weights() -> tuple[bytes, bytes]:
    """A plan that names weights, and these."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        weights = {"head.weight": torch.zeros(8, 3, 3, 3)}
        source = json.loads(shipped()["plan"])
        (folder / "a.plan.json").write_text(json.dumps(source))
        plan = Plan.load(folder / "a.plan.json")
        measured = {"verified_psnr": 50.0, "uncompensated_psnr": 40.0}
        Plan(**{**vars(plan), **measured, "weights": weights}).save(folder / "b.plan.json")
        return (folder / "b.plan.json").read_bytes(), (folder / "b.plan.safetensors").read_bytes()


def pictures(kinds: tuple[str, ...] = ("png", "jpeg", "webp", "tiff", "bmp")) -> list[bytes]:
    """One of each format, 8 bits; and 16 bits in PNG."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (9, 12), dtype=np.uint16))
    encoded = []
    for picture, kind in [*((image, kind) for kind in kinds), (deep, "png"), (image.convert("P"), "png")]:
        stream = io.BytesIO()
        picture.save(stream, kind)
        encoded.append(stream.getvalue())
    return encoded


def arrays() -> bytes:
    """What numpy.savez writes."""
    stream = io.BytesIO()
    np.savez(stream, image=np.zeros((1, 3, 8, 8), np.float32), level=np.float32(0.5))
    return stream.getvalue()


def members(archive: bytes, chosen: Callable[[str], bool]) -> list[bytes]:
    """What some members of a zip hold: fuzzing changes one of them, and its checksum is made to fit."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return [opened.read(name) for name in opened.namelist() if chosen(name)]


def with_member(archive: bytes, chosen: Callable[[str], bool], content: bytes) -> bytes:
    """The zip with other bytes in the first of these members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(stream, "w") as new:
        target = next(name for name in old.namelist() if chosen(name))
        for name in old.namelist():
            new.writestr(name, content if name == target else old.read(name))
    return stream.getvalue()


ARCHIVES = {"pt2": _archive, "torchscript": _script}
"""Kind to what makes one."""
