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
    probe_memory: int | None


class NodeKeywords(TypedDict, total=False):
    """`ProtectOptions`."""

    rank: int | str
    gain: float | str
    residual: float | str | None
    max_gain: float
    compensate: str
    energy: float
    axis: int | None


class InputKeywords(TypedDict, total=False):
    """`GateOptions`, of verbs that run no file."""

    images: _Path | None
    sizes: tuple[Size, ...] | list[Size]
    thorough: bool
    min_psnr: float


class GateKeywords(InputKeywords, total=False):
    """`GateOptions`."""

    provider: str


class FileKeywords(TypedDict, total=False):
    """`FileOptions`."""

    opset: int | None
    dtype: str
    static: bool
    static_batch: bool
    external_data: bool
    portable: str
    force: bool
    keep_failed: bool
    ground_truth: _Path | None


class ReportKeywords(TypedDict, total=False):
    """`ReportOptions`, of verbs that ship nothing."""

    report: _Path | None
    junit: _Path | None


class TileKeywords(TypedDict, total=False):
    """`TileOptions`."""

    tile: int | None
    overlap: int


class ProtectKeywords(LoadKeywords, NodeKeywords, InputKeywords, total=False):
    """`LoadOptions`, `ProtectOptions`, and what `protect` uses of `GateOptions` and `FileOptions`."""

    dtype: str
    force: bool


class ExportKeywords(LoadKeywords, NodeKeywords, GateKeywords, FileKeywords, ReportKeywords, total=False):
    """`LoadOptions`, `ProtectOptions`, `GateOptions`, `FileOptions` and `ReportOptions`, of `export`."""

    model_card: bool


class CheckKeywords(LoadKeywords, GateKeywords, TileKeywords, ReportKeywords, total=False):
    """`LoadOptions`, `GateOptions`, `TileOptions` and `ReportOptions`, of `check`."""


class RunKeywords(TileKeywords, total=False):
    """`RunOptions` and `TileOptions`, of `run`."""

    provider: str
    force: bool
    inputs: _Path | None


class AuditKeywords(LoadKeywords, NodeKeywords, InputKeywords, total=False):
    """`AuditOptions` and those of a model that is protected here, of `audit`."""

    task: str | None
    data: _Path | None
    student: str
    student_args: dict[str, Any] | None
    profile: str
    rows: tuple[str, ...] | list[str]
    seeds: int | None
    steps: int | None
    require: tuple[str, ...] | list[str]
    report: _Path | None
    cache: _Path
    jobs: int
    backend: str
    address: str
