"""Reports: strict JSON, valid JUnit XML, nothing about the machine's owner."""

from __future__ import annotations

import getpass
import json
import math
import platform
import sys
from subprocess import run
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asvp_export.environment import environment
from asvp_export.parity.verify import GateResult, ImageScore
from asvp_export.report.junit import junit
from asvp_export.report.strict_json import json_bytes


def gate(threshold: float, *scores: tuple[str, float]) -> GateResult:
    per_image = tuple(ImageScore(name, "64x96", 1, psnr, 0.99) for name, psnr in scores)
    values = [psnr for _, psnr in scores]
    return GateResult(min(values), sum(values) / len(values), 0.99, threshold, min(values) >= threshold, per_image)


def strict(text: str) -> dict[str, object]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_is_strict_ordered_and_ends_in_a_newline() -> None:
    content = json_bytes(
        {"z": math.nan, "a": [math.inf, (1.5, -math.inf)], "größe": "64 ± 96", "passed": True, "n": None},
    )
    text = content.decode("utf-8")
    assert text.endswith("}\n") and "größe" in text
    read = strict(text)
    assert read == {"z": None, "a": [None, [1.5, None]], "größe": "64 ± 96", "passed": True, "n": None}
    assert list(read) == ["z", "a", "größe", "passed", "n"]


def test_a_file_name_that_is_no_text_is_still_json() -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    assert strict(json_bytes({"name": name}).decode("utf-8")) == {"name": name}


def test_what_json_cannot_hold_is_an_error() -> None:
    with pytest.raises(TypeError):
        json_bytes({"passed": object()})


def test_the_environment_names_versions_and_no_machine() -> None:
    found = environment()
    assert list(found) == ["python", "platform", "torch", "onnx", "onnxruntime", "numpy", "processors"]
    assert found["python"] == platform.python_version() and found["onnxruntime"] and found["processors"]
    values = {str(value) for value in found.values()}
    assert platform.node() not in values and getpass.getuser() not in values


def test_the_environment_does_not_import_torch() -> None:
    script = (
        "import sys; from asvp_export.environment import environment; environment();"
        "raise SystemExit(len({'torch', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    assert run([sys.executable, "-c", script], check=False).returncode == 0


def test_junit_has_a_suite_a_gate_and_a_case_an_image() -> None:
    gates = {
        "fidelity": gate(80, ("a.png", 120.0), ("b.png", 99.5)),
        "preservation": gate(48, ("a.png", 47.998), ("b.png", 51.0), ("c.png", math.nan)),
    }
    root = ElementTree.fromstring(junit("protected.onnx", gates))
    assert (root.tag, root.attrib) == (
        "testsuites",
        {"name": "protected.onnx", "tests": "5", "failures": "2"},
    )
    assert [(s.get("name"), s.get("tests"), s.get("failures")) for s in root] == [
        ("fidelity", "2", "0"),
        ("preservation", "3", "2"),
    ]
    assert [case.get("name") for case in root[0]] == [
        "a.png 64x96 batch 1 output function",
        "b.png 64x96 batch 1 output function",
    ]
    assert [failure.get("message") for failure in root.iter("failure")] == [
        "found 47.99 dB, expected at least 48 dB",
        "found an output that is NaN or infinite, expected at least 48 dB",
    ]


@given(name=st.text(st.characters(), min_size=1))
def test_junit_is_valid_whatever_the_files_are_called(name: str) -> None:
    case = ElementTree.fromstring(junit(name, {name: gate(48, (name, 40.0))})).find("testsuite/testcase")
    assert case is not None and case.get("name", "").endswith(" 64x96 batch 1 output function")
