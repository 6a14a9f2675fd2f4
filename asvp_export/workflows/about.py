"""What a bug report needs: versions, the platform, and what runs the operator here."""

from __future__ import annotations

import onnxruntime as ort
import torch

from asvp_export.environment import conflicting_onnxruntime, environment
from asvp_export.operator import native


def about() -> dict[str, str]:
    """Name to value, in words; nothing in it names the machine or its user."""
    cuda = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return {
        **{name: "not installed" if value is None else str(value) for name, value in environment().items()},
        "onnxruntime providers": ", ".join(ort.get_available_providers()),
        "CUDA devices of PyTorch": cuda or "none",
        "native library": native.unavailable() or f"kernels {native.kernels()}",
        "its CUDA kernels": native.cuda_unavailable() or "there",
        "several onnxruntimes": conflicting_onnxruntime() or "no",
    }
