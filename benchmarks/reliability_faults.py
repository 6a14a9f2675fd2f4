"""Faults while files are written: kill -9, full disks, folders that are read-only or go, too little memory, few files.

Each fault hits an export over an earlier good file, `run` over an earlier picture, or an audit over an earlier report.
Held afterwards: the earlier file or the new one stands, whole; no other file has the output's name; what is left is
removed by the next run; where the command could still speak, it said one sentence. An audit that was killed goes on and
gives the report of one that was not. Prints one Markdown table for docs/results/reliability.md. Full disks and
read-only file systems are mounted, which takes root.

    python -m benchmarks.reliability_faults [--kills 50] [--sizes 20] [--seed 0] [--only TEXT]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

from asvp_export.images import list_images, photographs, read_image
from benchmarks._faults import Subject, Tally, full, full_cache, killed, limited, read_only
from tests.helpers.teachers import arch, save_pictures, weights

_TOOL = [sys.executable, "-m", "asvp_export"]
_TASK = "lowlight"
_TEACHER = [str(weights(_TASK)), f"--arch={arch(_TASK)}"]
_MEMORY = (100, 600, 1000, *range(1200, 1500, 25), 1600, 2000, 3000)  # MiB of addresses
_FILES = (*range(5, 17), 24, 32)


def export_subject(folder: Path) -> Subject:
    """An export; the gain says which file comes out."""
    pictures, output = save_pictures(folder / "pictures", count=1), folder / "out" / "p.onnx"

    def command(gain: str) -> list[str]:
        options = ["--layers=after_body", f"--gain={gain}", f"--images={pictures}", f"--output={output}"]
        return [*_TOOL, *_TEACHER, *options, "--force", "--quiet"]

    return Subject(
        output,
        command("2"),
        command("3"),
        lambda content: ort.InferenceSession(content, providers=["CPUExecutionProvider"]),
    )


def run_subject(folder: Path, model: Path) -> Subject:
    """`run` over another picture."""
    source, target = list_images(folder / "pictures")[0], folder / "restored" / "out.png"
    target.parent.mkdir()
    shipped = folder / "shipped.onnx"
    shutil.copyfile(model, shipped)
    command = [*_TOOL, "run", str(shipped), str(source), "-o", str(target), "--force", "--quiet"]
    return Subject(target, ["cp", str(source), str(target)], command, lambda content: None)


def audit_subject(folder: Path) -> Subject:
    """A short audit, over the report of a shorter one."""
    clean, cache = folder / "clean", folder / "cache"
    clean.mkdir()
    cache.mkdir()
    for source in list_images(photographs("train"))[:8]:
        pixels = np.rint(read_image(source)[64:136, 64:144] * 255).astype(np.uint8)
        Image.fromarray(pixels).save(clean / f"{source.stem}.png")
    output = folder / "report" / f"{_TASK}.audit.json"

    def command(steps: int) -> list[str]:
        options = [
            f"--task={_TASK}",
            f"--data={clean}",
            f"--student={arch(_TASK)}_student",
            f"--steps={steps}",
            "--seeds=2",
        ]
        options += [f"--report={output.parent}", f"--cache={cache}", "--rows=shipped/outputs,shipped/mse-1", "--jobs=2"]
        return [*_TOOL, "audit", *_TEACHER, "--layers=after_body", "--gain=3", *options, "--quiet"]

    return Subject(output, command(1), command(20), json.loads, cache)


def vanishing(subject: Subject, count: int, rng: random.Random) -> Tally:
    """The output's folder is removed while the command runs; it is not made again."""
    tally = Tally()
    for index in range(count):
        subject.reset()
        process = subprocess.Popen(subject.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(subject.seconds * rng.random())
        running = process.poll() is None
        shutil.rmtree(subject.folder)
        _, message = process.communicate()
        tally.count += 1
        if running and (process.returncode not in (2, 3) or message.count("Error: ") != 1 or "Traceback" in message):
            tally.lost.append(f"folder {index}: exit {process.returncode}, {message[-200:]!r}")
        if subject.output.exists():
            tally.lost.append(f"folder {index}: it was made again")
    subject.reset()
    subject.clean_run(tally)
    return tally


def file_sizes(subject: Subject, count: int) -> list[list[tuple[int, int]]]:
    """Limits on the size of a file, up to one that is enough."""
    largest = max((subject.folder / name).stat().st_size for name in subject.names)
    return [[(resource.RLIMIT_FSIZE, int(largest * 1.2 * (index + 1) / count))] for index in range(count)]


class Subjects:
    """The commands, each set up when its first fault is due."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def export(self) -> Subject:
        """See `export_subject`."""
        return export_subject(self._folder)

    @cached_property
    def run(self) -> Subject:
        """See `run_subject`."""
        return run_subject(self._folder, self.export.output)

    @cached_property
    def audit(self) -> Subject:
        """See `audit_subject`."""
        return audit_subject(self._folder)


def kinds(subjects: Subjects, arguments: argparse.Namespace) -> dict[str, Callable[[], Tally]]:
    """Names of the faults to what injects them."""
    rng = random.Random(arguments.seed)
    memory = [[(resource.RLIMIT_AS, mebibytes << 20)] for mebibytes in _MEMORY]
    files = [[(resource.RLIMIT_NOFILE, most)] for most in _FILES]
    few = max(3, arguments.kills // 5)
    return {
        "export, kill -9": lambda: killed(subjects.export, arguments.kills, rng),
        "export, full disk": lambda: full(subjects.export, arguments.sizes),
        "export, files of limited size": lambda: limited(
            subjects.export, file_sizes(subjects.export, arguments.sizes), {3}
        ),
        "export, read-only folder": lambda: read_only(subjects.export),
        "export, its folder goes": lambda: vanishing(subjects.export, max(3, arguments.kills // 10), rng),
        "export, limited memory (100 to 3,000 MiB of addresses)": lambda: limited(subjects.export, memory, {3}),
        "export, 5 to 32 open files": lambda: limited(subjects.export, files, {3}),
        "run, kill -9": lambda: killed(subjects.run, arguments.kills // 2, rng),
        "run, full disk": lambda: full(subjects.run, few),
        "run, files of limited size": lambda: limited(subjects.run, file_sizes(subjects.run, arguments.sizes), {3}),
        "run, read-only folder": lambda: read_only(subjects.run),
        "audit, kill -9, then run again": lambda: killed(subjects.audit, few, rng),
        "audit, full disk of the report": lambda: full(subjects.audit, few),
        "audit, full disk of the cache": lambda: full_cache(subjects.audit, few // 2),
        "audit, read-only folder of the report": lambda: read_only(subjects.audit),
        "audit, read-only cache": lambda: read_only(subjects.audit, subjects.audit.cache),
    }


def main() -> int:
    """Inject everything, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--sizes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="Faults whose names hold this.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        subjects = Subjects(Path(name))
        print("| fault | tried | the earlier file stands | the new one stands | |", "|---|---|---|---|---|", sep="\n")
        lost = 0
        for label, inject in kinds(subjects, arguments).items():
            if arguments.only in label:
                tally = inject()
                lost += len(tally.lost)
                print(tally.row(label), flush=True)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
