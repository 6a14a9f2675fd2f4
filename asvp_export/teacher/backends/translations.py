"""What PyTorch's exporter has no ONNX for: onnxscript functions for its table, and calls put in its words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18
from onnxscript.function_libs.torch_lib.ops.core import aten_pow_tensor_scalar
from torch.overrides import TorchFunctionMode

op: Any = opset18  # its methods are typed for values of a graph


def translations() -> dict[Any, Callable[..., Any]]:
    """From an operator of PyTorch to what writes it."""
    return {torch.ops.aten.sort.stable: _sort_stable, torch.ops.aten.pow.Tensor_Scalar: _pow}


def _sort_stable(x, stable: bool = False, dim: int = -1, descending: bool = False):
    """torch.sort(x, stable=...): ONNX's TopK over the whole axis, which keeps the order of equal values."""
    length = op.Reshape(op.Gather(op.Shape(x), op.Constant(value_int=dim)), op.Constant(value_ints=[1]))
    return op.TopK(x, length, axis=dim, largest=descending, sorted=True)


def _pow(x, exponent):
    """torch.pow(x, number), also where the number comes out of a tensor: x ** parameter.item()."""
    if isinstance(exponent, (int, float)):
        return aten_pow_tensor_scalar(x, exponent)
    return op.Pow(x, op.CastLike(exponent, x))


class OneTypeOfBounds(TorchFunctionMode):
    """Within it, clamp(x, 0.0001, 1) is clamp(x, 0.0001, 1.0): the exporter takes two bounds of one type alone."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "").removesuffix(".default") in ("clamp", "clamp_", "clip", "clip_"):
            bounds = [*args[1:], kwargs.get("min"), kwargs.get("max")]
            if any(isinstance(bound, float | torch.SymFloat) for bound in bounds):
                args = (*args[:1], *map(_as_float, args[1:]))
                kwargs = {name: _as_float(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _as_float(bound: Any) -> Any:
    return torch.sym_float(bound) if isinstance(bound, int | torch.SymInt) else bound
