"""Exporting a model of more than 2 GB: seconds and peak memory of the whole command, against the size of the weights."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from asvp_export.images import list_images, photographs, read_image, write_image


def large(width: int = 8192) -> nn.Module:
    """A residual net whose one 3x3 convolution holds 2.4 GB at the default width."""

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 3, padding=1)
            self.tail = nn.Conv2d(width, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.tail(torch.relu(self.body(self.head(x))))

    return Large()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        module, pictures = large(), folder / "pictures"
        save_file(module.state_dict(), folder / "large.safetensors")
        del module
        pictures.mkdir()
        write_image(pictures / "one.png", read_image(list_images(photographs("verify"))[0])[:9, :12])
        command = [
            sys.executable, "-m", "asvp_export", str(folder / "large.safetensors"), "--arch", f"{__file__}:large",
            "--layers", "tail", "--gain", "1.01", "--images", str(pictures), "-o", str(folder / "out.onnx"), "--quiet",
        ]  # fmt: skip
        start = time.perf_counter()
        code = subprocess.run(command, cwd=Path(__file__).resolve().parents[1]).returncode
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        weights = (folder / "large.safetensors").stat().st_size / 2**30
    print(
        f"exit code {code}: weights {weights:.2f} GiB, {seconds:.0f} s, peak {peak:.1f} GiB, {peak / weights:.1f} times the weights"
    )


if __name__ == "__main__":
    main()
