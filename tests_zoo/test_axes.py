"""Where nodes go in real transformers: tokens and channels-last maps get the last axis, windows are refused."""

from __future__ import annotations

import pytest
import torch

import asvp_export
from asvp_export.selection.survey import survey_layers
from tests_zoo.architectures import ENTRIES
from tests_zoo.factories import swin2sr

BLOCK = "layers.0.residual_group.blocks"
STAGE = "swin2sr.encoder.stages.0"


def module_of(name: str) -> torch.nn.Module:
    if name == "Hugging Face Swin2SR":
        return swin2sr()
    return next(entry for entry in ENTRIES if entry.name == name).module()


@pytest.mark.parametrize(
    ("name", "tokens", "maps", "windows"),
    [
        # The second block of each pair works on shifted windows.
        ("SwinIR", [f"{BLOCK}.0", f"{BLOCK}.1.mlp"], ["layers.0.conv"], [f"{BLOCK}.0.attn", f"{BLOCK}.1.attn.proj"]),
        ("Swin2SR", [f"{BLOCK}.0", f"{BLOCK}.1.mlp"], ["layers.0.conv"], [f"{BLOCK}.0.attn", f"{BLOCK}.1.attn.proj"]),
        ("HAT", [f"{BLOCK}.1", "layers.0"], [f"{BLOCK}.0.conv_block"], [f"{BLOCK}.0.attn", f"{BLOCK}.1.attn.qkv"]),
        (
            "DAT",
            ["layers.0.blocks.0.attn", "layers.1.blocks.1"],
            ["layers.0.conv"],
            ["layers.0.blocks.0.attn.attns.1.attn_drop"],
        ),
        ("SCUNet", ["m_body.1.trans_block", "m_body.1.trans_block.msa"], ["m_body.1"], []),
        (
            "Hugging Face Swin2SR",
            [f"{STAGE}.layers.1.output", "swin2sr.layernorm"],
            [f"{STAGE}.conv"],
            [f"{STAGE}.layers.0.attention.output", f"{STAGE}.layers.1.attention.self.query"],
        ),
    ],
)
def test_tokens_and_maps_get_their_axis_and_windows_are_refused(name, tokens, maps, windows):
    layers, reasons = survey_layers(asvp_export.load(module_of(name)))
    axes = {layer.name: layer.axis for layer in layers}
    assert {layer: axes.get(layer) for layer in tokens} == dict.fromkeys(tokens, -1)
    assert {layer: axes.get(layer) for layer in maps} == dict.fromkeys(maps, 1)
    for layer in windows:
        assert "windows or patches of each image on the batch axis" in reasons[layer]
