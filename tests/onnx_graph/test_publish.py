"""Publication, stopped at each of its steps by each signal: the earlier file or the new one is there and loads."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from asvp_export.files import atomic_write
from asvp_export.onnx_graph.publish import Staging

# Publishes in a child, which sends itself a signal before its n-th call of one of these; n grows until all were made.
STOPPED = """
import json, os, signal, sys
from pathlib import Path
import onnx
from asvp_export.files import atomic_write
from asvp_export.onnx_graph.publish import Staging

folders, number, model, external, output = json.loads(sys.argv[1])
codes = []
for n, folder in enumerate(map(Path, folders), 1):
    child = os.fork()
    if child == 0:
        left, model = n, onnx.load(model)
        def counted(function):
            def called(*arguments, **options):
                global left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), number)
                return function(*arguments, **options)
            return called
        for name in ("replace", "unlink", "remove", "rmdir", "fsync", "rename", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        for number_ in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number_, lambda number, frame: sys.exit(128 + number))
        try:
            if output:
                with Staging(folder / "p.onnx", force=True, external_data=external) as staging:
                    staging.write(model)
                    staging.publish(folder / output)
            else:
                atomic_write(folder / "a.txt", b"new")
        except (KeyboardInterrupt, SystemExit):
            os._exit(99)
        os._exit(0 if left > 0 else 99)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    if codes[-1] == 0:
        break
print(json.dumps(codes))
"""
SIGNALS = [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def model(value: float) -> onnx.ModelProto:
    """Adds a tensor that is large enough to lie in a file of its own."""
    weight = numpy_helper.from_array(np.full(1024, value, np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1024]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "add", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def value(path: Path) -> float:
    """What a file adds; it is checked, and its data is read."""
    onnx.checker.check_model(str(path), full_check=True)
    (weight,) = onnx.load(path).graph.initializer
    values = numpy_helper.to_array(weight)
    assert (values == values[0]).all()
    return float(values[0])


def publish(path: Path, number: float, external: bool = True, name: str = "") -> None:
    with Staging(path, force=True, external_data=external) as staging:
        staging.write(model(number))
        staging.publish(path.with_name(name or path.name))


def stopped(earlier: Path, number: signal.Signals, place: Path, external: bool = True, output: str = "p.onnx") -> list:
    """Copies of a folder in which a publication was stopped, one a step, and how each ended."""
    onnx.save(model(2), place / "new.onnx")
    folders = [place / f"step{n}" for n in range(1, 40)]
    for folder in folders:
        shutil.copytree(earlier, folder)
    told = json.dumps([list(map(str, folders)), number, str(place / "new.onnx"), external, output])
    done = subprocess.run([sys.executable, "-c", STOPPED, told], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout)
    assert len(codes) < len(folders) and codes[-1] == 0, "every step was reached"
    return list(zip(folders[: len(codes)], codes, strict=True))


@pytest.mark.parametrize("external", [True, False], ids=["external", "inside"])
@pytest.mark.parametrize("number", SIGNALS)
def test_whatever_stops_a_publication_one_of_the_two_files_is_there_and_loads(number, external, tmp_path):
    (tmp_path / "earlier").mkdir()
    publish(tmp_path / "earlier" / "p.onnx", 1)
    seen = set()
    for folder, code in stopped(tmp_path / "earlier", number, tmp_path, external):
        assert code in (0, 99, -number), "the signal came, or all was done"
        found = value(folder / "p.onnx")
        assert found in (1, 2)
        seen.add(found)
        if code == 99:
            assert not list(folder.glob(".*")), "nothing hidden stays where the process could clean up"
            assert len(list(folder.glob("*.data"))) == int(external or found == 1)
        publish(folder / "p.onnx", 3, external)
        assert value(folder / "p.onnx") == 3
        assert len(list(folder.iterdir())) == 1 + external, "the next run removes what the killed one left"
    assert seen == {1, 2}, "it was stopped before and after the new file got its name"


def test_a_file_that_was_kept_beside_it_keeps_the_data_that_both_read(tmp_path):
    publish(tmp_path / "p.onnx", 1)
    publish(tmp_path / "p.onnx", 1, name="p.failed.onnx")
    shutil.copy(tmp_path / "p.onnx", tmp_path / "copy.onnx")
    publish(tmp_path / "p.onnx", 2)
    assert [value(tmp_path / name) for name in ("p.onnx", "p.failed.onnx", "copy.onnx")] == [2, 1, 1]
    (tmp_path / "copy.onnx").unlink()
    publish(tmp_path / "p.onnx", 2, name="p.failed.onnx")
    assert [value(tmp_path / name) for name in ("p.onnx", "p.failed.onnx")] == [2, 2]
    assert len(list(tmp_path.glob("*.data"))) == 1, "data that no model reads any more goes"


def test_a_run_leaves_alone_what_another_run_that_is_alive_has_beside_it(tmp_path):
    publish(tmp_path / "p.onnx", 1)
    with Staging(tmp_path / "p.onnx", force=True, external_data=True) as first:
        first.write(model(2))
        (staged,) = (part for part in first.path.parent.iterdir() if part != first.path)
        shutil.copy(staged, tmp_path / staged.name)  # as between the two renames
        publish(tmp_path / "p.onnx", 2)
        publish(tmp_path / "p.onnx", 3)
        assert first.path.exists() and (tmp_path / staged.name).exists()
        first.publish()
    assert value(tmp_path / "p.onnx") == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_only_what_the_tool_left_is_removed(tmp_path):
    (tmp_path / ".asvp-audit").mkdir()
    strangers = [".asvp-audit/a.png", "p.0123456789abcdef.data", "notes.data"]
    for name in strangers:
        (tmp_path / name).write_bytes(b"theirs")
    publish(tmp_path / "p.onnx", 1, external=False)
    atomic_write(tmp_path / "a.txt", b"x")
    assert all((tmp_path / name).read_bytes() == b"theirs" for name in strangers)


@pytest.mark.parametrize("number", SIGNALS)
def test_whatever_stops_the_writing_of_a_file_it_is_there_whole(number, tmp_path):
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "a.txt").write_bytes(b"old")
    for folder, code in stopped(tmp_path / "earlier", number, tmp_path, output=""):
        assert (folder / "a.txt").read_bytes() in (b"old", b"new")
        assert number == signal.SIGKILL or len(list(folder.iterdir())) == 1, code
        atomic_write(folder / "a.txt", b"newer")
        assert [path.name for path in folder.iterdir()] == ["a.txt"]
