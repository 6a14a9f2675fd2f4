"""The committed photographs and teachers: what the later measurements stand on."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import asvp_export
from asvp_export.images import SPLITS, list_images, photographs, read_image
from tests.helpers.teachers import EXAMPLES, TASKS, example, weights

RESULTS = json.loads((EXAMPLES / "teachers" / "results.json").read_text())
CROPS = [path for split in SPLITS for path in list_images(photographs(split))]


def scene(path) -> str:
    return re.sub(r"_\d+$", "", path.stem)


def test_photographs_are_many_small_and_of_one_size():
    assert len(CROPS) >= 40
    assert sum(path.stat().st_size for path in CROPS) < 5_000_000
    assert {Image.open(path).size for path in CROPS} == {(256, 256)}


def test_photographs_are_split_by_scene():
    split_of = {}
    for path in CROPS:
        assert split_of.setdefault(scene(path), path.parent.name) == path.parent.name
    assert len(split_of) >= 15
    assert set(split_of.values()) == set(SPLITS)


def test_every_photograph_has_its_source_and_licence():
    table = (photographs("verify").parent / "README.md").read_text()
    for path in CROPS:
        (row,) = [line for line in table.splitlines() if f"`{path.parent.name}/{path.name}`" in line]
        assert re.search(r"CC0|CC BY|public domain", row, re.IGNORECASE), row


@pytest.mark.parametrize("task", TASKS)
def test_a_teacher_beats_its_degraded_input_on_unseen_scenes(task):
    mean = RESULTS[task]["mean"]
    assert mean["output_psnr"] - mean["input_psnr"] >= (0.7 if task == "sr_x2" else 2.0)
    assert {name.partition("/")[0] for name in RESULTS[task]["images"]} == {"verify", "audit"}
    assert weights(task).stat().st_size < 1_500_000
    assert 50_000 <= sum(p.numel() for p in example(task).module.parameters()) <= 300_000


@pytest.mark.parametrize("task", TASKS)
def test_the_recorded_scores_are_those_of_the_committed_weights(task, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from degrade import degrade, generator

    clean = read_image(photographs("verify") / "dogs_1.webp")
    degraded = degrade(task, clean, generator(task, "dogs_1"))
    output = example(task).module(torch.from_numpy(degraded.transpose(2, 0, 1)[None]).float())[0].numpy()
    found = -10 * np.log10(np.mean((np.rint(np.clip(output, 0, 1) * 255) / 255 - clean.transpose(2, 0, 1)) ** 2))
    assert found == pytest.approx(RESULTS[task]["images"]["verify/dogs_1"]["output_psnr"], abs=0.02)


def test_the_super_resolver_doubles_and_the_others_keep_the_size():
    assert {task: (example(task).scale, example(task).size) for task in TASKS} == {
        "sr_x2": (2, asvp_export.SizeRule(1, 1)),
        **{task: (1, asvp_export.SizeRule(2, 2)) for task in TASKS if task != "sr_x2"},
    }
