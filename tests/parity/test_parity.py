"""Comparing models: which inputs, how far apart, in which runtime, and the verdict."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from asvp_export.environment import conflicting_onnxruntime
from asvp_export.errors import InputError, MachineError
from asvp_export.images import list_images, photographs, read_image
from asvp_export.parity.cases import Case, build_cases, fits
from asvp_export.parity.latency import latency
from asvp_export.parity.metrics import psnr, ssim
from asvp_export.parity.verify import GateResult, ImageScore, failure_text, score, worse
from asvp_export.runtime.session import inputs_of, run_model, session
from asvp_export.signature import Signature, SizeRule, ValueRange

UNIT, WIDE = ValueRange(), ValueRange(0, 255)
FREE = {"size": SizeRule(), "data_range": UNIT, "signature": Signature()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three real photographs: 400 x 600, 300 x 451, 512 x 512."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("coffee", "chelsea", "astronaut"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in ("coffee", "chelsea", "astronaut")]


def saved(folder: Path, name: str, height: int, width: int) -> Path:
    """A piece of a real photograph, of this size."""
    Image.fromarray(data.astronaut()).resize((width, height)).save(folder / name)
    return folder / name


def model(
    *nodes: onnx.NodeProto,
    shape: Sequence[str | int | None] = ("batch", 3, "height", "width"),
    kind: int = TensorProto.FLOAT,
    inputs: Sequence[str] = ("image",),
    domain: str = "",
) -> bytes:
    """A small ONNX model from `image` to `restored`."""
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("Sqrt", ["image"], ["restored"])],
        "restorer",
        [helper.make_tensor_value_info(name, kind, shape) for name in inputs],
        [helper.make_tensor_value_info("restored", kind, None)],
    )
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def sizes_of(cases: Sequence[Case | ImageScore]) -> list[tuple[str, str, int]]:
    return [(case.name, case.size, case.batch) for case in cases]


def test_every_image_comes_whole_and_odd_and_one_input_is_a_batch(pictures: list[Path]) -> None:
    assert sizes_of(build_cases(pictures, **FREE)) == [
        ("coffee.png", "400x600", 1),
        ("coffee.png", "201x451", 1),
        ("chelsea.png", "300x451", 1),
        ("chelsea.png", "151x339", 1),
        ("astronaut.png", "512x512", 1),
        ("astronaut.png", "385x257", 1),
        ("coffee.png + chelsea.png", "300x451", 2),
    ]


def test_one_image_is_batched_with_its_mirror_image(pictures: list[Path]) -> None:
    batch = build_cases(pictures[:1], **FREE)[-1]
    assert (batch.name, batch.batch) == ("coffee.png + coffee.png mirrored", 2)
    np.testing.assert_array_equal(batch.input[0], batch.input[1][:, :, ::-1])


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(3, 40),
    width=st.integers(3, 40),
    minimum=st.integers(1, 40),
    multiple=st.integers(1, 9),
    data_range=st.sampled_from([UNIT, WIDE, ValueRange(-1, 1)]),
)
def test_the_contract_holds_for_every_size(
    tmp_path_factory: pytest.TempPathFactory,
    height: int,
    width: int,
    minimum: int,
    multiple: int,
    data_range: ValueRange,
) -> None:
    path = saved(tmp_path_factory.getbasetemp(), "any.png", height, width)
    minimum = min(minimum, height, width)
    cases = build_cases([path], size=SizeRule(minimum, multiple), data_range=data_range, signature=Signature())
    singles = [case for case in cases if case.batch == 1]
    assert len({(case.height, case.width) for case in singles}) >= 2
    assert any(case.height % 2 and case.width % 2 and case.height != case.width for case in singles)
    assert [case.batch for case in cases if case.batch != 1] == [2]
    picture = data_range.of(read_image(path))
    for case in cases:
        rows, columns = case.input.shape[2:]
        assert case.input.dtype == np.float32 and case.input.flags.c_contiguous
        assert rows % multiple == 0 == columns % multiple and min(rows, columns) >= minimum
        top, left = (height - case.height) // 2, (width - case.width) // 2
        expected = picture[top : top + case.height, left : left + case.width].transpose(2, 0, 1)
        np.testing.assert_array_equal(case.input[0, :, : case.height, : case.width], expected)


def test_large_photographs_are_compared_on_their_middle(tmp_path: Path) -> None:
    path = saved(tmp_path, "camera.jpg", 1100, 1500)
    assert [case.size for case in build_cases([path], **FREE)] == ["1024x1024", "769x513", "1024x1024"]
    assert build_cases([path], **FREE, sizes=[(1100, 1500)])[0].size == "1100x1500"


def test_sizes_that_were_asked_for_are_cut_and_the_odd_one_added(pictures: list[Path]) -> None:
    one = [case.size for case in build_cases(pictures[:1], **FREE, sizes=[(64, 64)])]
    assert one == ["64x64", "49x33", "64x64"]
    two = [case.size for case in build_cases(pictures[:1], **FREE, sizes=[(64, 64), (65, 97)])]
    assert two == ["64x64", "65x97", "64x64"]


def test_a_static_model_is_compared_on_its_size_and_batch_only(pictures: list[Path]) -> None:
    small = build_cases(pictures[:2], **FREE, fixed=(1, 3, 64, 96))
    assert sizes_of(small) == [("coffee.png", "64x96", 1), ("chelsea.png", "64x96", 1)]
    three = build_cases(pictures[:2], **FREE, fixed=(3, 3, 64, 96))
    assert sizes_of(three) == [("coffee.png + 2 more", "64x96", 3)]
    np.testing.assert_array_equal(three[0].input[2], small[0].input[0][:, :, ::-1])
    tall = build_cases(pictures[:1], **FREE, fixed=(None, 3, 64, None))
    assert [case.size for case in tall] == ["64x600", "64x451", "64x600"]


def test_images_and_sizes_that_do_not_do_are_refused_by_name(tmp_path: Path, pictures: list[Path]) -> None:
    tiny = saved(tmp_path, "tiny.png", 20, 30)
    images = [pictures[0], tiny]
    with pytest.raises(InputError, match=r"tiny\.png is 20x30 .* the model needs at least 24x24\. Use larger"):
        build_cases(images, **FREE | {"size": SizeRule(24)})
    with pytest.raises(InputError, match=r"tiny\.png is 20x30 .* size asked for needs at least 21x16.* smaller size"):
        build_cases(images, **FREE, sizes=[(16, 16), (21, 16)])
    with pytest.raises(InputError, match=r"tiny\.png is 20x30 .* the model needs at least 64x96"):
        build_cases(images, **FREE, fixed=(1, 3, 64, 96))
    with pytest.raises(InputError, match="size 8x8 was asked for; at least 16x16"):
        build_cases(images, **FREE | {"size": SizeRule(16)}, sizes=[(8, 8)])
    with pytest.raises(InputError, match="size 8x8 was asked for; this model takes 16xany only"):
        build_cases(images, **FREE, sizes=[(8, 8)], fixed=(1, 3, 16, None))
    with pytest.raises(InputError, match="frozen at 100; it has to be a multiple of 8"):
        build_cases(images, **FREE | {"size": SizeRule(8, 8)}, fixed=(1, 3, 64, 100))
    with pytest.raises(InputError, match=r"tiny2\.png is 2x2 .* at least 3x3"):
        build_cases([saved(tmp_path, "tiny2.png", 2, 2)], **FREE)
    with pytest.raises(InputError, match="no image"):
        build_cases([], **FREE)


def photograph(height: int = 96, width: int = 128, batch: int = 1) -> np.ndarray:
    """batch, 3, height, width float32 in 0..1."""
    pieces = [data.astronaut()[40 * i : 40 * i + height, 160 : 160 + width] for i in range(batch)]
    return np.stack(pieces).transpose(0, 3, 1, 2).astype(np.float32) / 255


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


def test_a_model_runs_from_a_file_and_from_bytes(tmp_path: Path) -> None:
    (tmp_path / "restorer.onnx").write_bytes(model())
    x = photograph()
    for source in (model(), tmp_path / "restorer.onnx", str(tmp_path / "restorer.onnx")):
        np.testing.assert_allclose(run_model(session(source, threads=1), x)[0], np.sqrt(x), rtol=1e-6)


def test_a_half_precision_model_is_fed_half_precision() -> None:
    opened = session(model(kind=TensorProto.FLOAT16))
    fits(opened, Case("photo.png", photograph(), 96, 128))
    assert run_model(opened, photograph())[0].dtype == np.float16


def test_what_onnxruntime_cannot_load_is_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = model()
    foreign = model(helper.make_node("Defend", ["image"], ["restored"], domain="asvp"), domain="asvp")
    for name, content in (
        ("empty", b""),
        ("half", whole[:50]),
        ("text", b"hello world"),
        ("foreign", foreign),
    ):
        (tmp_path / f"{name}.onnx").write_bytes(content)
    (tmp_path / "folder.onnx").mkdir()
    for name, reason in (
        ("missing", "does not exist"),
        ("folder", "is not a file"),
        ("empty", "is empty"),
        ("half", "does not load"),
        ("text", "does not load"),
        ("foreign", r"asvp:Defend\(-1\) is not a registered function/op"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            session(tmp_path / f"{name}.onnx")
        message = str(caught.value)
        assert f"{name}.onnx" in message and "\n" not in message and "ONNXRuntimeError" not in message
    with pytest.raises(InputError, match="no bytes"):
        session(b"")
    assert capfd.readouterr() == ("", "")


def test_cuda_is_used_or_refused_but_never_replaced(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        opened = session(model(), "cuda")
    except InputError as error:
        assert "'cuda' was asked for" in str(error)
    else:
        assert "CUDAExecutionProvider" in opened.get_providers()
        np.testing.assert_allclose(run_model(opened, photograph())[0], np.sqrt(photograph()), rtol=1e-5)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(InputError, match="'tpu' was asked for; this onnxruntime has cpu"):
        session(model(), "tpu")


def test_inputs_are_described() -> None:
    (found,) = inputs_of(session(model(shape=("batch", 3, 64, None))))
    assert (found.name, found.shape, found.type) == ("image", ("batch", 3, 64, None), "tensor(float)")
    assert str(found) == "image tensor(float) batchx3x64x?"


def test_a_model_that_does_not_take_the_images_is_refused() -> None:
    case = Case("photo.png", photograph(), 96, 128)
    fits(session(model()), case)
    fits(session(model(shape=(1, 3, 96, 128))), case)
    two = model(helper.make_node("Add", ["image", "mask"], ["restored"]), inputs=("image", "mask"))
    cast = helper.make_node("Identity", ["image"], ["restored"])
    for bad, found in (
        (two, "mask tensor.*1 inputs were given"),
        (model(shape=("batch", 1, "height", "width")), "batchx1xheightxwidth; .* photo.png is 1x3x96x128"),
        (model(shape=("batch", 3, 64, 64)), "batchx3x64x64; .* exported for this size"),
        (model(shape=(3, "height", "width")), "3xheightxwidth"),
        (model(cast, kind=TensorProto.UINT8), r"tensor\(uint8\)"),
    ):
        with pytest.raises(InputError, match=found):
            fits(session(bad), case)


def test_a_run_that_fails_says_why_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    weight = helper.make_node("Constant", [], ["w"], value_floats=[0.0] * 7)
    opened = session(model(weight, helper.make_node("Add", ["image", "w"], ["restored"])))
    with pytest.raises(InputError, match=r"does not run the model on an input of 1x3x96x128 \(") as caught:
        run_model(opened, photograph())
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_running_out_of_memory_is_the_machines_fault(capfd: pytest.CaptureFixture[str]) -> None:
    nodes = (
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Constant", [], ["huge"], value_ints=[2000, 1, 2000, 2000]),
        helper.make_node("Mul", ["shape", "huge"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["restored"]),
    )
    with pytest.raises(MachineError, match="out of memory"):
        run_model(session(model(*nodes)), photograph())
    assert capfd.readouterr() == ("", "")


def test_two_onnxruntime_packages_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        folder = tmp_path / f"{name}-1.2.3.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2.3\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = conflicting_onnxruntime()
    assert found is not None and "(onnxruntime 1.2.3, onnxruntime-gpu 1.2.3)" in found


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


def test_latency_gives_a_time_for_each_model() -> None:
    first, second = latency(session(model()), session(model()), [photograph()], repeats=3)
    assert first > 0 and second > 0


def test_a_restorer_is_judged_against_its_slightly_different_copy() -> None:
    """The road that check takes: images, cases, two sessions, a verdict."""
    upscale = helper.make_node("Resize", ["sharp", "", "scales"], ["restored"], mode="linear")
    scales = helper.make_node("Constant", [], ["scales"], value_floats=[1.0, 1.0, 2.0, 2.0])

    def restorer(strength: float) -> bytes:
        factor = helper.make_node("Constant", [], ["factor"], value_float=strength)
        return model(scales, factor, helper.make_node("Mul", ["image", "factor"], ["sharp"]), upscale)

    cases = build_cases(list_images(photographs("verify")), **FREE | {"size": SizeRule(16, 8)}, sizes=[(64, 96)])
    original, same, other = session(restorer(1.0)), session(restorer(1.001)), session(restorer(1.1))
    for case, opened in itertools.product(cases, (original, same, other)):
        fits(opened, case)

    def verdict(opened: ort.InferenceSession) -> GateResult:
        return score(((c, run_model(original, c.input), run_model(opened, c.input)) for c in cases), 48, UNIT)

    assert verdict(original).min_psnr == 200 and verdict(same).passed and not verdict(other).passed
    assert {one.size for one in verdict(same).per_image} == {"64x96", "33x73"}
