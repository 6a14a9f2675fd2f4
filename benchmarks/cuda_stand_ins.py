"""Empty libraries in the place of CUDA's: with them PyTorch's CUDA build computes on the CPU, without gigabytes.

A package registry has most versions of PyTorch as a build for CUDA alone. That build does not load where CUDA's
libraries are missing, and calls none of them where there is no GPU. So each function of a stand-in returns 100,
cudaErrorNoDevice, and does nothing. Linux with gcc, ldd and readelf.

    python -m benchmarks.cuda_stand_ins TORCH/lib FOLDER
    LD_LIBRARY_PATH=FOLDER python -c "import torch"
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections import defaultdict
from pathlib import Path

# Libraries without symbol versions: what is looked for in them is told by its name.
CUDA = re.compile(r"_*(cu|nccl|nv)")


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def missing(libraries: list[Path]) -> set[str]:
    """The names of those that the system's loader does not find."""
    return {name for path in libraries for name in re.findall(r"(\S+) => not found", output_of("ldd", path))}


def versions(library: Path) -> dict[str, str]:
    """Symbol version to the name of the library that has to have it."""
    owners, owner = {}, ""
    for line in output_of("readelf", "-VW", library).splitlines():
        if match := re.search(r"File: (\S+)", line):
            owner = match[1]
        elif owner and (match := re.search(r"Name: (\S+)\s+Flags", line)):
            owners[match[1]] = owner
    return owners


def symbols(library: Path) -> tuple[set[str], dict[str, str]]:
    """Names that a library defines; names that it looks for, each with the symbol version or an empty text."""
    defined, undefined = set(), {}
    for line in output_of("readelf", "-W", "--dyn-syms", library).splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[0].endswith(":") and fields[0] != "Num:":
            name, _, version = fields[7].partition("@")
            if fields[6] == "UND":
                undefined[name] = version
            else:
                defined.add(name)
    return defined, undefined


def build(soname: str, by_version: dict[str, set[str]], folder: Path) -> None:
    """Compile one stand-in, with these functions under these symbol versions."""
    source, script = folder / f"{soname}.c", folder / f"{soname}.map"
    names = sorted(set().union(*by_version.values()))
    source.write_text("".join(f"long {name}(void) {{ return 100; }}\n" for name in names) or "typedef int none;\n")
    nodes = [f"{version} {{ global: {'; '.join(sorted(group))}; }};\n" for version, group in by_version.items()]
    script.write_text("".join(node for version, node in zip(by_version, nodes, strict=True) if version))
    options = [f"-Wl,--version-script={script}"] if script.stat().st_size else []
    command = ["gcc", "-shared", "-fPIC", "-fno-builtin", "-w", f"-Wl,-soname,{soname}", *options]
    subprocess.run([*command, "-o", folder / soname, source], check=True)


def make(lib: Path, folder: Path) -> list[str]:
    """Write stand-ins for what the libraries of PyTorch lack into a folder; return their names.

    Args:
        lib: the folder `lib` of an installed torch. A build for the CPU lacks nothing.

    Raises:
        subprocess.CalledProcessError: a tool failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    libraries = [*sorted(lib.glob("*.so*")), *sorted(lib.parent.glob("_C*.so"))]
    stand_ins: dict[str, dict[str, set[str]]] = {soname: defaultdict(set) for soname in sorted(missing(libraries))}
    defined, loose = set(), set()
    for library in libraries:
        defined_here, undefined = symbols(library)
        owners = versions(library)
        defined |= defined_here
        for name, version in undefined.items():
            if not version:
                loose.add(name)
            elif (owner := owners.get(version)) in stand_ins:
                stand_ins[owner][version].add(name)
    unversioned = {name for name in loose - defined if CUDA.match(name)}
    for soname, by_version in stand_ins.items():
        build(soname, by_version or {"": unversioned}, folder)
    return list(stand_ins)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("lib", type=Path, metavar="TORCH/lib")
    arguments.add_argument("folder", type=Path)
    chosen = arguments.parse_args()
    print(*make(chosen.lib, chosen.folder), sep="\n")


if __name__ == "__main__":
    main()
