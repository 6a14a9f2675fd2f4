"""Checkpoints as training code leaves them: which weights are taken, what is left out, and that it is told."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from asvp_export.assumptions import Assumption
from asvp_export.cli import cli
from asvp_export.errors import InputError
from asvp_export.teacher.architecture import build
from asvp_export.teacher.load import load
from asvp_export.teacher.model import Teacher

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x):
        return x + 0.1 * self.b(torch.relu(self.a(x)))

class Windows(Net):
    def __init__(self, persistent=True):
        super().__init__()
        self.register_buffer("relative_position_index", torch.arange(4), persistent)
        self.register_buffer("attn_mask", torch.ones(2, 2), persistent)
        self.register_buffer("grid", torch.zeros(1, 1, 2, 2), persistent=False)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(super().forward(x)) * self.attn_mask.mean()

class Renames(Net):
    def _load_from_state_dict(self, state, prefix, *rest):
        for name in list(state):
            state[name.replace("old_", "")] = state.pop(name)
        super()._load_from_state_dict(state, prefix, *rest)

def stages():
    return nn.Sequential(Net(), Net())
"""
State = dict[str, torch.Tensor]
D = {"net.0.weight": torch.zeros(4, 3, 3, 3), "net.0.bias": torch.zeros(4)}
VGG = {"vgg.0.weight": torch.zeros(4, 3, 3, 3)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with the architectures in nets.py."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def state(folder: Path) -> State:
    """Weights of a Net."""
    torch.manual_seed(0)
    return build("nets.py:Net", {}).state_dict()


def under(prefix: str, state: State) -> State:
    return {f"{prefix}.{name}": value for name, value in state.items()}


def zeros(state: State) -> State:
    return {name: torch.zeros_like(value) for name, value in state.items()}


def about_weights(teacher: Teacher) -> tuple[Assumption, ...]:
    """What was concluded of the file's weights; of what the model takes and gives, other tests speak."""
    return tuple(one for one in teacher.assumptions if one.about == "weights")


def loaded(content: Any, arch: str = "nets.py:Net", **options: Any) -> Teacher:
    torch.save(content, "w.pth")
    return load("w.pth", arch=arch, **options)


def refused(content: Any, match: str, arch: str | None = "nets.py:Net", **options: Any) -> None:
    torch.save(content, "w.pth")
    with pytest.raises(InputError, match=match) as caught:
        load("w.pth", arch=arch, **options)
    assert "\n" not in str(caught.value)


def has(teacher: Teacher, state: State) -> bool:
    own = teacher.module.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("wrap", "concluded", "certain", "option"),
    [
        (
            lambda s: {"state_dict": under("net", s), "hyper_parameters": {"lr": 1e-4}},
            "net.* of state_dict",
            True,
            "NAME",
        ),
        (
            lambda s: {"state_dict": under("generator", s) | {"step_counter": torch.zeros(1)}},
            "generator.* of state_dict; step_counter is left out",
            True,
            "NAME",
        ),
        (
            lambda s: {
                **s,
                **{f"{n}.total_{what}": torch.zeros(1).double() for n in "ab" for what in ("ops", "params")},
            },
            "the names as they are; *.total_ops, *.total_params are left out",
            True,
            "",
        ),
        (lambda s: {"D": D, "G": s}, "G; D is left out", True, "NAME"),
        (
            lambda s: {"models": {"G": {"module": under("module", s)}, "D": D}},
            "models.G.module; models.D is left out",
            True,
            "NAME",
        ),
        (
            lambda s: under("generator", s) | under("discriminator", D) | under("perceptual_loss", VGG),
            "generator.* of the file; discriminator.*, perceptual_loss.* are left out",
            True,
            "NAME",
        ),
        (
            lambda s: under("model.net", s) | under("model.lpips", VGG),
            "model.net.* of the file; model.lpips.* is left out",
            True,
            "NAME",
        ),
        (lambda s: s | under("perceptual_loss", VGG), "the names as they are; perceptual_loss.* is left out", True, ""),
        (lambda s: under("net", s) | under("refine", D), "net.* of the file; refine.* is left out", False, "NAME"),
        (lambda s: {"params": zeros(s), "params_ema": s}, "params_ema; params is left out", False, "params"),
        (
            lambda s: {
                "state_dict": under("generator", zeros(s))
                | under("generator_ema", s)
                | {"step_counter": torch.zeros(1)}
            },
            "generator_ema.* of state_dict; generator.*, step_counter are left out",
            False,
            "state_dict.generator",
        ),
        (
            lambda s: {"net_g": zeros(s), "net_g_ema": s, "net_d": D},
            "net_g_ema; net_g, net_d are left out",
            False,
            "net_g",
        ),
        (
            lambda s: {
                "ema": under("online_model.model", zeros(s))
                | under("ema_model.model", s)
                | {"initted": torch.tensor(True), "step": torch.tensor(3)}
            },
            "ema_model.model.* of ema; online_model.*, initted, step are left out",
            False,
            "ema.online_model.model",
        ),
        (lambda s: {"g": zeros(s), "g_ema": s, "d": D}, "g_ema; g, d are left out", False, "g"),
        (lambda s: {"model": s, "best": zeros(s)}, "model; best is left out", False, "best"),
    ],
)
def test_what_is_taken_and_left_out_is_told(
    state: State, wrap: Any, concluded: str, certain: bool, option: str
) -> None:
    teacher = loaded(wrap(state))
    assert has(teacher, state)
    (told,) = about_weights(teacher)
    assert (told.about, told.concluded, told.certain) == ("weights", concluded, certain)
    assert told.option == (f"--weights-key {option}" if option else "")
    assert "Net" in told.because


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"epoch": 3, "arch": "Net", "state_dict": s, "optimizer": {"state": {"a": D}, "param_groups": []}},
        lambda s: {"model": {"state_dict": s}, "callbacks": {"best": {"score": torch.tensor(0.5)}}},
        lambda s: under("module.module", s),
        lambda s: under("_fsdp_wrapped_module", s),
        lambda s: {n.replace(".", "._fsdp_wrapped_module._checkpoint_wrapped_module."): v for n, v in s.items()},
        lambda s: {n.replace("a.", "a.module."): v for n, v in s.items()},
        lambda s: {"model": s, "iteration": torch.tensor(5)},
    ],
)
def test_where_there_is_nothing_to_choose_nothing_is_told(state: State, wrap: Any) -> None:
    teacher = loaded(wrap(state))
    assert has(teacher, state) and about_weights(teacher) == ()


