"""Who reads a protected tensor: following it through a module's forward, function by function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from asvp_export.plan.linear import Consumer, Consumers, consumers_by_layer, not_linear, reaches, reads_others

# Fixed linear maps without weights: what they give is linear in what they get, and the same for every image.
_PASSES = frozenset(
    [
        "add",
        "sub",
        "rsub",
        "radd",
        "iadd",
        "isub",
        "neg",
        "pos",
        "cat",
        "concat",
        "concatenate",
        "stack",
        "hstack",
        "vstack",
        "pad",
        "constant_pad_nd",
        "reflection_pad2d",
        "replication_pad2d",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "view",
        "view_as",
        "reshape",
        "reshape_as",
        "permute",
        "transpose",
        "swapaxes",
        "swapdims",
        "movedim",
        "moveaxis",
        "flatten",
        "unflatten",
        "contiguous",
        "clone",
        "squeeze",
        "unsqueeze",
        "chunk",
        "split",
        "split_with_sizes",
        "tensor_split",
        "unbind",
        "narrow",
        "select",
        "slice",
        "getitem",
        "index_select",
        "roll",
        "flip",
        "expand",
        "expand_as",
        "repeat",
        "repeat_interleave",
        "tile",
        "unfold",
        "fold",
        "im2col",
        "col2im",
        "interpolate",
        "upsample",
        "upsample_nearest2d",
        "upsample_bilinear2d",
        "upsample_bicubic2d",
        "avg_pool1d",
        "avg_pool2d",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "mean",
        "sum",
        "dropout",
        "dropout1d",
        "dropout2d",
        "alpha_dropout",
        "feature_dropout",
        "identity",
        "to",
        "float",
        "double",
        "half",
        "type",
        "type_as",
        "detach",
        "alias",
        "lift_fresh",
        "get",
        "cumsum",
        "t",
        "adjoint",
    ]
)
_SCALES = frozenset({"mul", "multiply", "rmul", "imul", "div", "divide", "true_divide", "truediv", "itruediv"})
_CONVOLUTIONS = frozenset({"conv1d", "conv2d"})
_TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d"})
_PRODUCTS = frozenset({"matmul", "mm", "bmm", "rmatmul"})

CONSUMING = _CONVOLUTIONS | _TRANSPOSED | _PRODUCTS | {"linear", "addmm"}
"""The functions, by `plain_name`, that can be linear consumers."""
_ARGUMENTS = {
    "conv": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "transposed": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    "linear": ("input", "weight", "bias"),
}


def torch_consumers(module: nn.Module, layers: Sequence[str], inputs: Sequence[torch.Tensor]) -> Consumers:
    """Run a module once and find who reads the outputs of its layers.

    Args:
        module: of PyTorch; it is not changed.
        layers: dotted names of its modules.
        inputs: of the module, by position.

    Returns:
        For each layer its linear consumers, or the reason why it has a reader that is none.
    """
    tracer = _Tracer(module)
    hooks = [module.get_submodule(layer).register_forward_hook(tracer.mark(layer)) for layer in layers]
    try:
        with torch.no_grad(), tracer:
            result = module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return tracer.consumers(layers, result)


class _Tracer(TorchFunctionMode):
    """Follows tensors by identity; all are kept until the end, so that no identity comes twice."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in module.named_parameters()}
        self.constants = {*self.names, *(id(buffer) for buffer in module.buffers())}
        self.alive: list[torch.Tensor] = []
        self.carried: dict[int, frozenset[str]] = {}  # linear in the outputs of these layers
        self.levels: dict[int, int] = {}
        self.dependent: set[int] = set()  # depends on a protected tensor, in whatever way
        self.behind: dict[str, None] = {}
        self.linear: dict[str, tuple[Consumer, frozenset[str]]] = {}
        self.reasons: dict[str, str] = {}
        self.used: dict[str, set[frozenset[str]]] = {}  # by whom each weight is used

    def mark(self, layer: str):
        """The hook that starts to follow a layer's output."""

        def hook(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            for earlier in self.carried.get(id(output), ()):
                if earlier != layer:
                    self.reasons.setdefault(earlier, reaches(f"the node behind {layer}"))
            self.alive.append(output)
            self.carried[id(output)] = frozenset({layer})
            self.dependent.add(id(output))

        return hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors_in = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        result = func(*args, **kwargs)
        tensors_out = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if tensors_out:
            self._follow(plain_name(func), tensors_in, tensors_out, args, kwargs)
        return result

    def consumers(self, layers: Sequence[str], result: object) -> Consumers:
        """What reads the layers, once the forward is through."""
        for leaf in tree_leaves(result):
            for layer in self.carried.get(id(leaf), ()):
                self.reasons.setdefault(layer, reaches("the output"))
        for name, (_, carried) in self.linear.items():
            if len(self.used[name]) > 1:
                for layer in carried:
                    self.reasons.setdefault(layer, reads_others(name))
        # A consumer is solved with all its nodes in place, so one that cannot be compensated keeps the others from it.
        by_layer = consumers_by_layer(self.linear, layers, self.reasons)
        return Consumers(by_layer, self.reasons, tuple(self.behind))

    def _follow(self, name: str, tensors_in: list, tensors_out: list, args: tuple, kwargs: Mapping[str, Any]) -> None:
        carried = frozenset().union(*(self.carried.get(id(tensor), frozenset()) for tensor in tensors_in))
        level = max((self.levels.get(id(tensor), 0) for tensor in tensors_in), default=0)
        if any(id(tensor) in self.dependent for tensor in tensors_in):
            self.behind |= dict.fromkeys(filter(None, map(self._parameter, tensors_in)))
            self.dependent |= {id(tensor) for tensor in tensors_out}
        consumer = self._consumer(name, args, kwargs, level)
        if consumer is not None:
            self.used.setdefault(consumer.weight, set()).add(carried)
        passed = frozenset()
        if carried and consumer is not None:
            before = self.linear.get(consumer.weight)
            if before:  # called again
                consumer = replace(consumer, level=max(level, before[0].level), calls=before[0].calls + 1)
                carried |= before[1]
            self.linear[consumer.weight] = (consumer, carried)
            level = consumer.level + 1
        elif carried and self._passes(name, tensors_in, args, kwargs):
            passed = carried
        elif carried:
            for layer in carried:
                self.reasons.setdefault(layer, not_linear(name))
        for tensor in tensors_out:
            self.alive.append(tensor)
            self.levels[id(tensor)] = level
            if passed:
                self.carried[id(tensor)] = passed
            else:
                self.carried.pop(id(tensor), None)

    def _parameter(self, tensor: torch.Tensor) -> str | None:
        """The name of a parameter, or of the one that this is a view of."""
        base = tensor._base
        return self.names.get(id(tensor)) or (self.names.get(id(base)) if base is not None else None)

    def _constant(self, value: object) -> bool:
        if not isinstance(value, torch.Tensor):
            return True
        return id(value) in self.constants or (value._base is not None and id(value._base) in self.constants)

    def _passes(self, name: str, tensors_in: list, args: tuple, kwargs: Mapping[str, Any]) -> bool:
        if name in _PASSES:
            return True
        uncarried = [tensor for tensor in tensors_in if id(tensor) not in self.carried]
        if name in _SCALES:  # by numbers and weights
            return len(tensors_in) - len(uncarried) == 1 and all(map(self._constant, uncarried))
        return name == "batch_norm" and not (kwargs.get("training") or (len(args) > 5 and args[5]))

    def _consumer(self, name: str, args: tuple, kwargs: Mapping[str, Any], level: int) -> Consumer | None:
        """The call as a linear consumer, where it is one with weights of the module's own."""
        if name not in CONSUMING:
            return None
        if name in _PRODUCTS or name == "addmm":
            product = self._product(operands(name, args, kwargs)[1], level)
            if product is None or name != "addmm":
                return product
            bias = self._parameter(args[0])
            return replace(product, bias=bias) if bias else None
        kind = "conv" if name in _CONVOLUTIONS else "transposed" if name in _TRANSPOSED else name
        call = dict(zip(_ARGUMENTS[kind], args, strict=False)) | dict(kwargs)
        weight, bias = call["weight"], call.get("bias")
        if id(weight) not in self.names or (bias is not None and id(bias) not in self.names):
            return None
        names = (self.names[id(weight)], self.names[id(bias)] if bias is not None else None)
        if kind == "linear":
            return Consumer(*names, kind, tuple(weight.shape), level=level) if weight.ndim == 2 else None
        dims = weight.ndim - 2
        if call["input"].ndim != weight.ndim:
            return None
        stride, dilation, output = (
            _per_axis(call.get(key, standard), dims)
            for key, standard in (("stride", 1), ("dilation", 1), ("output_padding", 0))
        )
        padding = _zeros_around(call.get("padding", 0), weight, dilation, dims)
        if padding is None:
            return None
        return Consumer(
            *names, kind, tuple(weight.shape), stride, padding, dilation, output, call.get("groups", 1), level=level
        )

    def _product(self, weight: object, level: int) -> Consumer | None:
        if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
            return None
        if (name := self.names.get(id(weight))) is not None:
            return Consumer(name, None, "linear", tuple(weight.shape), input_major=True, level=level)
        base = weight._base
        if base is None or id(base) not in self.names or base.ndim != 2 or weight.stride() != base.T.stride():
            return None
        return Consumer(self.names[id(base)], None, "linear", tuple(base.shape), level=level)


def plain_name(func: Any) -> str:
    """One name for one function: add, add_, __add__, Tensor.add and aten.add.Tensor are all "add"."""
    packet = getattr(func, "_overloadpacket", None)
    return str(getattr(packet or func, "__name__", func)).strip("_").removesuffix("_copy")


def operands(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """The data and the weight of a call of a consuming function."""
    if name == "addmm":
        return args[1], args[2]
    names = ("input", "weight") if name not in _PRODUCTS else ("input", "other")
    call = dict(zip(names, args, strict=False)) | dict(kwargs)
    return call[names[0]], call.get(names[1], call.get("mat2"))


def _per_axis(value: Any, dims: int) -> tuple[int, ...]:
    return (int(value),) * dims if isinstance(value, int) else tuple(map(int, value)) * (dims if len(value) == 1 else 1)


def _zeros_around(padding: Any, weight: torch.Tensor, dilation: tuple[int, ...], dims: int) -> tuple[int, ...] | None:
    """The same zeros on both sides, or None."""
    if padding == "valid":
        return (0,) * dims
    if padding != "same":
        return _per_axis(padding, dims)
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    return None if any(r % 2 for r in reach) else tuple(r // 2 for r in reach)
