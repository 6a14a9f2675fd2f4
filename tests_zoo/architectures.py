"""The architectures that spandrel recognises, each small, with random weights, and a layer in its body."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Entry:
    """One architecture, as small as its own loader still tells its parameters."""

    name: str
    """Its id in spandrel."""

    layer: str
    """What gets the node."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Of its class."""

    builds: str = ""
    """The class, where it is not called as the architecture."""

    picture: tuple[int, int] = (48, 56)
    """Height and width of the photographs."""

    static: str = ""
    """The size to freeze, where its forward fixes sizes while it is traced."""

    refused: str = ""
    """Words of the error with which it is refused."""

    why: str = ""
    """Why it is refused, or, where no error is named, why the fidelity gate fails."""

    def module(self) -> nn.Module:
        """The module with random weights, the same on every call."""
        folder = importlib.import_module(f"spandrel.architectures.{self.name}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = getattr(folder, self.builds or self.name)(**self.arguments)
            for parameter in module.parameters():
                if not parameter.any():  # scales that training starts from zero would hide the branch behind them
                    nn.init.normal_(parameter, std=0.02)
        return module.eval()


_SWIN = {
    "img_size": 16,
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": 8,
    "mlp_ratio": 2.0,
    "upscale": 2,
    "upsampler": "pixelshuffledirect",
}
_SHIFTED = "layers.0.residual_group.blocks.1"

ENTRIES = (
    Entry(
        "ATD",
        "layers.1.conv",
        {**_SWIN, "category_size": 64},
        static="48x56",
        why="sorts tokens by category with `stable=False`: fidelity is 74 dB, since no other runtime puts equal ones "
        "in PyTorch's order",
    ),
    Entry(
        "AuraSR",
        "downs.0.0.0",
        {
            "dim": 8,
            "image_size": None,
            "input_image_size": None,
            "init_dim": 8,
            "style_network": {"dim_in": 16, "dim_out": 64, "depth": 2},
            "up_dim_mults": (1, 2, 4, 8, 16),
            "down_dim_mults": (4, 8, 16),
            "skip_connect_scale": 0.4,
            "self_attn_dim_head": 4,
        },
        refused="its forward draws random numbers",
        why="draws its noise itself: no two runs agree",
    ),
    Entry(
        "CRAFT",
        "layers.0.residual_group.srwa_blocks.1.mlp",
        {"embed_dim": 48, "depths": [2, 2], "num_heads": [6, 6], "upscale": 2},
        picture=(48, 64),
        static="48x64",
    ),
    Entry("Compact", "body.4", {"num_feat": 16, "num_conv": 4, "upscale": 2}),
    Entry(
        "DAT",
        "layers.0.blocks.1",
        {
            "embed_dim": 32,
            "depth": [2, 2],
            "num_heads": [2, 2],
            "split_size": [8, 8],
            "expansion_factor": 2.0,
            "upsampler": "pixelshuffledirect",
        },
        static="48x56",
    ),
    Entry("DCTLSA", "B2.body.0", {"nf": 20, "num_head": 2, "upscale": 2}, static="48x56"),
    Entry("DITN", "UFONE.0.SALs.0.ffn", {"dim": 24, "ITL_blocks": 2, "SAL_blocks": 2, "upscale": 2}),
    Entry(
        "DRCT",
        "layers.0.swin2",
        {
            "img_size": 64,
            "embed_dim": 24,
            "depths": (6,),
            "num_heads": (6,),
            "gc": 12,
            "upscale": 2,
            "upsampler": "pixelshuffle",
        },
        picture=(48, 64),
        static="48x64",
    ),
    Entry("DRUNet", "m_body.1", {"in_nc": 4, "out_nc": 3, "nc": [16, 32, 48, 64], "nb": 2}),
    Entry("DnCNN", "model.4", {"in_nc": 3, "out_nc": 3, "nc": 16, "nb": 8, "act_mode": "R"}),
    Entry("ESRGAN", "model.1.sub.0.RDB2", {"num_filters": 16, "num_blocks": 1, "scale": 4}),
    Entry("FBCNN", "m_body_encoder.0", {"nc": [16, 32, 64, 512], "nb": 2}, static="48x56"),
    Entry("FDAT", "groups.0.blocks.1", {"embed_dim": 24, "num_groups": 1, "depth_per_group": 2, "scale": 2}),
    Entry("FFTformer", "encoder_level1.0.ffn", {"dim": 16, "num_blocks": [1, 1, 1], "num_refinement_blocks": 1}),
    Entry(
        "GFPGAN",
        "conv_body_down.1",
        refused="its forward draws random numbers",
        why="draws its noise itself: no two runs agree",
    ),
    Entry(
        "GRL",
        "layers.0.blocks.1.mlp",
        {
            "embed_dim": 24,
            "depths": [2, 2],
            "num_heads_window": [2, 2],
            "num_heads_stripe": [2, 2],
            "mlp_ratio": 2.0,
            "upscale": 2,
            "upsampler": "pixelshuffledirect",
        },
        picture=(48, 64),
        static="48x64",
    ),
    Entry(
        "HAT",
        "layers.0.residual_group.blocks.1",
        {**_SWIN, "upsampler": "pixelshuffle", "squeeze_factor": 4},
        static="48x56",
    ),
    Entry("HVICIDNet", "I_LCA2.ffn", {"channels": [8, 8, 16, 32]}),
    Entry(
        "IPT",
        "body",
        {"patch_size": 24, "n_feats": 12, "num_layers": 2, "scale": [2]},
        refused="is called 7 times at one image size and 9 times at another",
        why="cuts the image into crops and runs on each by itself: there is no map of the whole image for a node",
    ),
    Entry(
        "KBNet",
        "encoders.1.0",
        {"width": 16, "middle_blk_num": 2, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]},
        builds="KBNet_s",
    ),
    Entry("LaMa", "model.model.10.conv1.act_l", {"in_nc": 4, "out_nc": 3}),
    Entry(
        "MMRealSR",
        "body.0.rdb2",
        {
            "num_in_ch": 3,
            "num_out_ch": 3,
            "num_feat": 16,
            "num_block": 2,
            "num_grow_ch": 8,
            "num_feats": [16, 32, 48, 64],
            "num_blocks": [1, 1, 1, 1],
        },
    ),
    Entry("MixDehazeNet", "layer2.blocks.0.mlp"),
    Entry("MoESR", "blocks.0.blocks.1.conv", {"dim": 24, "n_blocks": 2, "n_block": 2, "scale": 2}),
    Entry("MoSR", "gblocks.2", {"dim": 24, "n_block": 3, "upscale": 2}),
    Entry("NAFNet", "encoders.1.0", {"width": 16, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}),
    Entry("OmniSR", "residual_layer.0.residual_layer.0", {"num_feat": 16, "res_num": 1, "up_scale": 2}),
    Entry("PLKSR", "feats.2", {"dim": 24, "n_blocks": 3, "upscaling_factor": 2}),
    Entry("RCAN", "body.0.body.1", {"n_resgroups": 2, "n_resblocks": 2, "n_feats": 32, "scale": 2, "norm": False}),
    Entry(
        "RGT",
        "layers.0.blocks.1",
        {"embed_dim": 32, "depth": [2, 2], "num_heads": [2, 2], "mlp_ratio": 2.0, "upscale": 2},
        static="48x56",
    ),
    Entry("RealCUGAN", "unet2.conv2", builds="UpCunet2x"),
    Entry("RestoreFormer", "decoder.up.0.block.0", {"ch": 32, "n_embed": 64, "embed_dim": 64, "z_channels": 64}),
    Entry("RetinexFormer", "body.0.denoiser.bottleneck", {"n_feat": 16, "stage": 1}),
    Entry("SAFMN", "feats.1.safm", {"dim": 24, "n_blocks": 2, "upscaling_factor": 2}),
    Entry("SAFMNBCIE", "feats.0.layers.1.safm", {"dim": 24, "n_blocks": 2, "num_layers": 2}),
    Entry("SCUNet", "m_body.0", {"config": [1, 1, 1, 2, 1, 1, 1], "dim": 64}),
    Entry(
        "SPAN",
        "block_2.c2_r",
        {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 24, "upscale": 2},
        refused="recomputes 40 of its weights at each run",
        why="computes its weights at each run; what `torch.jit.trace` makes of it passes, as a TorchScript file",
    ),
    Entry(
        "SeemoRe",
        "body.0.global_block",
        {"num_layers": 2, "embedding_dim": 24, "num_experts": 2, "scale": 2},
        refused="data-dependent",
        why="picks its experts by computed values, in Python",
    ),
    Entry("SwiftSRGAN", "residual.1", {"num_channels": 16, "num_blocks": 3, "upscale_factor": 2}),
    Entry("Swin2SR", f"{_SHIFTED}.mlp", _SWIN, static="48x56"),
    Entry("SwinIR", _SHIFTED, _SWIN, static="48x56"),
    Entry("Uformer", "encoderlayer_1", {"embed_dim": 8, "depths": [1] * 9}, picture=(128, 128), static="128x128"),
)