@pytest.mark.parametrize(
    ("wrap", "key"),
    [
        (lambda s: {"params": s, "params_ema": zeros(s)}, "params"),
        (lambda s: {"netG_A": s, "netG_B": zeros(s)}, "netG_A"),
        (lambda s: {"gan": {"A": zeros(s), "B": under("module", s)}}, "gan.B"),
        (lambda s: {"state_dict": under("generator", s) | under("generator_ema", zeros(s))}, "state_dict.generator"),
        (lambda s: under("module._orig_mod.first", s) | under("module._orig_mod.second", zeros(s)), "first"),
        (lambda s: under("0", zeros(s)) | under("1", s), "1"),
    ],
)
def test_the_users_choice_is_taken_and_is_no_assumption(state: State, wrap: Any, key: str) -> None:
    teacher = loaded(wrap(state), weights_key=key)
    assert has(teacher, state) and about_weights(teacher) == ()


def test_a_choice_that_is_not_there_is_refused_with_what_is(state: State) -> None:
    refused({"G": state, "D": D}, r"no weights under --weights-key X; it holds G, D\.", weights_key="X")
    refused(under("net", state), r"under --weights-key ne; it holds net\.", weights_key="ne")
    refused({"G": state, "D": D}, r"does not fit .*4 missing keys", weights_key="D")
    torch.save(build("nets.py:Net", {}), "m.pt")
    with pytest.raises(InputError, match="a module, holds only one model; leave --weights-key G out"):
        load(build("nets.py:Net", {}), weights_key="G")


def test_two_that_fit_equally_are_refused_with_what_to_type(state: State) -> None:
    both = {"netG_A": state, "netG_B": zeros(state), "netD_A": D}
    choice = r"several state dicts that fit the architecture Net \(netG_A, netG_B\): choose one, "
    refused(both, choice + r"--weights-key netG_A or --weights-key netG_B\.")
    refused(under("netG A", state) | under("netG_B", zeros(state)), r"--weights-key 'netG A' or --weights-key netG_B\.")


