"""A protected teacher, its victim and its files, and small clean photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from asvp_export.distillation import data
from asvp_export.distillation.victim import Victim
from asvp_export.images import list_images, photographs, read_image
from asvp_export.insertion.protected import insert
from asvp_export.operator import Perturbation
from tests.helpers.audits import GAIN, LAYER, TASK, exported
from tests.helpers.teachers import example


@pytest.fixture(scope="session")
def clean(tmp_path_factory) -> Path:
    """Small clean photographs: the middle of some."""
    folder = tmp_path_factory.mktemp("clean")
    for source in list_images(photographs("train"))[:8]:
        pixels = np.rint(read_image(source)[64:136, 64:144] * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{source.stem}.png")
    return folder


@pytest.fixture(scope="session")
def protected():
    return insert(example(TASK), {LAYER: Perturbation(1, GAIN)})


@pytest.fixture(scope="session")
def victim(protected):
    return Victim(protected)


@pytest.fixture(scope="session")
def patches(protected, clean):
    return data.cut_patches(protected.teacher, data.from_folder(clean, TASK).train, 10, 0)


@pytest.fixture(scope="session")
def file(protected, tmp_path_factory) -> Path:
    return exported(protected, tmp_path_factory.mktemp("file") / "protected.onnx")


@pytest.fixture(scope="session")
def bare(protected, tmp_path_factory) -> Path:
    return exported(insert(protected.teacher, {}), tmp_path_factory.mktemp("file") / "bare.onnx")
