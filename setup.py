"""Builds the native library of custom_ops/ with CMake where there is a C++ compiler; pyproject.toml has the rest."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
LIBRARY = "libasvp.dylib" if sys.platform == "darwin" else "libasvp.so"


class BuildLibrary(build_ext):
    """Builds custom_ops/ and puts the library into the package; without a compiler the package does without it.

    CMAKE_ARGS goes to CMake as it is: CMAKE_ARGS="-DASVP_CUDA=OFF" pip install .
    """

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")[:-1], LIBRARY))

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name))
        target.unlink(missing_ok=True)  # an older one must not pass for what is built now
        try:
            built = self._built()
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(built, target)
        except (RuntimeError, OSError, ValueError) as error:
            self.warn(f"no native library ({error}); the operator's function body runs instead, slower")

    def copy_extensions_to_source(self):
        (HERE / "asvp_export" / "operator" / LIBRARY).unlink(missing_ok=True)  # as above, in an editable installation
        super().copy_extensions_to_source()

    def _built(self) -> Path:
        folder = HERE / "build" / f"native-{sysconfig.get_platform()}"
        wanted = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        compiler = _nvcc()
        cuda = [f"-DCMAKE_CUDA_COMPILER={compiler}"] if compiler else []
        try:
            _cmake(folder, *cuda, *wanted)
        except RuntimeError as error:
            if not compiler or {"-DASVP_CUDA=ON", "-DASVP_CUDA=OFF"} & set(wanted):
                raise
            self.warn(f"the CUDA half does not build ({error}); this library will serve the CPU alone")
            _cmake(folder, *wanted, "-DASVP_CUDA=OFF")
        return folder / LIBRARY


def _cmake(folder: Path, *options: str) -> None:
    """Configure and build the library in `folder`. Raises RuntimeError with the first line of what went wrong."""
    tool = shutil.which("cmake")
    if tool is None:
        raise RuntimeError("there is no CMake")
    # Options and paths of an earlier build must not stay; what it compiled may.
    (folder / "CMakeCache.txt").unlink(missing_ok=True)
    jobs = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for command in (
        [tool, "-S", str(HERE / "custom_ops"), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release", *options],
        [tool, "--build", str(folder), "--parallel", jobs, "--target", "asvp"],
    ):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        print(done.stdout, file=sys.stderr)
        if done.returncode:
            lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
            wrong = [i for i, line in enumerate(lines) if "error" in line.lower()]
            if wrong and lines[wrong[0]].endswith("(message):"):  # CMake says the rest on the next line
                wrong[0] = min(wrong[0] + 1, len(lines) - 1)
            raise RuntimeError(lines[wrong[0]] if wrong else f"CMake ended with {done.returncode}")


def _nvcc() -> "str | None":
    """CUDA's compiler: the one named by CUDACXX, on the PATH, of an installed toolkit, or of pip's nvidia-cuda-nvcc."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    places = [Path(home) for home in homes if home] + sorted(packages.glob("cu*/"), reverse=True)
    named = [os.environ.get("CUDACXX"), shutil.which("nvcc"), *(str(place / "bin" / "nvcc") for place in places)]
    return next((found for found in named if found and Path(found).is_file()), None)


class Wheel(bdist_wheel):
    """Tagged py3-none-<platform>, for the library needs no Python; without the library it fits any platform."""

    def get_tag(self):
        there = any(Path(self.bdist_dir).rglob(LIBRARY)) if self.bdist_dir else True
        return ("py3", "none", super().get_tag()[2]) if there else ("py3", "none", "any")


setup(
    ext_modules=[Extension("asvp_export.operator.libasvp", sources=[], optional=True)],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
