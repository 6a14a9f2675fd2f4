"""What one run of a teacher costs: multiply-adds, counted and not timed, so that the figure is the same everywhere."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch

from asvp_export.errors import InputError, MachineError, summary
from asvp_export.shortage import is_out_of_memory
from asvp_export.teacher.backends import open_backend
from asvp_export.teacher.model import Teacher

# A count is a forward, which may take seconds.
_counted: WeakKeyDictionary[torch.nn.Module, float] = WeakKeyDictionary()


def multiply_adds(teacher: Teacher) -> float:
    """Multiply-adds of convolutions and matrix products for each pixel of the image that goes in.

    Args:
        teacher: one forward on its example of about 64 x 96 pixels. Where the cost grows faster than the number of
            pixels (attention over the whole image) the figure holds for such a size.

    Raises:
        InputError: the teacher fails on its own example.
        MachineError: memory ran out.
    """
    if teacher.module in _counted:
        return _counted[teacher.module]
    image = teacher.example()
    try:
        total = open_backend(teacher).multiply_adds(image)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise MachineError(f"Memory ran out while {teacher.source} ran at {tuple(image.shape)}.") from error
        raise InputError(f"{teacher.source} fails on its example of {tuple(image.shape)}: {summary(error)}.") from error
    _counted[teacher.module] = total / (image.shape[0] * image.shape[-1] * image.shape[-2])
    return _counted[teacher.module]
