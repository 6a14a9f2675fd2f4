"""The files of the field: one of each kind that people have, made here, with what the commands are told of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from PIL import Image
from torch import nn

from tests.helpers import field_nets

FREE = {0: "n", 2: "h", 3: "w"}


@dataclass(frozen=True)
class FieldFile:
    """One kind of file."""

    name: str
    """Its file name."""

    kind: str
    """What is special about it, for the table."""

    write: Callable[[Path], None]
    """Writes it."""

    options: tuple[str, ...] = ()
    """What the commands are told of it, beyond the file."""


def _weights(net: str) -> Callable[[Path], None]:
    return lambda path: torch.save(getattr(field_nets, net)().state_dict(), path)


def _built(net: str) -> tuple[str, ...]:
    return ("--arch", f"{field_nets.__file__}:{net}")


def _wrapped(wrap: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    return lambda path: torch.save(wrap(field_nets.Restorer().state_dict()), path)


def _prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def _lightning(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {"state_dict": _prefixed("net.", state), "hyper_parameters": {"lr": 1e-4}}


def _generator(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {"state_dict": _prefixed("generator.", state) | {"step_counter": torch.zeros(1)}}


def _sharded(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return _prefixed("_fsdp_wrapped_module.", state)


def _counted(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return state | {f"{name}.total_ops": torch.zeros(1) for name in ("head", "tail")}


def _adversarial(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {"G": state, "D": {"net.0.weight": torch.zeros(4, 3, 3, 3)}}


def graph(net: nn.Module, path: Path, sample: tuple[int, ...], free: dict[int, str] | None = None) -> None:
    """An ONNX file by PyTorch's older exporter, as most files of the field are."""
    axes = {"input": free, "output": free} if free else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(),
            (torch.rand(*sample),),
            str(path),
            dynamo=False,
            opset_version=17,
            dynamic_axes=axes,
            input_names=["input"],
            output_names=["output"],
        )


def _graph(net: str, *sample: int, free: dict[int, str] | None = FREE) -> Callable[[Path], None]:
    return lambda path: graph(getattr(field_nets, net)(), path, sample, free)


def _half(path: Path) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    graph(field_nets.Restorer(), path, (1, 3, 64, 64), FREE)
    return convert_float_to_float16(onnx.load(path))


def _half_in_constants(path: Path) -> None:
    model = _half(path)
    weights = [copy.deepcopy(weight) for weight in model.graph.initializer]
    del model.graph.initializer[:]
    for index, weight in enumerate(weights):
        node = helper.make_node("Constant", [], [weight.name], name=f"weight{index}", value=weight)
        model.graph.node.insert(index, node)
    onnx.save(model, path)


def _comma(path: Path) -> None:
    graph(field_nets.Restorer(), path, (1, 3, 64, 64), FREE)
    model = onnx.load(path)
    model.graph.node[0].name = "Conv, first"
    onnx.save(model, path)


def _scripted(path: Path) -> None:
    torch.jit.script(field_nets.WithFeatures().eval()).save(str(path))


def _traced(path: Path) -> None:
    torch.jit.trace(field_nets.WithFeatures().eval(), torch.rand(1, 3, 64, 64), strict=False).save(str(path))


FILES = (
    FieldFile("stages.pth", "returns a quarter, a half and the whole picture", _weights("Pyramid"), _built("Pyramid")),
    FieldFile("curves.pth", "returns two pictures and the curve between", _weights("TwoSteps"), _built("TwoSteps")),
    FieldFile(
        "pad_to_even.pth", "pads by numbers that Python computes", _weights("PadsInPython"), _built("PadsInPython")
    ),
    FieldFile("clamp.pth", "clamps between a float and an int", _weights("MixedClamp"), _built("MixedClamp")),
    FieldFile("pixel_values.pth", "works in 0..255, unclamped", _weights("Levels"), _built("Levels")),
    FieldFile("training_mode.pth", "is meant to normalise by its input", _weights("Instance"), _built("Instance")),
    FieldFile("empty_map.onnx", "ends onnxruntime below 16 pixels", _graph("SmallMap", 1, 3, 64, 64)),
    FieldFile("channels_last.onnx", "N,H,W,C, fixed size", _graph("ChannelsLast", 1, 64, 80, 3, free=None)),
    FieldFile(
        "channels_last_free.onnx",
        "N,H,W,C, free size",
        _graph("ChannelsLast", 1, 64, 80, 3, free={0: "n", 1: "h", 2: "w"}),
    ),
    FieldFile("batch_of_4.onnx", "batch fixed at 4", _graph("Restorer", 4, 3, 64, 64, free={2: "h", 3: "w"})),
    FieldFile("fixed_96x128.onnx", "fixed size", _graph("Restorer", 1, 3, 96, 128, free=None)),
    FieldFile("plain.onnx", "nothing special", _graph("Restorer", 1, 3, 64, 64)),
    FieldFile("half.onnx", "float16 weights", lambda path: onnx.save(_half(path), path)),
    FieldFile("half_constants.onnx", "float16 weights in Constant nodes", _half_in_constants),
    FieldFile("comma.onnx", "a comma in a node's name", _comma),
    FieldFile("lightning.ckpt", "weights under net. of state_dict", _wrapped(_lightning), _built("Restorer")),
    FieldFile("generator.pth", "weights under generator., with a counter", _wrapped(_generator), _built("Restorer")),
    FieldFile("fsdp.pth", "names of a sharded wrapper", _wrapped(_sharded), _built("Restorer")),
    FieldFile("counters.pth", "operation counters among the weights", _wrapped(_counted), _built("Restorer")),
    FieldFile("two_networks.pth", "a generator and a discriminator", _wrapped(_adversarial), _built("Restorer")),
    FieldFile("mapping_scripted.pt", "scripted, returns a mapping", _scripted),
    FieldFile("mapping_traced.pt", "traced, returns a mapping", _traced),
)


def pictures(folder: Path) -> Iterator[tuple[str, Path]]:
    """An even, an odd and a large picture, of a photograph of ours; a cut-out and a grey one of 16 bits."""
    from asvp_export.images import list_images, photographs, read_image

    photograph = read_image(list_images(photographs("audit"))[0])
    tall, wide = photograph.shape[:2]
    whole = np.rint(photograph * 255).astype(np.uint8)
    large = np.tile(whole, (-(-700 // tall), -(-900 // wide), 1))
    round_cut = np.hypot(*np.mgrid[-48:49, -64:65]) < 40
    made = {
        "even": Image.fromarray(whole[:96, :128]),
        "odd": Image.fromarray(whole[:97, :129]),
        "large": Image.fromarray(large[:700, :900]),
        "cut-out": Image.fromarray(np.dstack([whole[:97, :129], round_cut.astype(np.uint8) * 255])),
        "16-bit grey": Image.fromarray((photograph[:97, :129, 1] * 65535).astype(np.uint16)),
    }
    for name, picture in made.items():
        path = folder / f"{name}.png"
        picture.save(path)
        yield name, path