def test_what_may_be_a_weight_of_the_net_is_never_left_out(state: State) -> None:
    extra = {"up.weight": torch.zeros(3, 3, 3, 3)}
    refused(state | extra, r"w\.pth does not fit the architecture Net: 1 unexpected key \(up\.weight\)\. Check --arch")
    refused(under("net", state | extra), r"Net: under net, which comes nearest, 1 unexpected key \(up\.weight\)\.")
    refused(state | {"a.scale": torch.ones(1)}, r"1 unexpected key \(a\.scale\)")  # a learned factor looks like this
    refused(state | {"b.loss.weight": torch.ones(3)}, r"1 unexpected key \(b\.loss\.weight\)")
    wrong = {"vgg.0.weight": torch.zeros(4, 3, 3, 3), "a.vgg.bias": torch.zeros(3)}
    refused(state | wrong, r"2 unexpected keys \(vgg\.0\.weight, a\.vgg\.bias\)")
    assert not build("nets.py:stages", {}).state_dict().keys() & state.keys()
    refused(
        under("0", state) | under("1", {**state, "b.weight": torch.zeros(3, 9, 3, 3)}),
        r"more than the architecture Net: 0\.\* fits, but 1\.\* would be left out; "
        r"if that is meant, give --weights-key 0\.",
    )
    assert about_weights(loaded(under("0", state) | under("1", state), arch="nets.py:stages")) == ()


def test_what_is_missing_is_never_made_up(state: State) -> None:
    del state["b.bias"]
    refused(
        {"state_dict": under("net", state)},
        r"under state_dict\.net, which comes nearest, 1 missing key \(b\.bias\)\. Check --arch and --arch-args\.",
    )
    refused(
        {"G": state, "D": D},
        r"holds several state dicts \(G, D\), none of which fits the architecture Net: "
        r"under G, .*1 missing key \(b\.bias\)",
    )
    torch.manual_seed(0)
    whole = build("nets.py:Windows", {}).state_dict()
    del whole["norm.running_mean"]
    refused(whole, r"1 missing key \(norm\.running_mean\)", arch="nets.py:Windows")


def test_buffers_that_an_architecture_computes_may_be_missing_or_surplus(state: State) -> None:
    whole = build("nets.py:Windows", {}).state_dict()
    computed = ["relative_position_index", "attn_mask", "norm.num_batches_tracked"]
    bare = {name: value for name, value in whole.items() if name not in computed}
    teacher = loaded(under("net", bare), arch="nets.py:Windows")
    assert has(teacher, whole)
    (told,) = about_weights(teacher)
    assert told.concluded == "net.* of the file; attn_mask, relative_position_index as the architecture computes them"
    teacher = loaded(whole | {"attn_mask": torch.zeros(8, 8)}, arch="nets.py:Windows")  # of another image size
    assert about_weights(teacher)[0].concluded == "the names as they are; attn_mask as the architecture computes it"
    assert teacher.module.state_dict()["attn_mask"].shape == (2, 2)
    surplus = whole | {"grid": torch.ones(1, 1, 2, 2)}
    teacher = loaded(surplus, arch="nets.py:Windows", arch_args={"persistent": False})
    (told,) = about_weights(teacher)
    assert told.concluded == "the names as they are; relative_position_index, attn_mask, grid are left out"
    assert told.certain and not dict(teacher.module.named_buffers())["grid"].any()
    assert about_weights(loaded({n: v for n, v in whole.items() if "tracked" not in n}, arch="nets.py:Windows")) == ()


def test_an_architecture_that_renames_old_weights_itself_still_does(state: State) -> None:
    old = {f"old_{name}": value for name, value in state.items()}
    assert has(loaded({"params": old}, arch="nets.py:Renames"), state)


def test_nothing_beside_the_weights_is_unpickled(state: State) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (Path("marker"),)

    for content in ({"G": state, "D": Touch()}, {"G": state, "D": {**D, "x": Touch()}}):
        refused(content, "pickled Python object", weights_key="G")
    assert not Path("marker").exists()


