"""Audits from end to end: students that are trained once and kept, and the command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from asvp_export.distillation.data import centre_crop, from_folder
from asvp_export.distillation.results import (
    evaluate_requirements,
)
from asvp_export.distillation.runner import _particulars
from asvp_export.errors import InputError
from asvp_export.images import as_channels
from asvp_export.insertion.protected import insert
from asvp_export.operator import Perturbation
from asvp_export.report.audit_page import audit_page
from asvp_export.signature import ValueRange
from tests.helpers.audits import LAYER, STUDENT, TASK, audited
from tests.helpers.commands import call, run_apart
from tests.helpers.feature_maps import expected, grey, maps_in_file
from tests.helpers.reading import pixels, read
from tests.helpers.teachers import arch, example, weights


def test_a_student_is_the_same_whoever_trains_it_and_is_trained_once(protected, clean, tmp_path, monkeypatch):
    one = audited(protected, clean, tmp_path / "one")
    two = audited(protected, clean, tmp_path / "two", jobs=2)
    assert [row.by_seed for row in one.rows] == [row.by_seed for row in two.rows]
    assert one.pictures == two.pictures
    assert {str(row.arm) for row in one.rows} == {
        "truth",
        "original/outputs",
        "original/mse-1",
        "shipped/mse-1",
        "original/normalised-10",
        "shipped+undo/normalised-10",
    }
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "one" / "cache").iterdir()}
    lost = sorted(kept)[0].with_suffix(".json")
    content = json.loads(lost.read_text())
    lost.unlink()  # as if it had been killed before this one was done
    again = audited(protected, clean, tmp_path / "one")
    assert [row.by_seed for row in again.rows] == [row.by_seed for row in one.rows]
    untouched = [path for path in kept if path.stem != lost.stem]
    assert all(path.stat().st_mtime_ns == kept[path] for path in untouched)
    assert json.loads(lost.read_text()) | {"seconds": 0} == content | {"seconds": 0}


def test_another_gain_is_another_audit(protected, clean, tmp_path):
    audited(protected, clean, tmp_path, rows=["shipped/outputs"])
    count = len(list((tmp_path / "cache").glob("*.json")))
    audited(insert(protected.teacher, {LAYER: Perturbation(1, 2.0)}), clean, tmp_path, rows=["shipped/outputs"])
    assert count == 3 and len(list((tmp_path / "cache").glob("*.json"))) == count + 1  # the original is what it was


@pytest.mark.slow  # Ray takes longer to start than the students to be trained
def test_ray_trains_the_same_students(protected, clean, tmp_path):
    pytest.importorskip("ray")
    here = audited(protected, clean, tmp_path / "here", rows=["shipped/mse-1"])
    there = audited(protected, clean, tmp_path / "there", rows=["shipped/mse-1"], backend="ray")
    import ray

    ray.shutdown()
    assert [row.by_seed for row in here.rows] == [row.by_seed for row in there.rows]


def test_the_same_weights_of_another_range_are_another_teacher(protected):
    plain = list(_particulars(protected.teacher))
    assert list(_particulars(replace(protected.teacher, data_range=ValueRange(0, 255)))) != plain
    other = replace(protected.teacher, module=example("sr_x2").module)  # as if the same weights fitted another class
    assert list(_particulars(other)) != plain


def test_ten_steps_and_a_requirement_that_no_row_answers(protected, clean, tmp_path):
    assert audited(protected, clean, tmp_path, rows=["truth"], steps=10).by_name["truth"].curve[-1][0] == 10
    for bar, sentence in (("feature_kd_drop>=1", "is not run"), ("original/outputs>=1", "has no loss")):
        with pytest.raises(InputError, match=sentence):
            audited(protected, clean, tmp_path, rows=["shipped/outputs"], require=[bar])
    assert evaluate_requirements({"shipped/mse-1": 2.0}, ["shipped/mse-1@node>=1"])[0].passed


def test_the_maps_that_are_shown_are_those_of_the_shipped_file_and_a_kept_audit_has_them_too(
    protected, file, clean, tmp_path
):
    teacher, options = protected.teacher, {"rows": ["truth"], "file": file}
    first, again = (audited(teacher, clean, tmp_path, **options) for _ in range(2))
    degraded = centre_crop(teacher, from_folder(clean, TASK).test[0]).degraded
    x = torch.from_numpy(np.ascontiguousarray(as_channels(degraded, teacher.channels)[None]))
    wanted = expected([one[0] for one in maps_in_file(file, x)[LAYER]])
    for result in (first, again):
        maps = result.feature_maps[LAYER]
        assert maps and maps.channel == wanted.channel and maps.readers is None
        for found, one in zip((maps.clean, maps.exposed), wanted.maps, strict=True):
            np.testing.assert_allclose(found, one, atol=1e-5 * np.abs(one).max())  # float32, both in onnxruntime
        np.testing.assert_allclose(
            (maps.exposed_change, maps.strength), (wanted.changes[0], wanted.strength), rtol=1e-4
        )
        seen = read(audit_page(result))
        assert "Feature maps" in seen.text("h2")
        (drawn,) = (one["src"] for one in seen.all("img") if ", exposed:" in str(one["alt"]))
        exposed = wanted.maps[1]
        assert np.abs(pixels(drawn)[..., 0] - grey(exposed, exposed.min(), exposed.max())).max() <= 1


# The command


def command(clean, tmp_path, *arguments):
    return call(
        "audit",
        weights(TASK),
        *arguments,
        f"--arch={arch(TASK)}",
        f"--task={TASK}",
        f"--data={clean}",
        f"--student={STUDENT}",
        "--rows=shipped/mse-1, shipped/outputs",
        "--seeds=1",
        "--steps=2",
        f"--cache={tmp_path / 'cache'}",
        f"--report={tmp_path / 'report'}",
    )


def test_the_command_audits_a_file_and_fails_where_a_requirement_is_not_met(file, clean, tmp_path):
    done = command(clean, tmp_path, file, "--json", "--require", "own_loss<=100")
    assert done.code == 0, done.err
    data = json.loads(done.out)
    assert data["file"] == "protected.onnx" and [layer["name"] for layer in data["layers"]] == [LAYER]
    assert {row["name"] for row in data["rows"]} >= {"truth", "shipped/mse-1"} and data["bars"][0]["passed"]
    written = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert written == ["protected.audit.html", "protected.audit.json"]
    assert json.loads((tmp_path / "report" / "protected.audit.json").read_text()) == data
    failed = command(clean, tmp_path, file, "--quiet", "--require", "feature_kd_drop>=100")
    assert failed.code == 1 and "The requirement feature_kd_drop>=100 is not met" in failed.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "None of PROTECTED, --plan FILE and --layers NAMES was given"),
        (
            ["--layers", LAYER, "--plan", "x.json"],
            "More than one of PROTECTED, --plan FILE and --layers NAMES was given",
        ),
        (["--layers", LAYER, "--gain", "3", "--require", "speed>=1"], "or the name of a row was expected"),
        (["--layers", LAYER, "--gain", "3", "--rows", "shipped/mse"], "needs a weight"),
        (["--layers", LAYER, "--gain", "3", "--student", "nowhere.py:net"], "does not exist"),
        (["--layers", LAYER, "--gain", "3", "--seeds", "0"], "at least 1 of each"),
        (["--layers", "none", "--gain", "3"], "nothing to audit"),
        (["missing.onnx"], "missing.onnx"),
        (
            ["missing.onnx", "--max-gain", "3"],
            "--max-gain was given, and missing.onnx already says how the model is protected",
        ),
    ],
)
def test_bad_input_gets_one_sentence(arguments, sentence, tmp_path, clean):
    places = [f"--data={clean}", f"--cache={tmp_path / 'c'}", f"--report={tmp_path / 'r'}"]
    answer = call("audit", weights(TASK), f"--arch={arch(TASK)}", f"--task={TASK}", *places, *arguments)
    assert answer.code == 2 and sentence in answer.err and "Traceback" not in answer.err, answer.err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("cache", ["notes.txt", "notes.txt/below/it"])
def test_a_cache_that_cannot_be_is_refused_before_the_work(cache, tmp_path, clean):
    (tmp_path / "notes.txt").touch()
    places = [f"--data={clean}", f"--cache={tmp_path / cache}"]
    answer = call("audit", weights(TASK), f"--arch={arch(TASK)}", *places, f"--task={TASK}", "--layers=none")
    assert answer.code == 2 and answer.err == (
        f"Error: The cache {tmp_path / cache} cannot be a folder, because {tmp_path / 'notes.txt'} is a file; name "
        "another with --cache.\n"
    )


def test_a_student_that_cannot_be_kept_ends_an_audit_with_one_sentence(file, clean, tmp_path):
    assert command(clean, tmp_path, file, "--quiet").code == 0
    for path in (tmp_path / "cache").iterdir():  # nothing is done, and nothing can be written
        path.unlink()
        if path.suffix == ".png":
            path.mkdir()
    told = [f"--arch={arch(TASK)}", f"--task={TASK}", f"--data={clean}", f"--student={STUDENT}", "--jobs=2"]
    told += ["--rows=shipped/mse-1, shipped/outputs", "--seeds=1", "--steps=2", "--cache=cache", "--quiet"]
    done = run_apart("audit", weights(TASK), file, *told, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "is a folder or a device" in done.stderr


def test_an_audit_of_nothing_says_what_is_missing(clean):
    answer = call("audit", weights(TASK), "--arch", arch(TASK), "--layers", LAYER)
    assert answer.code == 2 and "No pictures were named" in answer.err
