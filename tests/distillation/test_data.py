"""Pictures of an audit: parts that share no scene, patches, sizes, and those that do not fit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from asvp_export.distillation import data
from asvp_export.errors import InputError
from asvp_export.images import list_images
from tests.helpers.audits import TASK, audited
from tests.helpers.teachers import example


def test_no_scene_is_in_two_parts_and_pairs_are_read_as_they_are(clean, tmp_path):
    ours = data.project_pictures(TASK)
    names = [{pair.name.rpartition("_")[0] for pair in part} for part in (ours.train, ours.select, ours.test)]
    assert all(names) and not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])
    found = data.from_folder(clean, TASK)
    parts = [{pair.name for pair in part} for part in (found.train, found.select, found.test)]
    assert sum(map(len, parts)) == 8 and len(set.union(*parts)) == 8
    for part, some in (("train", list_images(clean)[:6]), ("test", list_images(clean)[6:])):
        for kind in ("input", "truth"):
            (tmp_path / part / kind).mkdir(parents=True)
            for path in some:
                shutil.copy(path, tmp_path / part / kind)
    pairs = data.from_folder(tmp_path, None)
    assert np.array_equal(pairs.test[0].degraded, pairs.test[0].clean) and len(pairs.test) == 2
    (tmp_path / "test" / "truth" / f"{pairs.test[0].name}.png").unlink()
    with pytest.raises(InputError, match="needs a clean picture of the same name"):
        data.from_folder(tmp_path, None)


def test_patches_are_aligned_with_their_clean_pictures():
    teacher = example("sr_x2")
    patches = data.cut_patches(teacher, data.project_pictures("sr_x2").train[:2], 4, 0)
    assert patches.inputs.shape == (4, 3, 32, 32) and patches.clean.shape == (4, 3, 64, 64)
    small = torch.nn.functional.interpolate(patches.clean, scale_factor=0.5, mode="bicubic", antialias=True)
    inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))  # the patch has another border than the picture
    assert float((small[inner] - patches.inputs[inner]).abs().max()) < 2 / 255


def test_clean_pictures_of_odd_sizes_and_scales_that_are_no_whole_numbers_fit(clean, tmp_path):
    for path in list_images(clean):
        with Image.open(path) as picture:
            picture.crop((0, 0, 79, 71)).save(tmp_path / path.name)
    found = data.from_folder(tmp_path, "sr_x2")
    teacher = example("sr_x2")
    assert data.cut_patches(teacher, found.train, 2, 0).clean.shape[2:] == (64, 64)
    pair = data.centre_crop(teacher, found.test[0])
    assert pair.degraded.shape == (35, 39, 3) and pair.clean.shape == (70, 78, 3)
    wide = replace(teacher, scale=Fraction(7, 4))
    pair = data.centre_crop(wide, data.Pair("a", np.zeros((160, 152, 3)), np.zeros((280, 266, 3))))
    assert pair.degraded.shape == (144, 144, 3) and pair.clean.shape == (252, 252, 3)
    assert data.accepted_size(wide, 37) == (40, 40)


def test_of_many_and_large_pictures_some_and_their_middle_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_MOST_PICTURES", 5)
    monkeypatch.setattr(data, "_USED_SIDE", 40)
    rng = np.random.default_rng(0)
    for part in ("input", "truth"):
        (tmp_path / part).mkdir()
    for i in range(10):
        small = rng.integers(0, 256, (30, 35, 3), dtype=np.uint8)
        Image.fromarray(small).save(tmp_path / "input" / f"{i}.png")
        Image.fromarray(small.repeat(2, 0).repeat(2, 1)).save(tmp_path / "truth" / f"{i}.png")
    pairs = data._read_pairs(tmp_path, None)
    assert [pair.name for pair in pairs] == ["0", "2", "4", "6", "8"]
    assert all(np.array_equal(p.degraded.repeat(2, 0).repeat(2, 1), p.clean) for p in pairs)
    assert {pair.clean.shape for pair in pairs} == {(40, 40, 3)}
    (twin,) = data._degraded("derain", [tmp_path / "truth" / "0.png"])
    assert twin.clean.shape == (40, 40, 3)


def test_pictures_that_do_not_fit_are_refused(protected, clean, tmp_path):
    with pytest.raises(InputError, match="give --task to say"):
        data.from_folder(clean, None)
    with pytest.raises(InputError, match="are known"):
        data.from_folder(clean, "fog")
    with pytest.raises(InputError, match="Give pairs, or a task, that fit the model"):
        audited(protected, clean, tmp_path, task="sr_x2")
    few = tmp_path / "few"
    few.mkdir()
    for path in list_images(clean)[:4]:
        shutil.copy(path, few)
    with pytest.raises(InputError, match="at least 4 and 1"):
        data.from_folder(few, TASK)
    shutil.copytree(clean, tmp_path / "both" / "train")
    (tmp_path / "both" / "test").mkdir()
    shutil.copy(list_images(clean)[2], tmp_path / "both" / "test" / "again.png")
    with pytest.raises(InputError, match=f"picture {list_images(clean)[2].stem} and the test picture again of"):
        data.from_folder(tmp_path / "both", TASK)
