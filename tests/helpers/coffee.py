"""A real photograph, a disc cut out of it, and a model that blurs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from skimage import data

from asvp_export.cli import cli

COFFEE = data.coffee()[100:197, 200:329]  # 97 x 129, a real photograph
DISC = np.hypot(*(np.mgrid[:97, :129] - np.array([48, 64])[:, None, None])) < 40


def model(path: Path, channels: int = 3, scale: int = 1, shape: tuple[int | str, ...] = ("n", "h", "w")) -> Path:
    """A file that blurs each channel by 3 x 3, and enlarges."""
    batch, height, width = shape
    weights = numpy_helper.from_array(np.full((channels, 1, 3, 3), 1 / 9, np.float32), "k")
    scales = numpy_helper.from_array(np.array([1, 1, scale, scale], np.float32), "s")
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1], group=channels),
        helper.make_node("Resize", ["c", "", "s"], ["y"], mode="nearest"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, channels, height, width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, channels, None, None])
    graph = helper.make_graph(nodes, "blur", [x], [y], [weights, scales])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def run(*arguments: object) -> str:
    """`asvp-export run`; what it says on stderr."""
    answer = CliRunner().invoke(cli, ["run", *map(str, arguments)], standalone_mode=False)
    if answer.exception:
        raise answer.exception
    return answer.stderr


def cut_out(hidden: np.ndarray) -> Image.Image:
    colours = np.where(DISC[..., None], COFFEE, hidden).astype(np.uint8)
    return Image.fromarray(np.dstack([colours, DISC.astype(np.uint8) * 255]))
