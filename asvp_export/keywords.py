"""The options as keywords of the public functions; a test holds names and types against `asvp_export.options`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from asvp_export.options import Size

_Path = str | Path


class LoadKeywords(TypedDict, total=False):
    """`LoadOptions`."""

    arch: str | None
    arch_args: dict[str, Any] | None
    weights_key: str | None
    trust_pickle: bool
    data_range: Any
    main_output: str | None
    norm_statistics: str
    inputs: _Path | None
    layout: str | None
    device: str
    probe_timeout: float


class NodeKeywords(TypedDict, total=False):
    """`ProtectOptions`."""

    rank: int | str
    gain: float | str
    residual: float | str | None
    max_gain: float
    compensate: str
    energy: float
    axis: int | None


class GateKeywords(TypedDict, total=False):
    """`GateOptions`."""

    images: _Path | None
    sizes: tuple[Size, ...] | list[Size]
    thorough: bool
    min_psnr: float
    provider: str


class ProtectKeywords(NodeKeywords, GateKeywords, total=False):
    """Of `protect`."""

    verify_images: _Path | None
    dtype: str


class ExportKeywords(GateKeywords, total=False):
    """`GateOptions` and `FileOptions`, of `export`."""

    opset: int | None
    dtype: str
    static: bool
    static_batch: bool
    external_data: bool
    portable: str
    force: bool
    keep_failed: bool
    ground_truth: _Path | None
