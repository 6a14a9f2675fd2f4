"""Faults while files are written: kill -9, full disks, folders that go, limits on memory and on open files.

Each fault hits an export over an earlier good file (and `run`, over an earlier picture). Held afterwards: the earlier
file or the new one stands, whole; no other file has the output's name; what is left is removed by the next run; where
the command could still speak, it said one sentence. Prints one Markdown table for docs/results/reliability.md.

    python -m benchmarks.reliability_faults [--kills 50] [--sizes 20] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnxruntime as ort

from tests.helpers.teachers import EXAMPLES, save_pictures

NETS = EXAMPLES / "nets.py"
TEACHER = EXAMPLES / "teachers" / "lowlight.safetensors"
Limits = Sequence[tuple[int, int]]
"""What resource.setrlimit takes."""


@dataclass
class Tally:
    """What came of the faults of one kind."""

    tried: int = 0
    earlier: int = 0
    """The earlier file stood afterwards."""

    new: int = 0
    """The new one stood afterwards, whole."""

    lost: list[str] = field(default_factory=list)
    """What was not as promised."""

    def row(self, name: str) -> str:
        """Of the table."""
        held = "nothing lost" if not self.lost else "; ".join(self.lost[:3])
        return f"| {name} | {self.tried} | {self.earlier} | {self.new} | {held} |"


class Workshop:
    """A folder with an earlier good file, in which faults happen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures = save_pictures(folder / "pictures", count=1)
        self.output = folder / "out" / "p.onnx"
        self.output.parent.mkdir()
        for gain, kept in (("2", "earlier"), ("3", "new")):
            done = subprocess.run(self.export(gain), capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            shutil.copyfile(self.output, folder / f"{kept}.onnx")
        self.earlier, self.new = ((folder / f"{name}.onnx").read_bytes() for name in ("earlier", "new"))
        self.names = {path.name for path in self.output.parent.iterdir()}

    def export(self, gain: str) -> list[str]:
        """The command; the gain says which file comes out."""
        return [
            *(sys.executable, "-m", "asvp_export", str(TEACHER), f"--arch={NETS}:lowlight", "--layers=after_body"),
            *(f"--gain={gain}", f"--images={self.pictures}", f"--output={self.output}", "--force", "--quiet"),
        ]

    def reset(self) -> None:
        """The earlier file, and nothing else but what lies beside it."""
        self.output.parent.mkdir(exist_ok=True)
        self.output.write_bytes(self.earlier)

    def judge(self, tally: Tally, what: str, said: str | None = None) -> None:
        """Note which file stands, and whether the command said one sentence (None: it could not)."""
        tally.tried += 1
        content = self.output.read_bytes() if self.output.is_file() else b""
        tally.earlier += content == self.earlier
        tally.new += content == self.new
        if content not in (self.earlier, self.new):
            tally.lost.append(f"{what}: another file has the name")
        else:
            ort.InferenceSession(content, providers=["CPUExecutionProvider"])
        if said is not None and (said.count("Error: ") != 1 or "Traceback" in said):
            tally.lost.append(f"{what}: {said[-200:]!r}")

    def clean_run(self, tally: Tally) -> None:
        """An export that nothing disturbs removes what was left."""
        done = subprocess.run(self.export("3"), capture_output=True, text=True, check=False)
        left = {path.name for path in self.output.parent.iterdir()} - self.names
        if done.returncode or left or self.output.read_bytes() != self.new:
            tally.lost.append(f"after it: exit {done.returncode}, left {sorted(left)}")


def killed(shop: Workshop, kills: int, rng: random.Random) -> Tally:
    """Kill -9 at moments spread over a whole export."""
    started = time.monotonic()
    subprocess.run(shop.export("3"), check=True, capture_output=True)
    whole, tally = time.monotonic() - started, Tally()
    for index in range(kills):
        shop.reset()
        process = subprocess.Popen(shop.export("3"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=whole * 1.1 * (index + rng.random()) / kills)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        shop.judge(tally, f"kill {index}")
    shop.clean_run(tally)
    return tally


def limited(shop: Workshop, limits: Sequence[Limits], ends: set[int]) -> Tally:
    """The command under limits, one after the other; it ends with one of these exit codes or succeeds."""
    tally = Tally()
    for limit in limits:
        shop.reset()

        def set_limits(limit: Limits = limit) -> None:
            for which, most in limit:
                resource.setrlimit(which, (most, most))

        done = subprocess.run(shop.export("3"), capture_output=True, text=True, check=False, preexec_fn=set_limits)
        shop.judge(tally, str(limit), None if done.returncode == 0 else done.stderr)
        if done.returncode not in ends | {0}:
            tally.lost.append(f"{limit}: exit {done.returncode}")
    shop.clean_run(tally)
    return tally


def vanishing(shop: Workshop, count: int, rng: random.Random) -> Tally:
    """The output's folder is removed while the export runs; it comes back empty or not at all."""
    tally = Tally()
    for index in range(count):
        shop.reset()
        process = subprocess.Popen(shop.export("3"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(1 + 4 * rng.random())
        running = process.poll() is None
        shutil.rmtree(shop.output.parent)
        _, said = process.communicate()
        tally.tried += 1
        if running and (process.returncode not in (2, 3) or said.count("Error: ") != 1 or "Traceback" in said):
            tally.lost.append(f"folder {index}: exit {process.returncode}, {said[-200:]!r}")
        if shop.output.exists():
            tally.lost.append(f"folder {index}: it was made again")
    shop.reset()
    shop.clean_run(tally)
    return tally


def pictures_killed(shop: Workshop, kills: int, rng: random.Random) -> Tally:
    """Kill -9 while `run` writes a picture over an earlier one."""
    source, target = min(shop.pictures.iterdir()), shop.folder / "out.png"
    command = [sys.executable, "-m", "asvp_export", "run", str(shop.output), str(source), "-o", str(target), "--force"]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    whole, tally, new = time.monotonic() - started, Tally(), target.read_bytes()
    earlier = source.read_bytes()
    for index in range(kills):
        target.write_bytes(earlier)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=whole * 1.1 * (index + rng.random()) / kills)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        content = target.read_bytes()
        tally.tried += 1
        tally.earlier += content == earlier
        tally.new += content == new
        if content not in (earlier, new):
            tally.lost.append(f"kill {index}: another picture has the name")
    return tally


def main() -> int:
    """Inject everything, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--sizes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        shop = Workshop(Path(name))
        size = len(shop.new)
        sizes = [[(resource.RLIMIT_FSIZE, int(size * 1.2 * (i + 1) / asked.sizes))] for i in range(asked.sizes)]
        memory = [[(resource.RLIMIT_AS, mib << 20)] for mib in (3000, 3500, 4000)]
        files = [[(resource.RLIMIT_NOFILE, most)] for most in (16, 24, 32)]
        kinds: list[tuple[str, Callable[[], Tally]]] = [
            ("export, kill -9", lambda: killed(shop, asked.kills, rng)),
            ("export, files of limited size", lambda: limited(shop, sizes, {3})),
            ("export, limited memory", lambda: limited(shop, memory, {3})),
            ("export, 16 to 32 open files", lambda: limited(shop, files, {2, 3})),
            ("export, its folder goes", lambda: vanishing(shop, max(3, asked.kills // 10), rng)),
            ("run, kill -9", lambda: pictures_killed(shop, asked.kills // 2, rng)),
        ]
        print("| fault | tried | the earlier file stands | the new one stands | |", "|---|---|---|---|---|", sep="\n")
        lost = 0
        for label, inject in kinds:
            tally = inject()
            lost += len(tally.lost)
            print(tally.row(label), flush=True)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
