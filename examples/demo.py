"""The README's `make demo`: protect a trained teacher, show the report, check the file, restore a photograph."""

from __future__ import annotations

import shutil
import subprocess
import sys
import webbrowser
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
PHOTOGRAPHS = HERE.parent / "asvp_export" / "photographs"
TASK = "lowlight"
PICTURE = "dogs_1"


def main() -> None:
    """Run every command of the demo and print where its results lie."""
    build = HERE.parent / "build" / "demo"
    shutil.rmtree(build, ignore_errors=True)
    inputs = build / "inputs"
    inputs.mkdir(parents=True)
    teacher = [f"examples/teachers/{TASK}.safetensors", "--arch", f"examples/nets.py:{TASK}"]
    protected, clean = "build/demo/protected.onnx", "asvp_export/photographs/verify"
    python("examples/degrade.py", TASK, clean, "build/demo/inputs")
    tool(*teacher, "--layers", "auto", "--images", "build/demo/inputs", "--report", "build/demo", "-o", protected)
    tool("check", teacher[0], protected, *teacher[1:], "--images", "build/demo/inputs")
    tool("inspect", protected)
    tool("run", protected, f"build/demo/inputs/{PICTURE}.png", "-o", "build/demo/restored.png")
    before, after = inputs / f"{PICTURE}.png", build / "restored.png"
    strip(build / "strip.png", before, after, PHOTOGRAPHS / "verify" / f"{PICTURE}.webp")
    print("\nDone. Look at")
    print("  build/demo/report.html             what was chosen and verified, with pictures: open it in a browser")
    print("  build/demo/strip.png               degraded, restored by the shipped file, and the clean photograph")
    print("  build/demo/protected.onnx          the file to ship: it runs in a bare onnxruntime")
    print("  build/demo/protected.plan.json     applies the same protection again (--plan)")
    if sys.stdout.isatty():
        webbrowser.open((build / "report.html").as_uri())


def tool(*arguments: str) -> None:
    """Run asvp-export as a user would, from the repository's root."""
    print("\n$ asvp-export " + " ".join(arguments), flush=True)
    run(str(Path(sys.executable).with_name("asvp-export")), *arguments)


def python(script: str, *arguments: str) -> None:
    """Run one of the example scripts, from the repository's root."""
    print(f"\n$ python {script} " + " ".join(arguments), flush=True)
    run(sys.executable, script, *arguments)


def run(*command: str) -> None:
    """Run a command; a failure ends the demo with its exit code."""
    code = subprocess.run(command, cwd=HERE.parent, check=False).returncode
    if code:
        sys.exit(code)


def strip(path: Path, *pictures: Path) -> None:
    """The pictures side by side."""
    panels = [np.asarray(Image.open(picture).convert("RGB")) for picture in pictures]
    Image.fromarray(np.concatenate(panels, axis=1)).save(path)


if __name__ == "__main__":
    main()
