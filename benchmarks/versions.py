"""The core of the suite with the lowest and the newest supported versions of the libraries that read and write ONNX.

Each set gets a virtual environment that has its own copies of them and takes everything else, torch included, from the
environment that runs this: PyTorch of another version is gigabytes. Prints a row of a markdown table for each set.

    python -m benchmarks.versions --folder FOLDER [--only lowest]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("onnx", "onnxruntime", "onnxscript", "onnx-graphsurgeon", "numpy")
CORE = (
    "tests/golden",
    "tests/operator/test_operator.py",
    "tests/operator/test_onnx_function.py",
    "tests/operator/test_native_torch.py",
    "tests/operator/test_native_onnxruntime.py",
    "tests/workflows/test_export.py::test_the_demo_file_runs_in_a_bare_onnxruntime_and_matches_on_the_verify_scenes",
    "tests/workflows/test_export.py::test_sizes_are_free_and_named",
)
SAY = """
import torch, onnx, onnxruntime, onnxscript, numpy
print(*(m.__version__ for m in (torch, onnx, onnxruntime, onnxscript, numpy)), sep=" | ")
"""


def lowest() -> list[str]:
    """What setup.py asks for at least."""
    text = (ROOT / "setup.py").read_text()
    found = [re.search(rf'"{package}>=([\d.]+)', text) for package in PACKAGES]
    return [f"{name}=={match[1]}" for name, match in zip(PACKAGES, found, strict=True) if match]


def environment(folder: Path, wanted: list[str]) -> Path:
    """Make it, with the wanted packages before those of the running environment; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    (own / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # With all that they need, whatever the running environment has: `--ignore-installed`.
    command = [python, "-m", "pip", "install", "-qq", "--ignore-installed", "--upgrade", *wanted]
    subprocess.run(command, check=True)
    return python


def row(name: str, python: Path) -> str:
    """Run the core, and say what came of it."""
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    versions = subprocess.run([python, "-c", SAY], capture_output=True, text=True, check=True, env=settings).stdout
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *CORE]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=settings)
    (python.parents[1] / "pytest.txt").write_text(done.stdout + done.stderr)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    passed = re.findall(r"\d+ (?:passed|failed|errors?)\b", done.stdout)
    return f"| {name} | {versions.strip()} | {', '.join(passed) or f'exit code {done.returncode}'} |\n" + "\n".join(
        lines
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--folder", type=Path, required=True, help="for the environments, about 1 GB")
    arguments.add_argument("--only", choices=("lowest", "newest"))
    chosen = arguments.parse_args()
    print("| versions | torch | onnx | onnxruntime | onnxscript | numpy | tests |\n|---|---|---|---|---|---|---|")
    for name, wanted in (("lowest", lowest()), ("newest", list(PACKAGES))):
        if chosen.only in (None, name):
            print(row(name, environment(chosen.folder / name, wanted)), flush=True)


if __name__ == "__main__":
    main()