def test_the_command_line_takes_the_choice(state: State) -> None:
    torch.save({"netG_A": state, "netG_B": state}, "w.pth")
    command = ["layers", "w.pth", "--arch", "nets.py:Net", "--json"]
    failed = CliRunner().invoke(cli, command)
    assert failed.exit_code != 0
    assert CliRunner().invoke(cli, [*command, "--weights-key", "netG_B"]).exit_code == 0


# Without --arch


@pytest.fixture
def known(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for spandrel that recognises a Net and nothing else."""

    class MaskedImageModelDescriptor:
        pass

    def described(tensors: State) -> SimpleNamespace:
        module = build("nets.py:Net", {})
        module.load_state_dict(tensors, strict=True)
        kind = SimpleNamespace(__module__="spandrel.__helpers.model_descriptor")
        return SimpleNamespace(
            architecture=SimpleNamespace(name="Net"),
            purpose="Restoration",
            tiling=SimpleNamespace(name="SUPPORTED"),
            supports_half=True,
            input_channels=3,
            scale=1,
            model=module,
            _call_fn=kind,
            size_requirements=SimpleNamespace(minimum=0, multiple_of=1, square=False),
        )

    entry = SimpleNamespace(
        detect=lambda tensors: {"a.weight", "b.weight"} <= tensors.keys(),
        architecture=SimpleNamespace(name="Net", load=described),
    )
    registry = SimpleNamespace(architectures=lambda _order: [entry])
    stand_in = SimpleNamespace(MAIN_REGISTRY=registry, MaskedImageModelDescriptor=MaskedImageModelDescriptor)
    monkeypatch.setitem(sys.modules, "spandrel", stand_in)  # type: ignore[arg-type]  no module, but has what is read


@pytest.mark.parametrize(
    ("wrap", "concluded", "certain"),
    [
        (lambda s: s, "", True),
        (lambda s: {"params_ema": s}, "", True),
        (lambda s: {f"a.{n}".replace("a.", "_fsdp_wrapped_module.", 1): v for n, v in s.items()}, "", True),
        (lambda s: {"state_dict": under("net", s)}, "net.* of state_dict", True),
        (lambda s: s | {"a.total_ops": torch.zeros(1)}, "the names as they are; *.total_ops is left out", True),
        (lambda s: {"D": D, "G": s}, "G; D is left out", True),
        (lambda s: under("net", s) | under("netD", D), "net.* of the file; netD.* is left out", True),
        (lambda s: {"params": zeros(s), "params_ema": s}, "params_ema; params is left out", False),
        (
            lambda s: under("generator", zeros(s)) | under("generator_ema", s) | {"step_counter": torch.zeros(1)},
            "generator_ema.* of the file; generator.*, step_counter are left out",
            False,
        ),
    ],
)
@pytest.mark.usefixtures("known")
def test_the_same_is_undone_where_the_architecture_is_recognised(
    state: State, wrap: Any, concluded: str, certain: bool
) -> None:
    torch.save(wrap(state), "w.pth")
    teacher = load("w.pth")
    assert has(teacher, state)
    assert [(told.concluded, told.certain) for told in about_weights(teacher)] == (
        [(concluded, certain)] if concluded else []
    )


@pytest.mark.usefixtures("known")
def test_a_part_of_an_unknown_net_is_not_taken_for_the_net(state: State) -> None:
    refused(under("net", state) | {"refine.weight": torch.zeros(3, 3, 3, 3)}, "does not recognise", arch=None)
    refused(under("x", state) | under("y", state), r"recognises \(x, y\): choose one, --weights-key x or", arch=None)
    refused({"G": state, "F": zeros(state)}, r"spandrel recognises \(G, F\): choose one, --weights-key G or", arch=None)
    torch.save(under("x", zeros(state)) | under("y", state), "w.pth")
    assert has(load("w.pth", weights_key="y"), state)


def test_several_saved_modules_are_refused_with_what_to_type(folder: Path) -> None:
    first, second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    torch.save({"A": first, "B": second}, "m.pt")
    with pytest.raises(InputError, match=r"several modules \(A, B\); choose one: --weights-key A or --weights-key B\."):
        load("m.pt", trust_pickle=True)
    teacher = load("m.pt", trust_pickle=True, weights_key="B")
    assert has(teacher, second.state_dict())
