"""Whatever a stranger writes into a plan, a manifest, a report or metadata is read, or an InputError says why not."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asvp_export.console import printable
from asvp_export.errors import InputError
from asvp_export.insertion.plan import Plan
from asvp_export.onnx_graph.metadata import PREFIX, Provenance, read_provenance, write_provenance
from asvp_export.operator import Perturbation
from asvp_export.report.manifest import report_disagreements, verify_manifest
from asvp_export.report.plan import plan_tables
from asvp_export.report.tables import plan_table
from asvp_export.signature import SizeRule, ValueRange
from tests.helpers import bodies

BOUNDED = settings(
    max_examples=300, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

DIGEST = "0" * 64
NODE = {"rank": 1, "gain": 2.0, "energy": 1.0, "axis": 1, "residual": 1.0}
PLAN = {
    "format": 1,
    "tool_version": "0.1.0",
    "source_sha256": DIGEST,
    "min_psnr": 48.0,
    "compensate": "none",
    "held_out_psnr": None,
    "verified_psnr": 50.0,
    "uncompensated_psnr": None,
    "calibration": {"photographs": 1, "crops": 2, "held_out": 1},
    "ridges": {"tail": 1e-6},
    "layers": [
        {
            "name": "a",
            "node": NODE,
            "strength": 0.1,
            "relative_feature_change": None,
            "stopped_by": "the limit",
            "consumers": ["tail"],
            "uncompensated": "",
        },
    ],
    "ranking": [{"name": "a", "rank": 1, "gain": 2.0, "strength": 0.1, "compensated": False, "cost": 0.01}],
}
MANIFEST = {
    "manifest_version": 1,
    "tool_version": "0.1.0",
    "source": {"name": "m.pt", "sha256": DIGEST},
    "files": [
        {"role": role, "name": name, "bytes": 9, "sha256": DIGEST}
        for role, name in (("model", "p.onnx"), ("report", "p.report.json"), ("card", "README.md"))
    ],
}
GATE = {"threshold": 60.0, "min_psnr": 91.2}
REPORT = {
    "passed": True,
    "output_sha256": DIGEST,
    "source_sha256": DIGEST,
    "layers": [{"name": "a", **NODE, "strength": 0.1}],
    "fidelity": GATE,
    "preservation": {**GATE, "per_image": [{"name": "x.png", "psnr": 91.2}]},
}

NUMBERS = st.integers() | st.floats() | st.sampled_from([10**30, 10**400, -1, 0, 2**31, 2**63, 5e-324])
TEXTS = st.text(max_size=9) | st.sampled_from(["\x1b[31m", "[/x]", "../a", "x" * 5000, "\ud800", "none", "1e400"])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def places(data: Any) -> Iterator[tuple[Any, str | int]]:
    """Every place in JSON that holds a value, as container and key."""
    for key, value in list(data.items() if isinstance(data, dict) else enumerate(data)):
        yield data, key
        if isinstance(value, dict | list):
            yield from places(value)


@st.composite
def changed(draw: st.DrawFn, valid: Any) -> Any:
    """A valid document in which up to three values were replaced, taken out, or doubled under another name."""
    data = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        if not (found := list(places(data))):
            break
        container, key = draw(st.sampled_from(found))
        what = draw(st.sampled_from(["replace", "replace", "take out", "double"]))
        if what == "replace":
            container[key] = draw(VALUES)
        elif what == "take out":
            del container[key]
        elif isinstance(container, list):
            container.append(copy.deepcopy(container[int(key)]))
        else:
            container[draw(TEXTS)] = copy.deepcopy(container[key])
    return data


def damaged(text: bytes) -> st.SearchStrategy[bytes]:
    """The bytes of a valid document with a piece cut out, or put in."""
    return st.builds(
        lambda start, length, more: text[:start] + more + text[start + length :],
        st.integers(0, len(text)),
        st.integers(0, 40),
        st.binary(max_size=9) | st.just(b"[" * 50_000),
    )


def documents(valid: Any) -> st.SearchStrategy[bytes]:
    return changed(valid).map(lambda data: json.dumps(data).encode()) | damaged(json.dumps(valid).encode())


def reads_or_refuses(read: Callable[[], object]) -> None:
    try:
        read()
    except InputError as error:
        assert 0 < len(str(error)) < 1000
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file with metadata, and a report and a card that are none yet."""
    folder = tmp_path_factory.mktemp("shipped")
    model = bodies.model([Perturbation(1, 2.0)])
    write_provenance(model, PROVENANCE)
    onnx.save(model, folder / "p.onnx")
    (folder / "README.md").write_text("a card")
    return folder


PROVENANCE = Provenance(
    "0.1.0",
    {"a": Perturbation(1, 2.0, residual=1.0)},
    DIGEST,
    ValueRange(),
    1,
    SizeRule(),
    gates={"fidelity": GATE, "preservation": GATE},
)


@BOUNDED
@given(content=documents(PLAN))
def test_any_plan_is_read_and_shown_or_refused(content, tmp_path):
    (tmp_path / "p.plan.json").write_bytes(content)

    def read() -> None:
        plan = Plan.load(tmp_path / "p.plan.json")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            plan_table(plan, {})
        assert all(row for table in plan_tables(plan) for row in table.cells)
        assert all(printable(line) == line for line in out.getvalue().split("\n"))

    reads_or_refuses(read)


@BOUNDED
@given(content=documents(MANIFEST))
def test_any_manifest_is_verified_or_refused(content, shipped):
    (shipped / "p.manifest.json").write_bytes(content)
    reads_or_refuses(lambda: verify_manifest(shipped / "p.onnx"))


@BOUNDED
@given(content=documents(REPORT))
def test_any_report_agrees_or_differs(content, shipped):
    (shipped / "p.report.json").write_bytes(content)
    for problem in report_disagreements(shipped / "p.report.json", DIGEST, PROVENANCE):
        assert len(problem) < 1000


def metadata() -> dict[str, Any]:
    """The entries of a file, those in JSON as values."""
    model = onnx.ModelProto()
    write_provenance(model, PROVENANCE)
    entries = {entry.key.removeprefix(PREFIX): entry.value for entry in model.metadata_props}
    json_keys = ("layers", "data_range", "scale", "size", "gates")
    return {key: json.loads(value) if key in json_keys else value for key, value in entries.items()}


@BOUNDED
@given(entries=changed(metadata()))
def test_any_metadata_is_read_or_refused(entries):
    texts = {PREFIX + key: value if isinstance(value, str) else json.dumps(value) for key, value in entries.items()}
    reads_or_refuses(lambda: read_provenance(texts))


def test_what_is_changed_above_is_valid(tmp_path, shipped):
    (tmp_path / "p.plan.json").write_text(json.dumps(PLAN))
    (shipped / "p.report.json").write_text(json.dumps(REPORT))
    (shipped / "p.manifest.json").write_text(json.dumps(MANIFEST))
    assert list(Plan.load(tmp_path / "p.plan.json").nodes) == ["a"]
    assert report_disagreements(shipped / "p.report.json", DIGEST, PROVENANCE) == []
    assert (
        read_provenance(
            {PREFIX + key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata().items()}
        )
        == PROVENANCE
    )
    assert verify_manifest(shipped / "p.onnx").files == ("p.onnx", "p.report.json", "README.md")
