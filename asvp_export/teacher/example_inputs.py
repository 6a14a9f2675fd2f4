"""Example inputs from a file: which tensors a model is called with, and which of them is the image."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from asvp_export.errors import InputError
from asvp_export.images import read_npz
from asvp_export.signature import Signature, channels_to_front, following
from asvp_export.teacher.checkpoint import read_torch

_EXPECTED = "expected the model's inputs, by name or in order, as arrays of an .npz or tensors of a .pt"

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def read_inputs(path: Path) -> dict[str, np.ndarray] | list[np.ndarray]:
    """Read example inputs: by name (an .npz, a .pt that holds a dict) or in order (a tensor, a tuple or a list).

    Nothing in the file is run: arrays of objects and pickles of other classes than tensors are refused.

    Raises:
        InputError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"The file of inputs {path} does not exist; {_EXPECTED}.")
    if path.suffix.lower() == ".npz":
        return read_npz(path)
    content = read_torch(path, trust_pickle=False)
    if isinstance(content, Mapping):
        return {str(name): _array(value, f"{path}, {name}") for name, value in content.items()}
    if isinstance(content, torch.Tensor):
        content = (content,)
    if not isinstance(content, tuple | list):
        raise InputError(f"{path} holds {type(content).__name__}; {_EXPECTED}.")
    return [_array(value, f"{path}, input {i}") for i, value in enumerate(content)]


def _array(value: Any, location: str) -> np.ndarray:
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{location} is {type(value).__name__}; {_EXPECTED}.")
    return value.detach().cpu().numpy()


def signature_of(
    examples: Mapping[str, np.ndarray] | Sequence[np.ndarray],
    module: nn.Module,
    source: str,
    channels_last: bool = False,
) -> Signature:
    """The inputs of a model from examples of them; the image is the first floating array N,C,H,W or N,T,C,H,W.

    Args:
        examples: by name or in order.
        module: its forward's parameters say the order of names; other modules may list `input_names`.
        source: the model's name, for messages.
        channels_last: the image is N,H,W,C.

    Raises:
        InputError: names that the model does not have or leaves out before another, no image among the arrays, or a
            video channels last.
    """
    parameters = _parameters(module)
    if isinstance(examples, Mapping):
        examples = _in_order(examples, parameters, source)
    else:
        named = parameters[: len(examples)] if parameters and len(parameters) >= len(examples) else []
        names = named if len(examples) > 1 and named else ["input", *(f"input_{i}" for i in range(1, len(examples)))]
        examples = dict(zip(names, examples, strict=True))
    if len(examples) == 1 and not hasattr(module, "input_names"):  # as teachers without example inputs have it
        examples = {"input": next(iter(examples.values()))}
    image_index = next((i for i, a in enumerate(examples.values()) if a.ndim in (4, 5) and a.dtype.kind == "f"), None)
    if image_index is None:
        shown = ", ".join(f"{name} {'x'.join(map(str, a.shape))} {a.dtype}" for name, a in examples.items())
        raise InputError(
            f"The example inputs are {shown or 'nothing'}; a float image batch N,C,H,W (or N,T,C,H,W) was "
            "expected in them."
        )
    (name, image), others = list(examples.items())[image_index], [*examples.items()]
    del others[image_index]
    if channels_last and image.ndim == 5:
        raise InputError(
            f"The example of {name} is a video; videos are taken as N,T,C,H,W only. Leave --layout nhwc out."
        )
    shape = channels_to_front(image).shape if channels_last else image.shape
    return Signature(
        image_name=name,
        channels=shape[-3],
        frames=image.shape[1] if image.ndim == 5 else None,
        image_index=image_index,
        others=tuple(following(other_name, _single(example), shape, channels_last) for other_name, example in others),
        channels_last=channels_last,
    )


def required(module: nn.Module) -> list[str]:
    """The inputs that a PyTorch module cannot be called without, as far as it shows them."""
    if isinstance(module, torch.jit.ScriptModule):
        arguments = module.forward.schema.arguments[1:]  # pyright: ignore[reportFunctionMemberAccess]  TorchScript's own
        return [parameter.name for parameter in arguments if not parameter.has_default_value()]
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # compiled forwards show none
        return []
    return [
        parameter.name
        for parameter in parameters
        if parameter.kind in _POSITIONAL and parameter.default is parameter.empty
    ]


def how_to_give(source: str, inputs: Mapping[str, Sequence[int] | None]) -> str:
    """What to type for a model that takes several inputs.

    Args:
        source: the model's name.
        inputs: name to shape; None where that is not known.
    """
    listed = ", ".join(name + (f" {'x'.join(map(str, shape))}" if shape else "") for name, shape in inputs.items())
    shown = ", ".join(
        f"{name}=numpy.zeros({tuple(shape)}, 'float32')" if shape else f"{name}=numpy.zeros(ITS_SHAPE, 'float32')"
        for name, shape in inputs.items()
    )
    return (
        f"{source} takes {len(inputs)} inputs ({listed}), and only the picture can be generated. Give an example of "
        f"each, with real values: python -c \"import numpy; numpy.savez('inputs.npz', {shown})\", then --inputs "
        "inputs.npz."
    )


def _in_order(examples: Mapping[str, np.ndarray], parameters: list[str], source: str) -> dict[str, np.ndarray]:
    if not parameters:
        return dict(examples)
    unknown = [name for name in examples if name not in parameters]
    if unknown:
        raise InputError(f"{source} has no input {unknown[0]!r}; its inputs are {', '.join(parameters)}.")
    called = parameters[: 1 + max(parameters.index(name) for name in examples)] if examples else []
    left_out = [name for name in called if name not in examples]
    if left_out:
        raise InputError(
            f"The example inputs lack {left_out[0]!r}, which {source} takes before {called[-1]!r}; add it."
        )
    return {name: examples[name] for name in called}


def _parameters(module: nn.Module) -> list[str]:
    """Names of the inputs in order, as far as the module shows them."""
    names = getattr(module, "input_names", None)  # an ONNX graph's
    if names is not None:
        return list(names)
    try:
        return [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in _POSITIONAL]
    except (TypeError, ValueError):  # compiled forwards show none
        return []


def _single(example: np.ndarray) -> np.ndarray:
    """float64 examples, which numpy makes by default, as the float32 that teachers run in."""
    return example.astype(np.float32) if example.dtype == np.float64 else example
