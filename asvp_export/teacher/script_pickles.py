"""The pickles in a TorchScript archive, held against the archive before PyTorch reads them.

PyTorch's own reader takes three numbers in them on trust: the length of a text, for which it sets memory aside; the
place of an object in its memo, up to which it fills memory; and the number of a tensor's elements, which it reads
beyond the end of the record that holds the tensor's values.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable

import torch


def check(name: str, content: bytes, record: Callable[[str], bytes]) -> None:
    """Refuse a pickle that claims more than there is; it is read, and nothing in it is run.

    Args:
        name: its record, such as "data.pkl", whose tensors lie in the records "data/0", "data/1" ...
        content: its bytes.
        record: gives the bytes of a record of the same archive.

    Raises:
        Exception: it claims more, or is damaged.
    """
    for count, (operation, argument, _) in enumerate(pickletools.genops(content)):  # raises at lengths beyond the end
        if operation.name in ("BINPUT", "LONG_BINPUT") and isinstance(argument, int) and argument > count:
            raise ValueError(f"{name} puts an object at place {argument} of its memo, after {count} operations")
    if not name.endswith(".debug_pkl"):  # these name places in the source, and are read where an error is told
        _Storages(name, content, record).load()


class _Named:
    """Stands for whatever a pickle names, and for what it makes of that: nothing is imported, and nothing happens."""

    name = ""

    def __init__(self, *arguments: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...


class _Storages(pickle.Unpickler):
    """Meets the storages that a pickle names."""

    def __init__(self, name: str, content: bytes, record: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(content))
        self._name, self._record, self._lengths = name, record, dict[str, int]()

    def find_class(self, module: str, name: str) -> type[_Named]:
        """See `pickle.Unpickler`."""
        return type("_Named", (_Named,), {"name": name})

    def persistent_load(self, named: tuple[str, type[_Named], str, str, int]) -> None:
        """See `pickle.Unpickler`; PyTorch names storages so."""
        _, kind, key, _, elements = named
        if elements == 0:
            return
        storage = f"{self._name.removesuffix('.pkl')}/{key}"
        if storage not in self._lengths:
            self._lengths[storage] = len(self._record(storage))
        claimed = elements * getattr(torch, kind.name)._dtype.itemsize
        if not 0 < claimed <= self._lengths[storage]:
            raise ValueError(f"{self._name} claims {claimed} bytes of {storage}, which has {self._lengths[storage]}")
