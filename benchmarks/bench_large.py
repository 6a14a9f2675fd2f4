"""Exporting a model of more than 2 GB: seconds and peak memory of the whole command, beside the size of the weights."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from asvp_export.images import list_images, photographs, read_image, write_image


def large(width: int = 1024, depth: int = 62, stride: int = 16) -> nn.Module:
    """A residual net of 3x3 convolutions, 2.2 GiB at the default width and depth, on a map of few positions."""

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(3, width, stride, stride)
            self.body = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
            self.tail = nn.Sequential(nn.Conv2d(width, 3 * stride**2, 1), nn.PixelShuffle(stride))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features = self.head(x)
            for layer in self.body:
                features = features + 0.1 * torch.relu(layer(features))
            return x + self.tail(features)

    return Large()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=62, help="convolutions of 36 MiB each")
    parser.add_argument("options", nargs="*", help="further options of asvp-export, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, pictures = Path(name), Path(name) / "pictures"
        save_file(large(depth=arguments.depth).state_dict(), folder / "large.safetensors")
        pictures.mkdir()
        write_image(pictures / "one.png", read_image(list_images(photographs("verify"))[0])[:32, :48])
        model = [str(folder / "large.safetensors"), "--arch", f"{__file__}:large"]
        model += ["--arch-args", json.dumps({"depth": arguments.depth})]
        node = ["--layers", f"body.{arguments.depth // 2}", "--gain", "1.01"]
        files = ["--images", str(pictures), "-o", str(folder / "out.onnx")]
        command = [sys.executable, "-m", "asvp_export", *model, *node, *files, *arguments.options]
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=Path(__file__).resolve().parents[1])
        _, status, usage = os.wait4(process.pid, 0)  # of this child alone
        seconds = time.perf_counter() - start
        peak = usage.ru_maxrss / 2**20
        weights = (folder / "large.safetensors").stat().st_size / 2**30
    print(
        f"exit code {os.waitstatus_to_exitcode(status)}: weights {weights:.2f} GiB, {seconds:.0f} s, "
        f"peak {peak:.2f} GiB, {peak / weights:.2f} times the weights"
    )


if __name__ == "__main__":
    main()
