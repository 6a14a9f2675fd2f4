"""The wheel, installed into a clean environment with the sources out of the way; and one built without a compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "constraints.txt",
    "asvp_export",
    "custom_ops",
)


def surrounded(environment: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **environment}


def copy_sources(folder: Path) -> None:
    folder.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "libasvp.*"))
        else:
            shutil.copyfile(ROOT / name, folder / name)


def build_in_place(folder: Path, **environment: str) -> str:
    """What an editable installation does, and what was said meanwhile."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, env=surrounded(environment), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def built(folder: Path, **environment: str) -> tuple[Path, str]:
    """The wheel of `python -m build`, by way of the source distribution, and what was said meanwhile."""
    source = folder / "source"
    copy_sources(source)
    command = [sys.executable, "-m", "build", "--outdir", folder / "dist", source]
    # The tools that build it come from the environment of the tests: nothing is fetched for them again.
    offline = ["unshare", "--map-root-user", "--net"]
    offline = offline if subprocess.run([*offline, "true"], capture_output=True).returncode == 0 else []
    done = subprocess.run(
        [*offline, *command, "--no-isolation", "--skip-dependency-check"],
        env=surrounded(environment),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(source)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel, done.stdout + done.stderr


def installed(wheel: Path, folder: Path) -> Path:
    """Python of a new environment with the wheel; what the wheel depends on is lent by the environment of the tests."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    target = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(command, check=True)
    (Path(target) / "lent.pth").write_text(
        sysconfig.get_path("purelib") + "\n"
    )  # paths only: no editable install comes along
    return python


def said(python: Path, code: str, folder: Path) -> list[str]:
    done = subprocess.run([python, "-I", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


ROAD = """
import asvp_export, torch, sys
from asvp_export.operator import native
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 3, padding=1))
protected = asvp_export.protect(asvp_export.load(net), "0", gain=1.001)
result = asvp_export.export(protected, "p.onnx", sizes=[(48, 64), (33, 41)], min_psnr=20)
print(asvp_export.__file__)
print(result.passed)
print(sorted({score.execution_path for score in result.preservation.per_image}))
print(native.unavailable())
"""


def test_the_wheel_serves_every_python_and_brings_the_library(tmp_path):
    wheel, log = built(tmp_path, CMAKE_ARGS="-DASVP_CUDA=OFF")
    assert "does not build" not in log and "no native library" not in log
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "asvp_export/operator/libasvp.so" in names
    assert "asvp_export/report/templates/page.html" in names
    assert not [name for name in names if name.startswith(("custom_ops", "tests", "examples", "benchmarks"))]
    environment = surrounded({})
    repair = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", tmp_path / "true", wheel]
    subprocess.run(repair, env=environment, check=True, capture_output=True)
    (tagged,) = (tmp_path / "true").iterdir()
    assert re.fullmatch(r"asvp_export-[\d.]+-py3-none-(manylinux\w+\.?)+\.whl", tagged.name)
    (sdist,) = wheel.parent.glob("*.tar.gz")
    checked = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", sdist, tagged], capture_output=True)
    assert checked.returncode == 0, checked.stdout
    python = installed(tagged, tmp_path / "clean")
    package, passed, ways, unavailable = said(python, ROAD, tmp_path)
    assert Path(package).is_relative_to(tmp_path / "clean")
    assert (passed, ways, unavailable) == ("True", "['function', 'library']", "None")
    (path,) = said(python, "import asvp_export; print(asvp_export.library_path())", tmp_path)
    assert Path(path).is_relative_to(tmp_path / "clean")


def test_without_a_compiler_the_installation_succeeds_and_the_body_runs(tmp_path):
    wheel, log = built(tmp_path, CXX=str(tmp_path / "no-such-compiler"), CC=str(tmp_path / "no-such-compiler"))
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "no native library" in log
    python = installed(wheel, tmp_path / "clean")
    _, passed, ways, unavailable = said(python, ROAD, tmp_path)
    assert (passed, ways) == ("True", "['function']")
    assert "no native library" in unavailable
    picture = next((ROOT / "asvp_export" / "photographs" / "verify").glob("*.webp"))
    command = [tmp_path / "clean" / "bin" / "asvp-export", "run", "p.onnx", picture, "-o", "o.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o.png").exists()


def test_a_moved_tree_is_built_anew_and_an_nvcc_that_fails_leaves_a_library_for_the_cpu(tmp_path):
    """CMake keeps options and places of a build; none may reach the next one. Three builds, for two promises."""
    first, second = tmp_path / "first", tmp_path / "second"
    library = Path("asvp_export", "operator", "libasvp.so")
    copy_sources(first)
    build_in_place(first, CMAKE_ARGS="-DASVP_CUDA=OFF -DCMAKE_BUILD_TYPE=Debug")
    assert (first / library).exists()
    first.rename(second)
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    log = build_in_place(
        second, CUDACXX=str(broken), CMAKE_ARGS=""
    )  # CUDA is not off any more, whatever runs the tests says
    assert "without CUDA" in log or "serve the CPU alone" in log
    cache = next(second.glob("build/native-*/CMakeCache.txt")).read_text()
    assert "CMAKE_BUILD_TYPE:STRING=Release" in cache or "CMAKE_BUILD_TYPE:UNINITIALIZED=Release" in cache
    assert (second / library).exists()
    build_in_place(second, CXX=str(tmp_path / "no-such-compiler"), CC=str(tmp_path / "no-such-compiler"))
    assert not (second / library).exists(), "an old library passes for the new one"
