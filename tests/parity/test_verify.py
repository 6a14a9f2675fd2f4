"""How far apart two outputs are, and the verdict of a gate."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from asvp_export.errors import InputError
from asvp_export.parity.cases import Case
from asvp_export.parity.metrics import psnr, ssim
from asvp_export.parity.verify import GateResult, ImageScore, failure_text, score, worse
from tests.helpers.restorers import UNIT, photograph, sizes_of


def test_one_step_of_8_bits_is_48_db() -> None:
    x = photograph()
    assert psnr(x, x + np.float32(1 / 255), 1.0) == pytest.approx(48.1308, abs=1e-3)
    assert psnr(255 * x, 255 * x + 1, 255.0) == pytest.approx(48.1308, abs=1e-3)


def test_metrics_agree_with_scikit_image_and_batches_are_worst_and_mean() -> None:
    x = photograph(batch=2)
    noise = np.random.default_rng(0).normal(0, 1, x.shape) * np.array([0.01, 0.1]).reshape(2, 1, 1, 1)
    y = (x + noise).astype(np.float32)
    each = [peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in zip(x, y, strict=True)]
    assert psnr(x, y, 1.0) == pytest.approx(min(each), abs=1e-4)
    options = {"channel_axis": 0, "data_range": 1.0, "gaussian_weights": True, "use_sample_covariance": False}
    each = [structural_similarity(a, b, **options) for a, b in zip(x, y, strict=True)]
    assert ssim(x, y, 1.0) == pytest.approx(np.mean(each), abs=1e-4)


@pytest.mark.parametrize("side", [1, 2, 3, 7, 10, 11, 40])
def test_small_images_have_an_ssim(side: int) -> None:
    x = photograph(side, 40)
    assert ssim(x, x, 1.0) == pytest.approx(1.0, abs=1e-12)
    assert ssim(x, 1 - x, 1.0) < 0.95


def test_identical_is_200_db_and_not_finite_is_nan() -> None:
    x = photograph()
    assert (psnr(x, x, 1.0), ssim(x, x, 1.0)) == (200.0, 1.0)
    for bad in (np.nan, np.inf, -np.inf):
        y = x.copy()
        y[0, 1, 5, 7] = bad
        for a, b in ((x, y), (y, x), (y, y)):
            assert math.isnan(psnr(a, b, 1.0)) and math.isnan(ssim(a, b, 1.0))
    with pytest.raises(ValueError, match="one shape"):
        psnr(x, x[:, :, 1:], 1.0)


def judged(*psnrs: float, threshold: float = 48.0) -> GateResult:
    """A verdict over photographs with noise of these levels in dB; NaN for a broken output."""
    x = photograph()
    noise = np.random.default_rng(0).normal(0, 1, x.shape)
    noise /= np.sqrt(np.mean(noise**2))
    pairs = [(Case(f"{i}.png", x, 96, 128), [x], [x + 10 ** (-level / 20) * noise]) for i, level in enumerate(psnrs)]
    return score(pairs, threshold, UNIT)


def test_the_worst_image_decides() -> None:
    passing, failing = judged(60, 50), judged(60, 47)
    assert passing.passed and not failing.passed
    assert failing.min_psnr == pytest.approx(47) and failing.mean_psnr == pytest.approx(53.5)
    assert failing.min_ssim == min(one.ssim for one in failing.per_image)
    assert sizes_of(failing.per_image) == [("0.png", "96x128", 1), ("1.png", "96x128", 1)]


def test_a_nan_output_fails_and_is_null_in_json() -> None:
    result = judged(60, math.nan)
    assert not result.passed
    shown = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert list(shown) == ["min_psnr", "mean_psnr", "min_ssim", "threshold", "passed", "per_image"]
    assert (shown["min_psnr"], shown["mean_psnr"], shown["min_ssim"]) == (None, None, None)
    assert list(shown["per_image"][1]) == ["name", "size", "batch", "way", "output", "psnr", "ssim"]
    assert shown["per_image"][1]["psnr"] is None and shown["per_image"][0]["psnr"] == pytest.approx(60, abs=0.02)


def test_nothing_passes_a_threshold_of_nan_and_nothing_compared_is_an_error() -> None:
    assert not judged(200, threshold=math.nan).passed
    with pytest.raises(InputError, match="nothing to compare"):
        score([], 48, UNIT)


@given(st.floats(0, 200))
def test_a_rounded_number_never_overstates(value: float) -> None:
    one = ImageScore("a.png", "1x1", 1, value, value / 200)
    shown = json.loads(json.dumps(one.as_dict()))
    assert value - 0.0101 < shown["psnr"] <= value and value / 200 - 0.0000101 < shown["ssim"] <= value / 200


def test_the_peak_is_the_larger_of_data_range_and_output_range() -> None:
    x = photograph()
    wide = 4 * x - 1  # a range of 4
    case = Case("a.png", x, 96, 128)
    (found,) = score([(case, [wide], [wide + 0.01])], 48, UNIT).per_image
    assert found.psnr == pytest.approx(20 * math.log10(np.ptp(wide) / 0.01), abs=0.01)
    (found,) = score([(case, [0.1 * x], [0.1 * x + 0.01])], 48, UNIT).per_image
    assert found.psnr == pytest.approx(40, abs=0.01)


def test_what_the_padding_became_does_not_count() -> None:
    x = np.zeros((1, 3, 16, 24), dtype=np.float32)
    expected = np.zeros((1, 3, 32, 48), dtype=np.float32)
    got = expected.copy()
    got[:, :, 26:, :] = got[:, :, :, 38:] = 1
    assert score([(Case("a.png", x, 13, 19), [expected], [got])], 48, UNIT).min_psnr == 200
    assert score([(Case("a.png", x, 13, 20), [expected], [got])], 48, UNIT).min_psnr < 48


def test_outputs_of_other_shapes_are_refused() -> None:
    x = photograph()
    case = Case("a.png", x, 96, 128)
    with pytest.raises(InputError, match="gives 2 floating outputs, the original 1"):
        score([(case, [x], [x, x])], 48, UNIT)
    with pytest.raises(InputError, match=r"tested model gives 1x1x96x128 for a\.png, the original 1x3x96x128"):
        score([(case, [x], [x[:, :1]])], 48, UNIT)


def test_a_failure_shows_the_images_and_the_distribution() -> None:
    text = failure_text("preservation", judged(60, 30, math.nan, 40))
    lines = text.splitlines()
    assert lines[0] == "preservation: 3 of 4 comparisons do not reach 48 dB, the worst is at NaN."
    assert [line.split()[-6] for line in lines[1:4]] == ["2.png", "1.png", "3.png"]
    assert "not finite  25.00% ##########" in text and "1e-2 to 1e-1" in text
    assert "and 1 more" in failure_text("preservation", judged(30, 31, 32), most=2)
    assert failure_text("fidelity", judged(90, threshold=80)) == "fidelity: all 1 comparisons reach 80 dB."


def test_the_worse_of_two_ways_counts() -> None:
    good, bad = judged(60, 90), judged(70, 30)
    both = worse({"function": good, "library": bad})
    assert not both.passed and both.min_psnr == bad.min_psnr and both.min_ssim == min(good.min_ssim, bad.min_ssim)
    assert [one.execution_path for one in both.per_image] == ["function", "function", "library", "library"]
    assert [one.psnr for one in both.per_image] == [one.psnr for one in (*good.per_image, *bad.per_image)]
    assert sum(both.decades) == sum(good.decades) + sum(bad.decades)
    assert worse({"function": bad, "library": good}).min_psnr == bad.min_psnr
    assert math.isnan(worse({"function": good, "library": judged(60, math.nan)}).min_psnr)
    assert worse({"function": good}).passed
