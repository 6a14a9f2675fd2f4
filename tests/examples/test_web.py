"""examples/web in a real Chromium: a protected file gives there what PyTorch gives, and the page helps who errs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import asvp_export
from asvp_export.images import photographs, read_image
from asvp_export.insertion.protected import Protected, insert
from asvp_export.operator import Perturbation, native
from asvp_export.parity.result import FIDELITY_DB
from tests.helpers.scripts import script
from tests.helpers.teachers import EXAMPLES, example, save_pictures
from tests.helpers.web import FLAGS, SOFTWARE_GPU, drive, missing, picture, serving

pytestmark = pytest.mark.web
HEIGHT, WIDTH = 61, 83  # odd: the teacher takes multiples of 2, and the page has to pad


@pytest.fixture(scope="module", autouse=True)
def there() -> None:
    if reason := missing():
        (pytest.fail if os.environ.get("ASVP_WEB") else pytest.skip)(reason)  # `make test-web` asked for it


RANKS = {
    "one": {"after_body": Perturbation(1, 1.003)},
    "mixed": {"body.3": Perturbation(4, 1.1), "after_body": Perturbation(1, 1.1)},
}


@pytest.fixture(scope="module")
def protected() -> dict[str, Protected]:
    teacher = example("lowlight")
    return {name: insert(teacher, nodes) for name, nodes in RANKS.items()}


@pytest.fixture(scope="module")
def files(protected, tmp_path_factory) -> Path:
    """Two shipped files, a degraded photograph, and what is neither."""
    folder = tmp_path_factory.mktemp("web")
    pictures = save_pictures(folder / "pictures", count=1)
    for name, one in protected.items():
        assert asvp_export.export(one, folder / f"{name}.onnx", images=pictures, min_psnr=10).passed
    degrade = script(EXAMPLES / "degrade.py")
    clean = read_image(photographs("verify") / "dogs_1.webp")[60 : 60 + HEIGHT, 80 : 80 + WIDTH]
    dark = degrade.degrade("lowlight", clean, degrade.generator("lowlight", "dogs_1"))
    Image.fromarray(np.rint(255 * dark).astype(np.uint8)).save(folder / "dark.png")
    (folder / "broken.onnx").write_text("not a model")
    return folder


def visit(files: Path, folder: Path, ranks: str, backend: str) -> dict:
    broken = {"picture": "broken.png", "model": str(files / "broken.onnx")}
    with serving({"/model.onnx": files / f"{ranks}.onnx"}) as url:
        seen = drive(
            "drive.mjs",
            url=f"{url}?backend={backend}",
            flags=[*FLAGS, *(SOFTWARE_GPU if backend == "webgpu" else [])],
            picture=str(files / "dark.png"),
            broken=broken,
            folder=str(folder),
        )
    assert all(address.startswith((url, "blob:")) for address in seen["asked"]), "something came from elsewhere"
    return seen


# From rank 2 on the body is in float64, which WebGPU does not have: the page falls back to WebAssembly.
@pytest.mark.parametrize(
    "ranks, backend, ran", [("one", "wasm", "wasm"), ("one", "webgpu", "webgpu"), ("mixed", "webgpu", "wasm")]
)
def test_the_page_restores_a_photograph_as_pytorch_does(ranks, backend, ran, files, protected, tmp_path):
    seen = visit(files, tmp_path, ranks, backend)
    if backend == "webgpu" and not seen["adapter"]:  # a Chromium built without SwiftShader on a machine without a GPU
        pytest.skip(f"Chromium {seen['version']} has no WebGPU adapter here.")
    assert not seen["error"]
    assert not seen["problems"] or ran != backend  # onnxruntime-web prints why it could not take WebGPU
    assert seen["output"]["backend"] == ran and seen["output"]["milliseconds"] > 0
    dark = read_image(files / "dark.png").transpose(2, 0, 1)[None]
    padded = np.pad(dark, ((0, 0), (0, 0), (0, 1), (0, 1)), mode="reflect")
    with native.reference_only():
        expected = protected[ranks](torch.from_numpy(padded)).numpy()[:, :, :HEIGHT, :WIDTH]
    got = picture(seen["output"])
    assert got.shape == expected.shape
    assert 10 * np.log10(1 / np.mean((got.astype(np.float64) - expected) ** 2)) >= FIDELITY_DB["fp32"]
    saved = 255 * read_image(tmp_path / "restored.png").transpose(2, 0, 1)[None]
    np.testing.assert_array_equal(saved.round(), np.rint(255 * got.clip(0, 1).astype(np.float64)))
    assert f"{WIDTH} x {HEIGHT}" in seen["status"] and " s." in seen["status"]
    assert f"{len(RANKS[ranks])} protected layer" in seen["facts"] and seen["isolated"]
    assert seen["line"] == "47%", "three presses of a key moved the line from the middle"
    assert seen["overflow"] <= 0, "the page is wider than a phone"
    assert seen["brokenPicture"].startswith("broken.png is not a picture") and "PNG" in seen["brokenPicture"]
    assert (
        seen["brokenModel"].startswith("The model broken.onnx does not load") and "asvp-export" in seen["brokenModel"]
    )
