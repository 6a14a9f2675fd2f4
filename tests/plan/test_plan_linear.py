"""Linear readers as least-squares problems: rows times unknowns is what the layer computes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from asvp_export.plan.linear import Consumer
from tests.helpers.linear import as_rows


def conv(*shape, s=1, p=0, d=1, g=1, bias="b"):
    n = len(shape) - 2
    return Consumer("w", bias, "conv", shape, (s,) * n, (p,) * n, (d,) * n, (0,) * n, g), (2, shape[1] * g, 9, 8)[
        : 2 + n
    ]


def transposed(*shape, s=1, p=0, d=1, o=0, g=1):
    n = len(shape) - 2
    return Consumer("w", "b", "transposed", shape, (s,) * n, (p,) * n, (d,) * n, (o,) * n, g), (2, shape[0], 6, 5)[
        : 2 + n
    ]


KINDS = {
    "3x3": conv(5, 4, 3, 3, p=1),
    "no bias": conv(5, 4, 1, 1, bias=None),
    "1-D": conv(6, 4, 5, p=2, s=3),
    "grouped": conv(6, 2, 3, 3, p=1, g=3),
    "depth-wise": conv(8, 1, 3, 3, p=1, g=4),
    "strided": conv(5, 4, 3, 2, s=2, p=1),
    "dilated": conv(5, 4, 3, 3, d=2, p=1),
    "transposed": transposed(4, 5, 3, 3, p=1),
    "transposed, output padding": transposed(4, 3, 3, 4, s=3, p=1, o=2),
    "transposed, grouped, dilated": transposed(6, 2, 3, 3, s=2, d=2, p=1, o=1, g=3),
    "transposed 1-D": transposed(4, 3, 4, s=2, p=1),
    "linear": (Consumer("w", "b", "linear", (5, 7)), (2, 3, 4, 7)),
    "product": (Consumer("w", None, "linear", (7, 5), input_major=True), (6, 7)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_times_unknowns_is_the_layer(kind):
    """In float64 the sums differ by their order alone: at most 100 terms of about 1, so by far less than 1e-12."""
    consumer, size = KINDS[kind]
    generator = torch.Generator().manual_seed(1)
    x, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in (size, consumer.shape, consumer.outputs)
    )
    bias = bias if consumer.bias else None
    if consumer.kind == "conv":
        layer = functional.conv1d if x.ndim == 3 else functional.conv2d
        y = layer(x, weight, bias, consumer.stride, consumer.padding, consumer.dilation, consumer.groups)
    elif consumer.kind == "transposed":
        layer = functional.conv_transpose1d if x.ndim == 3 else functional.conv_transpose2d
        y = layer(
            x,
            weight,
            bias,
            consumer.stride,
            consumer.padding,
            consumer.output_padding,
            consumer.groups,
            consumer.dilation,
        )
    else:
        y = functional.linear(x, weight.T if consumer.input_major else weight, bias)
    packed, rows = consumer.pack(weight, bias), consumer.rows(x)
    assert rows.shape[2] == consumer.unknowns
    torch.testing.assert_close(rows @ packed, as_rows(y, consumer), rtol=0, atol=1e-12)
    again, offset = consumer.unpack(packed)
    assert torch.equal(again, weight) and again.is_contiguous()
    assert offset is None if bias is None else torch.equal(offset, bias)
