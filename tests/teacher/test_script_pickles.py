"""TorchScript archives whose pickles claim more than the archive holds."""

from __future__ import annotations

import pickletools
import struct
import zipfile

import pytest
import torch

import asvp_export
from tests.fuzz import seeds


def with_operation(content: bytes, name: str, new: bytes) -> bytes:
    """A pickle, with the first operation of a name replaced."""
    operations = list(pickletools.genops(content))
    index = next(index for index, (operation, _, _) in enumerate(operations) if operation.name == name)
    begin, end = operations[index][2], operations[index + 1][2]
    assert begin is not None
    return content[:begin] + new + content[end:]


CLAIMS = {
    "a text longer than the pickle": ("BINUNICODE", b"X" + struct.pack("<I", 2**31), "bytes in a unicodestring4"),
    "an object far out in the memo": ("BINPUT", b"r" + struct.pack("<I", 2**32 - 1), "at place 4294967295 of its memo"),
    "a tensor past its record": (
        "BININT1",
        b"J" + struct.pack("<i", 2**28),
        "claims 1073741824 bytes of data/0",
    ),
}


def is_data(name: str) -> bool:
    return name.endswith("/data.pkl")


@pytest.mark.parametrize("claim", CLAIMS)
def test_an_archive_whose_pickle_claims_more_than_there_is_never_reaches_pytorch(tmp_path, claim, monkeypatch):
    operation, new, said = CLAIMS[claim]
    archive = seeds.ARCHIVES["torchscript"]()
    (pickled,) = seeds.members(archive, is_data)
    path = tmp_path / "net.pt"
    path.write_bytes(seeds.with_member(archive, is_data, with_operation(pickled, operation, new)))
    monkeypatch.setattr(torch.jit, "load", lambda *arguments, **named: pytest.fail("it was loaded"))
    with pytest.raises(asvp_export.InputError, match=said):
        asvp_export.load(path)


def test_source_that_unpacks_to_gigabytes_is_refused_unread(tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(seeds.ARCHIVES["torchscript"]())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/code/a.py", "w") as file:
        for _ in range(257):
            file.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(asvp_export.InputError, match="once unpacked"):
        asvp_export.load(path)
