"""A command that writes over an earlier file, the faults that hit it, and what is held afterwards."""

from __future__ import annotations

import contextlib
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Limits = Sequence[tuple[int, int]]
"""What resource.setrlimit takes."""

_PAGE = 4096  # bytes; a tmpfs counts in pages
_UNPRIVILEGED = ["setpriv", "--bounding-set=-all"]  # root without its rights: permissions hold


@dataclass
class Tally:
    """What came of the faults of one kind."""

    count: int = 0
    earlier: int = 0
    """The earlier file stood afterwards."""

    new: int = 0
    """The new one stood afterwards, whole."""

    lost: list[str] = field(default_factory=list)
    """What was not as promised."""

    skipped: str = ""
    """Why nothing was tried."""

    def row(self, name: str) -> str:
        """Of the table."""
        if self.skipped:
            return f"| {name} | 0 | | | not tried: {self.skipped} |"
        held = "nothing lost" if not self.lost else "; ".join(self.lost[:3])
        return f"| {name} | {self.count} | {self.earlier} | {self.new} | {held} |"


@dataclass
class Subject:
    """A command that writes a file over an earlier one, in a folder of its own."""

    output: Path
    """The file; a command may write others beside it."""

    earlier_command: list[str]
    """What writes the earlier file."""

    command: list[str]
    """What the faults hit."""

    valid: Callable[[bytes], object]
    """Raises where a content is not whole."""

    cache: Path | None = None
    """A folder that the command keeps results in, emptied before each fault."""

    def __post_init__(self) -> None:
        self.folder = self.output.parent
        self.folder.mkdir(exist_ok=True)
        self._undisturbed(self.earlier_command)
        self.before = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        self.empty_cache()
        started = time.monotonic()
        self._undisturbed(self.command)
        self.seconds = time.monotonic() - started
        self.earlier, self.new = self.before[self.output.name], self.output.read_bytes()
        assert self.earlier != self.new
        self.names = {path.name for path in self.folder.iterdir()}

    def _undisturbed(self, command: list[str]) -> None:
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr

    def empty_cache(self) -> None:
        """What an earlier run kept is gone."""
        if self.cache:
            for path in self.cache.glob("*"):
                path.unlink()

    def reset(self) -> None:
        """The earlier file and what lies beside it, and nothing else."""
        self.folder.mkdir(exist_ok=True)
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, content in self.before.items():
            (self.folder / name).write_bytes(content)

    def judge(self, tally: Tally, fault: str, message: str | None = None) -> None:
        """Note which file stands, and whether the command said one sentence (None: it could not, or succeeded)."""
        tally.count += 1
        content = self.output.read_bytes() if self.output.is_file() else b""
        tally.earlier += content == self.earlier
        tally.new += content == self.new
        if content in (self.earlier, self.new):
            self.valid(content)
        else:
            tally.lost.append(f"{fault}: another file has the name")
        if message is not None and not _one_sentence(message):
            tally.lost.append(f"{fault}: {message[-200:]!r}")

    def clean_run(self, tally: Tally, moment: str = "after it") -> None:
        """A run that nothing disturbs removes what was left, and gives what it would have given."""
        process = subprocess.run(self.command, capture_output=True, text=True, check=False)
        leftovers = {path.name for path in self.folder.iterdir()} - self.names
        if process.returncode or leftovers or self.output.read_bytes() != self.new:
            tally.lost.append(f"{moment}: exit {process.returncode}, left {sorted(leftovers)}")

    def hit(
        self, tally: Tally, fault: str, ends: set[int], command: list[str] | None = None, limit: Limits = ()
    ) -> None:
        """Run the command under a fault; it succeeds, or says one sentence and ends with one of these exit codes."""

        def set_limits() -> None:
            for which, most in limit:
                resource.setrlimit(which, (most, most))

        process = subprocess.run(
            command or self.command, capture_output=True, text=True, check=False, preexec_fn=set_limits
        )
        self.judge(tally, fault, None if process.returncode == 0 else process.stderr)
        if process.returncode not in ends | {0}:
            tally.lost.append(f"{fault}: exit {process.returncode}")


