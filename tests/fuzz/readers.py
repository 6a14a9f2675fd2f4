"""Fuzz one reader: `python -m tests.fuzz.readers NAME --seconds 600 --seed 1`.

What is read is refused by one of our errors or understood. Anything else is a finding: another exception, a crash, over
10 seconds, over 1 GiB beyond what PyTorch takes, a file written, a process or a connection started.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import atheris
import click
import torch

with atheris.instrument_imports(include=["asvp_export", "PIL"]):
    from asvp_export.cli.types import JsonObject
    from asvp_export.errors import AsvpError
    from asvp_export.images import read_npz
    from asvp_export.insertion.plan import Plan
    from asvp_export.onnx_graph.metadata import read_provenance
    from asvp_export.options import LoadOptions
    from asvp_export.picture import read_picture
    from asvp_export.report.manifest import verify_manifest
    from asvp_export.teacher.child import Child, Limits, StoppedError
    from asvp_export.teacher.example_inputs import read_inputs
    from asvp_export.teacher.load import _from_file

from tests.fuzz import seeds

MEMORY_MIB, SECONDS_EACH = 1024, 10
_STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "os.remove")


class Watch:
    """What a reader may not do, while it reads: write, start processes, connect."""

    def __init__(self) -> None:
        self.on, self.seen = False, ""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.on:
            return
        if event.startswith(_STARTS) or (event == "open" and _writes(arguments)):
            self.seen = f"{event} {arguments[:2]}"


def _writes(arguments: tuple[object, ...]) -> bool:
    path, mode = arguments[:2]
    return isinstance(mode, str) and any(letter in mode for letter in "wax+") and not str(path).startswith("/dev/")


watch = Watch()


@dataclass(frozen=True)
class Target:
    """One reader, and what it is given."""

    seeds: Sequence[bytes]
    """What fuzzing starts from."""

    write: Callable[[Path, bytes], Path]
    """Puts bytes where they are read from, in a folder; the path that is read."""

    read: Callable[[Path], object]
    """The reader."""


def _file(name: str) -> Callable[[Path, bytes], Path]:
    def write(folder: Path, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _member(name: str, archive: bytes, chosen: Callable[[str], bool]) -> Callable[[Path, bytes], Path]:
    return lambda folder, content: _file(name)(folder, seeds.with_member(archive, chosen, content))


class _Here(Child):
    """Opens files in this process, in which fuzzing sees what happens; TorchScript in a fork of it first.

    PyTorch ends the process at some damaged archives, which is why the tool opens them in another one.
    """

    def start(self, kind: str) -> None:
        """See `Child`."""
        self._kind, self._in_this_process = kind, True

    def open(self, check: bytes | None = b"") -> bool:
        """See `Child`."""
        if self._kind == "onnx":
            return False
        on, watch.on = watch.on, False
        process = os.fork()
        if process == 0:
            _load_and_end(self._path)
        _, status = os.waitpid(process, 0)
        watch.on = on
        if os.WIFSIGNALED(status):
            raise StoppedError(f"{self._path.name} cannot be opened: a signal ended the process.")
        return False


def _load_and_end(path: Path) -> NoReturn:
    for number in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL):
        signal.signal(number, signal.SIG_DFL)  # libFuzzer's would call it a finding
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with contextlib.suppress(Exception):
        torch.jit.load(str(path), map_location="cpu")
    os._exit(0)


def _read(path: Path, options: LoadOptions) -> object:
    return _from_file(path, options, _Here(path, "cpu", Limits()))


def _model(path: Path) -> object:
    return _read(path, LoadOptions())


def _weights(path: Path) -> object:
    return _read(path, LoadOptions(arch="tests.helpers.teachers:recurrent"))


def _raw(name: str, made: Sequence[bytes]) -> Target:
    return Target(made, _file(name), _model)


def _inside(name: str, archive: bytes, suffix: str) -> Target:
    def chosen(member: str) -> bool:
        return member.endswith(suffix)

    return Target(seeds.members(archive, chosen)[:1], _member(name, archive, chosen), _model)


def _plan_weights() -> Target:
    plan, weights = seeds.plan_with_weights()

    def write(folder: Path, content: bytes) -> Path:
        data = json.loads(plan)
        data["weights"]["sha256"] = hashlib.sha256(content).hexdigest()
        (folder / data["weights"]["file"]).write_bytes(content)
        return _file("b.plan.json")(folder, json.dumps(data).encode())

    return Target([weights], write, Plan.load)


def _beside(fuzzed: str) -> Target:
    """A manifest, or the report that a right manifest lists."""
    shipped = seeds.shipped()

    def write(folder: Path, content: bytes) -> Path:
        files = shipped | {fuzzed: content}
        manifest = files["manifest"]
        if fuzzed == "report":
            listed = json.loads(manifest)
            for entry in listed["files"]:
                if entry["name"] == "p.report.json":
                    entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            manifest = json.dumps(listed).encode()
        (folder / "p.report.json").write_bytes(files["report"])
        (folder / "p.manifest.json").write_bytes(manifest)
        return _file("p.onnx")(folder, files["onnx"])

    return Target([shipped[fuzzed]], write, verify_manifest)


def _metadata(path: Path) -> object:
    data = json.loads(path.read_bytes())
    if not isinstance(data, dict):
        return None
    return read_provenance({key: value for key, value in data.items() if isinstance(value, str)})  # as in a file


def _json_or_nothing(path: Path) -> object:
    try:
        return _metadata(path)
    except (ValueError, RecursionError):  # of the harness's own JSON
        return None


def _words(path: Path) -> object:
    return JsonObject().convert(path.read_bytes().decode("utf-8", "surrogateescape"), None, None)


TARGETS: dict[str, Callable[[], Target]] = {
    "state-dict": lambda: Target(seeds.state_dicts(), _file("net.pt"), _weights),
    "pickle": lambda: replace(_inside("net.pt", seeds.state_dicts()[1], "data.pkl"), read=_weights),
    "pt2": lambda: _raw("net.pt2", [seeds.ARCHIVES["pt2"]()]),
    "pt2-graph": lambda: _inside("net.pt2", seeds.ARCHIVES["pt2"](), "models/model.json"),
    "torchscript": lambda: _raw("net.pt", [seeds.ARCHIVES["torchscript"]()]),
    "torchscript-code": lambda: _inside("net.pt", seeds.ARCHIVES["torchscript"](), ".py"),
    "torchscript-pickle": lambda: _inside("net.pt", seeds.ARCHIVES["torchscript"](), "/data.pkl"),
    "onnx": lambda: _raw("net.onnx", [seeds.shipped()["onnx"]]),
    "picture": lambda: Target(seeds.pictures(), _file("picture"), read_picture),
    "npz": lambda: Target([seeds.arrays()], _file("x.npz"), read_npz),
    "npy": lambda: Target(
        seeds.members(seeds.arrays(), lambda name: True),
        _member("x.npz", seeds.arrays(), lambda name: True),
        read_npz,
    ),
    "inputs": lambda: Target([seeds.state_dicts()[0]], _file("x.pt"), read_inputs),
    "plan": lambda: Target([seeds.shipped()["plan"]], _file("a.plan.json"), Plan.load),
    "plan-weights": _plan_weights,
    "manifest": lambda: _beside("manifest"),
    "report": lambda: _beside("report"),
    "metadata": lambda: Target([seeds.shipped()["metadata"]], _file("metadata.json"), _json_or_nothing),
    "arch-args": lambda: Target([b'{"scale": 2, "width": [1, null, "x"]}'], _file("words"), _words),
}
"""Name to reader."""


_ODD = (
    *(None, True, -1, 0, 2**31, 2**63, 10**400, 1e400, float("nan"), -0.0, 1e-320, "", "x", "../x", "/etc/passwd"),
    *("[/x]", "<b>", "\x1b[31m", "\x00", "\ud800", "9" * 5000, [], {}, [[]], {"": {}}),
)


def changed(content: bytes, size: int, seed: int) -> bytes:
    """A JSON document with one value, or one key, changed; else whatever libFuzzer does to bytes."""
    rng = random.Random(seed)
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict | list) or not data or rng.random() < 0.3:
        return atheris.Mutate(content, size)
    inner = data
    while True:
        key = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
        if not isinstance(inner[key], dict | list) or not inner[key] or rng.random() < 0.2:
            break
        inner = inner[key]
    action = rng.randrange(4)
    if action == 0:
        del inner[key]
    elif action == 1 and isinstance(inner, list):
        inner.append(inner[key])
    elif action == 1:
        inner[str(rng.choice(_ODD))] = inner[key]
    else:
        inner[key] = rng.choice(_ODD)
    return json.dumps(data).encode("utf-8", "surrogatepass")[:size]


def main() -> None:
    """Fuzz; ends by itself, with another exit code than 0 at the first finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz"), help="where an input that fails is kept")
    asked = parser.parse_args()
    target = TARGETS[asked.target]()
    asked.findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder, corpus = Path(name, "read"), Path(name, "corpus")
        folder.mkdir()
        corpus.mkdir()
        for index, content in enumerate(target.seeds):
            (corpus / str(index)).write_bytes(content)
            target.read(target.write(folder, content))  # a seed is understood; and all that is lazy is imported

        def once(content: bytes) -> None:
            path = target.write(folder, content)
            before = sorted(folder.iterdir())
            watch.on = True
            try:
                target.read(path)
            except (AsvpError, click.UsageError):
                pass
            finally:
                watch.on = False
            if watch.seen or sorted(folder.iterdir()) != before:
                raise RuntimeError(f"the reader did more than read: {watch.seen or sorted(folder.iterdir())}")

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        options = [
            *(f"-max_total_time={asked.seconds}", f"-seed={asked.seed}", f"-timeout={SECONDS_EACH}"),
            *(f"-rss_limit_mb={used + MEMORY_MIB}", f"-artifact_prefix={asked.findings}/{asked.target}-"),
            *("-print_final_stats=1", "-max_len=20000", str(corpus)),
        ]
        is_json = target.seeds[0][:1] == b"{"
        atheris.Setup([sys.argv[0], *options], once, custom_mutator=changed if is_json else None)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
