"""Comparing models in a runtime: opened or refused, run, timed, judged."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from asvp_export.environment import conflicting_onnxruntime
from asvp_export.errors import InputError, MachineError
from asvp_export.images import list_images, photographs
from asvp_export.parity.cases import Case, build_cases, check_fits
from asvp_export.parity.latency import latency
from asvp_export.parity.verify import GateResult, score
from asvp_export.runtime.session import run_model, session, session_inputs
from asvp_export.signature import SizeRule
from tests.helpers.restorers import FREE, UNIT, model, photograph


def test_a_model_runs_from_a_file_and_from_bytes(tmp_path: Path) -> None:
    (tmp_path / "restorer.onnx").write_bytes(model())
    x = photograph()
    for source in (model(), tmp_path / "restorer.onnx", str(tmp_path / "restorer.onnx")):
        np.testing.assert_allclose(run_model(session(source, threads=1), x)[0], np.sqrt(x), rtol=1e-6)


def test_a_half_precision_model_is_fed_half_precision() -> None:
    opened = session(model(kind=TensorProto.FLOAT16))
    check_fits(opened, Case("photo.png", photograph(), 96, 128))
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
        ("half", "cannot load"),
        ("text", "cannot load"),
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
    (found,) = session_inputs(session(model(shape=("batch", 3, 64, None))))
    assert (found.name, found.shape, found.type) == ("image", ("batch", 3, 64, None), "tensor(float)")
    assert str(found) == "image tensor(float) batchx3x64x?"


def test_a_model_that_does_not_take_the_images_is_refused() -> None:
    case = Case("photo.png", photograph(), 96, 128)
    check_fits(session(model()), case)
    check_fits(session(model(shape=(1, 3, 96, 128))), case)
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
            check_fits(session(bad), case)


def test_a_run_that_fails_says_why_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    weight = helper.make_node("Constant", [], ["w"], value_floats=[0.0] * 7)
    opened = session(model(weight, helper.make_node("Add", ["image", "w"], ["restored"])))
    with pytest.raises(InputError, match=r"cannot run the model on an input of 1x3x96x128 \(") as caught:
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
        check_fits(opened, case)

    def verdict(opened: ort.InferenceSession) -> GateResult:
        return score(((c, run_model(original, c.input), run_model(opened, c.input)) for c in cases), 48, UNIT)

    assert verdict(original).min_psnr == 200 and verdict(same).passed and not verdict(other).passed
    assert {one.size for one in verdict(same).per_image} == {"64x96", "33x73"}
