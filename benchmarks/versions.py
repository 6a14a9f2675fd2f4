"""The core of the suite with the lowest and the newest supported versions of PyTorch and of what reads and writes ONNX.

Each set gets a virtual environment that has its own copies of them and takes everything else from the environment that
runs this. PyTorch is among the latter but for `--torch`: it is 3 GB a version, and its CUDA build comes without CUDA's
libraries (`benchmarks.cuda_stand_ins`), so that its CPU half runs. Prints a row of a markdown table for each set.

    python -m benchmarks.versions --folder FOLDER [--only lowest] [--torch]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks import cuda_stand_ins

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("onnx", "onnxruntime", "onnxscript", "onnx-ir", "onnx-graphsurgeon", "numpy")
CORE = (
    "tests/golden",
    "tests/operator/test_operator.py",
    "tests/operator/test_onnx_function.py",
    "tests/operator/test_native_torch.py",
    "tests/runtime/test_native_onnxruntime.py",
    "tests/workflows/test_export.py::test_the_demo_file_runs_in_a_bare_onnxruntime_and_matches_on_the_verify_scenes",
    "tests/teacher/test_onnx_in.py",
    "tests/teacher/test_torchscript_in.py",
    "tests/teacher/test_load_archives.py",
    "tests/teacher/test_load_pickles.py",
    "tests/workflows/test_export.py::test_sizes_are_free_and_named",
)
SHOWN = ("torch", *PACKAGES)
MODULES = ", ".join(SHOWN).replace("-", "_")
SAY = f"import {MODULES}; print(*(m.__version__ for m in ({MODULES})), sep=' | ')"


def floor(package: str) -> str:
    """The version that pyproject.toml asks for at least."""
    match = re.search(rf'"{package}>=([\d.]+)', (ROOT / "pyproject.toml").read_text())
    if match is None:
        raise ValueError(f"pyproject.toml has no floor for {package}")
    return match[1]


def environment(folder: Path, packages: list[str], torch: str | None) -> tuple[Path, dict[str, str]]:
    """Make it, with the wanted packages before those of the running environment.

    Returns:
        its Python; the environment variables to run that with.
    """
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site_packages = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    (site_packages / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # With all that they need, whatever the running environment has: `--ignore-installed`.
    install = [python, "-m", "pip", "install", "-qq", "--ignore-installed", "--upgrade"]
    subprocess.run([*install, *packages], check=True)
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if torch:
        subprocess.run([*install, "--no-deps", torch], check=True)
        cuda_stand_ins.make(site_packages / "torch" / "lib", folder / "cuda")
        settings["LD_LIBRARY_PATH"] = str(folder / "cuda")
    return python, settings


def row(name: str, python: Path, settings: dict[str, str]) -> str:
    """Run the core, and say what came of it."""
    versions = subprocess.run([python, "-c", SAY], capture_output=True, text=True, check=True, env=settings).stdout
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *CORE]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=settings)
    (python.parents[1] / "pytest.txt").write_text(process.stdout + process.stderr)
    lines = [line for line in process.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    passed = re.findall(r"\d+ (?:passed|failed|errors?)\b", process.stdout)
    return f"| {name} | {versions.strip()} | {', '.join(passed) or f'exit code {process.returncode}'} |\n" + "\n".join(
        lines
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--folder", type=Path, required=True, help="for the environments, 1 GB; 7 GB with --torch")
    arguments.add_argument("--only", choices=("lowest", "newest"))
    arguments.add_argument("--torch", action="store_true", help="PyTorch of these versions too")
    chosen = arguments.parse_args()
    print(f"| versions | {' | '.join(SHOWN)} | tests |\n|{'---|' * (len(SHOWN) + 2)}")
    for name in ("lowest", "newest"):
        packages = [f"{package}=={floor(package)}" if name == "lowest" else package for package in SHOWN]
        if chosen.only in (None, name):
            python_and_settings = environment(chosen.folder / name, packages[1:], packages[0] if chosen.torch else None)
            print(row(name, *python_and_settings), flush=True)


if __name__ == "__main__":
    main()
