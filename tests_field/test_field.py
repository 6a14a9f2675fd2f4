"""Every kind of file goes the whole road: layers, export by default, check, inspect, run on five pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import asvp_export
from asvp_export.signature import ValueRange
from tests_field.files import FILES, FieldFile


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One command in a process of its own, as a user starts it: a crash of native code is seen as one."""
    return subprocess.run(
        [sys.executable, "-m", "asvp_export", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_whole_road(file: FieldFile, tmp_path: Path, shown: dict[str, Path], note) -> None:
    path, shipped = tmp_path / file.name, tmp_path / "shipped.onnx"
    file.write(path)
    outcomes: dict[str, str] = {}
    row: dict[str, object] = {"file": file.name, "kind": file.kind, "assumed": [], "outcomes": outcomes}
    steps = {
        "layers": ("layers", str(path), *file.options, "--json"),
        "export": (str(path), *file.options, "--layers", "auto:1", "-o", str(shipped)),
        "check": ("check", str(path), str(shipped), *file.options),
        "inspect": ("inspect", str(shipped), "--json"),
        **{f"run, {name}": ("run", str(shipped), str(picture), "-o", f"{name}.png") for name, picture in shown.items()},
    }
    wrong = []
    for step, arguments in steps.items():
        found = command(tmp_path, *arguments)
        outcomes[step] = (
            "passed" if found.returncode == 0 else f"exit {found.returncode}: {found.stderr.splitlines()[-1:]}"
        )
        if step == "layers" and found.returncode == 0:  # stdout is one JSON object, whatever foreign code prints
            row["assumed"] = [one for one in json.loads(found.stdout)["teacher"]["assumptions"] if not one["certain"]]
        if found.returncode:
            wrong.append(f"{step}: {found.stderr[-800:]}")
    note(file.name, row)
    assert not wrong, "\n".join(wrong)
    for name, picture in shown.items():
        with Image.open(picture) as before, Image.open(tmp_path / f"{name}.png") as after:
            assert after.size == before.size
            assert ("A" in after.mode) == ("A" in before.mode)


@pytest.mark.parametrize(
    "file", [one for one in FILES if one.name.endswith((".pth", ".ckpt"))], ids=lambda one: one.name
)
def test_the_picture_is_the_modules_own(file: FieldFile, tmp_path: Path, shown: dict[str, Path]) -> None:
    """What `run` writes is what the user's module gives for the picture, by the reading that was assumed."""
    path = tmp_path / file.name
    file.write(path)
    teacher = asvp_export.load(path, arch=file.options[1])
    exported = command(tmp_path, str(path), *file.options, "--layers", "none", "-o", "plain.onnx")
    assert exported.returncode == 0, exported.stderr
    restored = command(tmp_path, "run", "plain.onnx", str(shown["even"]), "-o", "out.png")
    assert restored.returncode == 0, restored.stderr
    with Image.open(shown["even"]) as picture, Image.open(tmp_path / "out.png") as written:
        pixels, got = np.asarray(picture, np.float32) / 255, np.asarray(written, np.float32)
    values: ValueRange = teacher.data_range
    x = torch.from_numpy(values.of(pixels).transpose(2, 0, 1)[None].copy())
    with torch.no_grad():
        result = teacher.module(x)
    main = result if isinstance(result, torch.Tensor) else list(result)[teacher.signature.main]
    expected = values.to_unit(main[0].numpy().transpose(1, 2, 0)).clip(0, 1) * 255
    assert np.abs(got - expected).max() <= 0.51  # rounding to 8 bits, and float32's order of sums