def _one_sentence(message: str) -> bool:
    """A file that stands although a report could not be written has sentences of its own."""
    return "Traceback" not in message and "not foreseen" not in message and message.count("Error: ") == 1


def killed(subject: Subject, kills: int, rng: random.Random) -> Tally:
    """Kill -9 at moments spread over a whole run. With a cache, each is run again: it goes on where it was."""
    tally = Tally()
    for index in range(kills):
        subject.reset()
        subject.empty_cache()
        process = subprocess.Popen(subject.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=subject.seconds * 1.1 * (index + rng.random()) / kills)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        subject.judge(tally, f"kill {index}")
        if subject.cache:
            modified = {path: path.stat().st_mtime_ns for path in subject.cache.glob("*.json")}
            subject.clean_run(tally, f"after kill {index}")
            if any(path.stat().st_mtime_ns != when for path, when in modified.items()):
                tally.lost.append(f"after kill {index}: what was done was done again")
    subject.clean_run(tally)
    return tally


def limited(subject: Subject, limits: Sequence[Limits], ends: set[int]) -> Tally:
    """The command under limits, one after the other."""
    tally = Tally()
    for limit in limits:
        subject.reset()
        subject.hit(tally, str(limit), ends, limit=limit)
    subject.clean_run(tally)
    return tally


def full(subject: Subject, count: int) -> Tally:
    """The disk of the output is full: a tmpfs that holds the earlier files and this much, from nothing to enough."""
    tally = Tally(skipped=_no_mounts())
    used = sum(-(-len(content) // _PAGE) + 1 for content in subject.before.values()) * _PAGE
    room = sum((subject.folder / name).stat().st_size for name in subject.names) * 1.5 + 4 * _PAGE
    for index in range(0 if tally.skipped else count):
        free = int(room * index / max(1, count - 1))
        with tmpfs(subject.folder, used + free):
            subject.reset()
            subject.hit(tally, f"{free} bytes free", {3})
            if leftovers := {path.name for path in subject.folder.iterdir()} - subject.names:
                tally.lost.append(f"{free} bytes free: left {sorted(leftovers)}")
    return tally


def full_cache(subject: Subject, count: int) -> Tally:
    """The disk of the cache is full."""
    tally, cache = Tally(skipped=_no_mounts()), subject.cache
    assert cache
    for index in range(0 if tally.skipped else count):
        subject.reset()
        with tmpfs(cache, (1 + 6 * index) * _PAGE):
            subject.hit(tally, f"cache of {1 + 6 * index} pages", {3})
    return tally


def read_only(subject: Subject, folder: Path | None = None) -> Tally:
    """A folder (None: the output's) that may not be written to: its file system is read-only, or its permissions."""
    tally, folder = Tally(skipped=_no_mounts()), folder or subject.folder
    if not tally.skipped:
        with tmpfs(folder, 2**26):
            subject.reset()
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            subject.hit(tally, "read-only file system", {2, 3})
    subject.reset()
    if shutil.which("setpriv") and not subprocess.run([*_UNPRIVILEGED, "true"], check=False).returncode:
        folder.chmod(0o555)
        try:
            subject.hit(tally, "read-only folder", {2}, [*_UNPRIVILEGED, *subject.command])
        finally:
            folder.chmod(0o755)
    return tally


@contextlib.contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[None]:
    """Within the block a folder is an empty file system of so many bytes, in whole pages."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "asvp", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _no_mounts() -> str:
    """Why nothing can be mounted here; "" where it can."""
    with tempfile.TemporaryDirectory() as name:
        try:
            with tmpfs(Path(name), _PAGE):
                return ""
        except (OSError, subprocess.CalledProcessError):
            return "mounting a tmpfs is not allowed here"
