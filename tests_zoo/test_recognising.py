from __future__ import annotations

import pytest
import torch
from spandrel import MAIN_REGISTRY

import asvp_export
from asvp_export.errors import InputError
from asvp_export.signature import SizeRule
from tests_zoo.architectures import ENTRIES


def state_of(name: str) -> dict[str, torch.Tensor]:
    return next(entry for entry in ENTRIES if entry.name == name).module().state_dict()


def loaded(content: object, tmp_path) -> asvp_export.Teacher:
    torch.save(content, tmp_path / "weights.pth")
    return asvp_export.load(tmp_path / "weights.pth")


# Extra channels of noise, a tuple of outputs, values in -1..1.
@pytest.mark.parametrize("name", ["DRUNet", "FBCNN", "MMRealSR", "MixDehazeNet"])
def test_a_teacher_returns_what_spandrel_returns_under_the_architectures_own_names(name, tmp_path):
    state = state_of(name)
    teacher, known = loaded(state, tmp_path), MAIN_REGISTRY.load(dict(state))
    image = teacher.example(48, 64)
    with torch.no_grad():
        assert torch.equal(teacher.module(image).clamp(0, 1), known(image.clone()))
    assert [n for n, _ in teacher.module.named_modules()] == [n for n, _ in known.model.named_modules()]
    copied = asvp_export.protect(teacher, []).module
    with torch.no_grad():
        for part in copied.modules():  # the values are shared with the teacher until one takes another's place
            for leaf, weight in part.named_parameters(recurse=False):
                setattr(part, leaf, torch.nn.Parameter(torch.zeros_like(weight)))
        assert not torch.equal(copied(image), teacher.module(image))  # the copy runs on its own weights


def test_what_is_stated_travels_with_the_teacher(tmp_path):
    teacher = loaded(state_of("SwinIR"), tmp_path)
    known = teacher.architecture
    assert (known.name, known.purpose, known.tiling, known.supports_half) == ("SwinIR", "SR", "discouraged", False)
    assert (known.scale, teacher.scale, known.channels, teacher.channels) == (2, 2, 3, 3)
    assert known.size == SizeRule(16, 1) and teacher.size == SizeRule(16, 1)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"params": dict.fromkeys(state, torch.zeros(1)), "params-ema": state},
        lambda state: {"state_dict": {f"net_g.{name}": value for name, value in state.items()}, "epoch": 3},
        lambda state: {"n_averaged": torch.tensor(5), **{f"module._orig_mod.{n}": v for n, v in state.items()}},
        lambda state: {name: value.half() for name, value in state.items()},
    ],
)
def test_wrappers_prefixes_and_half_precision_are_undone_before_recognising(wrap, tmp_path):
    state = state_of("Compact")
    teacher = loaded(wrap(state), tmp_path)
    assert teacher.architecture.name == "RealESRGAN Compact" and teacher.scale == 2
    found = teacher.module.state_dict()
    assert all(torch.allclose(found[name], value, atol=1e-3) for name, value in state.items())


def test_an_unknown_state_dict_and_one_that_only_looks_known_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(
        InputError, match="of 1 tensors, is of an architecture that spandrel does not recognise: give --arch"
    ):
        loaded({"nothing.weight": torch.ones(3, 3)}, tmp_path)
    state = state_of("Compact")
    del state["body.4.weight"]
    with pytest.raises(InputError, match=r"looks like RealESRGAN Compact, but does not load as that .*: give --arch"):
        loaded(state, tmp_path)
