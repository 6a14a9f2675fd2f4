"""Running tile by tile: nothing is lost, seams are measured, and the difference from a whole run is judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asvp_export
from asvp_export.runtime.tiles import Tiling, run_tiled, seam_energy
from asvp_export.signature import SizeRule
from tests.helpers.teachers import example, save_pictures


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    tile=st.integers(8, 40),
    overlap=st.integers(0, 20),
    scale=st.sampled_from([1, 2, 3]),
)
def test_what_works_on_each_pixel_is_the_same_tile_by_tile(height, width, tile, overlap, scale):
    tiling = Tiling(tile, min(overlap, tile // 2))
    x = np.random.default_rng(0).random((1, 3, height, width)).astype(np.float32)
    seen = []

    def run(part):
        seen.append(part.shape)
        return np.sqrt(part.repeat(scale, axis=2).repeat(scale, axis=3))

    tiled = run_tiled(run, x, tiling)
    assert tiled.dtype == np.float32
    np.testing.assert_allclose(tiled, np.sqrt(x.repeat(scale, axis=2).repeat(scale, axis=3)), rtol=1e-6)
    assert {shape[2] for shape in seen} == {min(tile, height)} and {shape[3] for shape in seen} == {min(tile, width)}


def test_tiles_are_of_a_size_that_the_model_takes():
    assert Tiling(50, 10).fitting(SizeRule(16, 16)) == Tiling(64, 10)
    assert Tiling(64, 16).starts(150) == [0, 48, 86]


def test_an_offset_of_each_tile_shows_as_seams():
    x = np.random.default_rng(0).random((1, 1, 96, 96))
    tiling, count = Tiling(32, 0), iter(range(100))
    steps = run_tiled(lambda part: part + 0.1 * (next(count) % 2), x, tiling)
    assert seam_energy(x, steps, tiling) > 20
    noise = x + 0.01 * np.random.default_rng(1).normal(size=x.shape)
    assert seam_energy(x, noise, tiling) == pytest.approx(1, abs=0.3)
    assert np.isnan(seam_energy(x, x, tiling))


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (64, 33), (64, -1)])
def test_tilings_that_are_none_are_refused(size, overlap):
    with pytest.raises(asvp_export.InputError, match="overlap can be 0 to half the tile"):
        Tiling(size, overlap)


def test_a_lost_border_cannot_be_put_together():
    with pytest.raises(asvp_export.InputError, match="with no border cut off"):
        run_tiled(lambda x: x[:, :, 2:-2, 3:-3], np.zeros((1, 3, 64, 64), np.float32), Tiling(32, 8))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> tuple[asvp_export.Teacher, Path, Path]:
    """The low-light teacher, its protected file, and a folder of pictures."""
    folder = tmp_path_factory.mktemp("shipped")
    pictures = save_pictures(folder / "pictures", height=150, width=190)
    teacher = example("lowlight")
    protected = asvp_export.protect(teacher, "after_body", gain=1.01, residual="gain")
    asvp_export.export(protected, folder / "p.onnx", images=pictures)
    return teacher, folder / "p.onnx", pictures


def test_check_judges_the_tiled_run_too(shipped):
    teacher, path, pictures = shipped
    result = asvp_export.check(teacher, path, images=pictures, tile=96, overlap=32)
    assert result.tiled is not None and list(result.gates) == ["fidelity", "preservation", "tiled"]
    assert result.tiled.min_psnr < result.preservation.min_psnr  # the SVD of a tile is not that of the whole
    assert result.as_dict()["tiled"]["per_image"] and any("seam energy" in note for note in result.notes)
    strict = asvp_export.check(
        teacher, path, images=pictures, tile=96, overlap=32, min_psnr=result.tiled.min_psnr + 0.01
    )
    assert not strict.passed and not strict.tiled.passed
    with pytest.raises(asvp_export.InputError, match="No picture is larger than a tile of 512"):
        asvp_export.check(teacher, path, images=pictures, tile=512)


def test_restore_tile_by_tile_is_near_the_whole_run(shipped):
    _, path, pictures = shipped
    picture = asvp_export.images.read_image(min(pictures.iterdir()))
    whole = asvp_export.run(path, picture).pixels
    tiled = asvp_export.run(path, picture, tile=96, overlap=32).pixels
    assert whole.shape == tiled.shape == picture.shape
    difference = np.sqrt(np.mean((whole - tiled) ** 2))
    assert 0 < difference < 0.01
