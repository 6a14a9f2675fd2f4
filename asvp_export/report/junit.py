"""The verdicts as JUnit XML, which CI systems show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

from asvp_export.parity.verify import GateResult, ImageScore

# What XML 1.0 cannot hold, not even escaped; file names can.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(name: str, gates: Mapping[str, GateResult]) -> bytes:
    """One test suite a gate and one test case an input.

    Args:
        name: of the whole run, the model's file name for example.
        gates: the verdicts by the gate's name.
    """
    suites = [_suite(gate, result) for gate, result in gates.items()]
    root = ElementTree.Element("testsuites", {"name": _text(name), **_totals(suites)})
    root.extend(suites)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _suite(gate: str, result: GateResult) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=_text(gate))
    for score in result.per_image:
        title = _text(f"{score.name} {score.size} batch {score.batch} {score.output} {score.execution_path}")
        case = ElementTree.SubElement(suite, "testcase", classname=_text(gate), name=title)
        if not score.psnr >= result.threshold:
            message = _message(score, result.threshold)
            ElementTree.SubElement(case, "failure", type="parity", message=message).text = message
    suite.attrib.update(tests=str(len(suite)), failures=str(len(suite.findall("*/failure"))), errors="0", skipped="0")
    return suite


def _message(score: ImageScore, threshold: float) -> str:
    shown = score.as_dict()["psnr"]
    value = "an output that is NaN or infinite" if shown is None else f"{shown:.2f} dB"
    return f"found {value}, expected at least {threshold:g} dB"


def _totals(suites: list[ElementTree.Element]) -> dict[str, str]:
    return {key: str(sum(int(suite.attrib[key]) for suite in suites)) for key in ("tests", "failures")}


def _text(value: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", value)
