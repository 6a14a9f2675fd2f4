"""Nets whose layers return what can carry the node, what cannot, and the form of a refusal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from asvp_export.errors import InputError
from asvp_export.selection.select import select
from asvp_export.teacher.model import Teacher


class Block(nn.Module):
    """Two convolutions and a skip; the activation is called twice and works in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x + self.conv2(self.act(self.conv1(x))))


class Net(nn.Module):
    """A residual network with a list of blocks and a module that is never called."""

    def __init__(self, width: int = 8, blocks: int = 2) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(Block(width) for _ in range(blocks))
        self.tail = nn.Conv2d(width, 3, 3, padding=1)
        self.spare = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(x)
        for block in self.body:
            y = block(y)
        return x + self.tail(y)


class Call(nn.Module):
    """A function as a module, so that its output has a name."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def to_tokens(y: torch.Tensor) -> torch.Tensor:
    return y.flatten(2).transpose(1, 2)


def channels_last(y: torch.Tensor) -> torch.Tensor:
    return y.permute(0, 2, 3, 1)


def to_windows(y: torch.Tensor) -> torch.Tensor:
    n, c, h, w = y.shape
    return y.reshape(n, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 3, 5, 1).reshape(-1, 64, c)


def to_pair(y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return y, y


def to_list(y: torch.Tensor) -> list[torch.Tensor]:
    return [y]


def to_dict(y: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"y": y}


def to_nothing(y: torch.Tensor) -> None:
    return None


def to_number(y: torch.Tensor) -> int:
    return 3


def to_scalar(y: torch.Tensor) -> torch.Tensor:
    return y.mean()


def to_vector(y: torch.Tensor) -> torch.Tensor:
    return y.mean((0, 2, 3))


def to_matrix(y: torch.Tensor) -> torch.Tensor:
    return y.mean((2, 3))


def to_pooled(y: torch.Tensor) -> torch.Tensor:
    return y.mean((2, 3), keepdim=True)


def to_integers(y: torch.Tensor) -> torch.Tensor:
    return y.argmax(1, keepdim=True)


def to_grid(y: torch.Tensor) -> torch.Tensor:
    return nn.functional.adaptive_avg_pool2d(y, (7, 7))


def to_heads(y: torch.Tensor) -> torch.Tensor:
    return y.unflatten(1, (2, -1))


def to_nan(y: torch.Tensor) -> torch.Tensor:
    return y * float("nan")


def first_sample(y: torch.Tensor) -> torch.Tensor:
    return y[:1].expand(1, *y.shape[1:])


class Zoo(nn.Module):
    """A network whose side branch returns whatever the function returns."""

    def __init__(self, *functions: Any, width: int = 6) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.side = nn.ModuleDict({function.__name__: Call(function) for function in functions})
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, w = x.shape[2:]
        y = self.head(nn.functional.pad(x, (0, -w % 8, 0, -h % 8), mode="replicate"))
        for branch in self.side.values():
            branch(y)
        return x + self.tail(y)[:, :, :h, :w]


def refused(teacher: Teacher, patterns: list[str], match: str) -> None:
    with pytest.raises(InputError, match=f"(?i){match}") as caught:
        select(teacher, patterns)
    assert "\n" not in str(caught.value)
