"""Colour profiles written by hand, and what a viewer that knows profiles shows."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image, ImageCms

SRGB = ImageCms.createProfile("sRGB")


def icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile written by hand: no public one comes with Pillow but sRGB."""
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 9) + b"Made here\0".ljust(91, b"\0"), **tags}
    tags[b"wtpt"] = xyz(0.9642, 1, 0.8249)
    body, table, offset = b"", b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        content = content.ljust(-(-len(content) // 4) * 4, b"\0")
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    head = struct.pack(
        ">I4sI4s4s4s", offset + len(body), b"lcms", 0x02100000, kind, space, b"Lab " if kind == b"prtr" else b"XYZ "
    )
    head = head.ljust(36, b"\0") + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(value * 65536) for value in values))


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


WIDE = icc(
    b"RGB ",
    {
        b"rXYZ": xyz(0.5151, 0.2412, -0.0011),
        b"gXYZ": xyz(0.2919, 0.6922, 0.0419),
        b"bXYZ": xyz(0.1572, 0.0666, 0.7841),
        b"rTRC": gamma(2.2),
        b"gTRC": gamma(2.2),
        b"bTRC": gamma(2.2),
    },
)  # the colours of Display P3

LINEAR_GREY = icc(b"GRAY", {b"kTRC": gamma(1.0)})


def ink() -> bytes:
    """A profile of a press whose black is all there is: cyan, magenta and yellow print nothing."""
    lightness = np.zeros((2, 2, 2, 2, 3), np.uint8)
    lightness[..., 0, 0], lightness[..., 1:] = 255, 128
    ramp = bytes(range(256))
    lut = b"mft1\0\0\0\0" + struct.pack(">BBBB9i", 4, 3, 2, 0, 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    return icc(b"CMYK", {b"A2B0": lut + 4 * ramp + lightness.tobytes() + 3 * ramp})


def shown(picture: Image.Image) -> np.ndarray:
    """What a viewer that knows profiles shows, 8-bit sRGB."""
    if profile := picture.info.get("icc_profile"):
        picture = ImageCms.profileToProfile(picture, io.BytesIO(profile), SRGB, outputMode="RGB")
    return np.asarray(picture.convert("RGB")).astype(int)
