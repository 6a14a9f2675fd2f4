"""Selecting layers by name and by glob, and what is refused with its reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import asvp_export.operator  # noqa: F401  registers torch.ops.asvp.perturb
from asvp_export.selection.select import select
from asvp_export.selection.survey import survey_layers
from asvp_export.teacher.load import load
from asvp_export.teacher.model import Teacher
from tests.helpers.survey_nets import Zoo, refused, to_dict, to_matrix, to_nothing, to_number, to_pair

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["head"], ["head"]),
        (["tail,head", "head"], ["head", "tail"]),
        (["tail , body.1.conv1", "head"], ["head", "body.1.conv1", "tail"]),
        (["body.*"], ["body.0", "body.1"]),
        (["body.*.conv?"], ["body.0.conv1", "body.0.conv2", "body.1.conv1", "body.1.conv2"]),
        (["body.[1-9].conv[!2]"], ["body.1.conv1"]),
        (["**.conv1"], ["body.0.conv1", "body.1.conv1"]),
        (["*"], ["head", "tail"]),
        (["**.head"], ["head"]),
        (["bod*.0.*"], ["body.0.conv1", "body.0.act", "body.0.conv2"]),
        (["body.0.**"], ["body.0.conv1", "body.0.act", "body.0.conv2"]),
    ],
)
def test_names_and_globs_are_resolved_in_call_order(net: Teacher, patterns: list[str], names: list[str]) -> None:
    assert list(select(net, patterns)) == names


def test_one_string_is_taken_as_one_pattern(net: Teacher) -> None:
    assert list(select(net, "tail,head")) == ["head", "tail"]


def test_unknown_names_and_empty_globs_name_the_nearest(net: Teacher) -> None:
    refused(net, ["body.0.conv3"], "there is no layer 'body.0.conv3'; the nearest are body.0.conv[12], ")
    refused(
        net,
        ["zzz"],
        r"there is no layer 'zzz'; \d+ layers can carry the node \(\d+ \w+, .*asvp-export layers MODEL lists them",
    )
    refused(net, ["auto"], "there is no layer 'auto'")
    refused(net, ["bodies.*"], r"no layer matches 'bodies\.\*' .*; the nearest names are body")
    refused(net, ["conv1.*"], "no layer matches")
    refused(net, ["head", "["], "cannot be read|no layer matches")
    refused(net, ["[z-a]"], "cannot be read")
    refused(net, [], "no layer is named")
    refused(net, [" , "], "no layer is named")


def test_what_cannot_carry_the_node_is_refused_with_its_reason(net: Teacher) -> None:
    refused(net, ["spare"], "the layer spare cannot carry the node: it is never called")
    refused(net, ["body"], "the layer body cannot carry the node: it is a list of modules")
    refused(net, ["head", "spar*"], r"none of the layers that match 'spar\*' can carry the node: spare is never called")
    teacher = load(Zoo(to_pair, to_matrix, to_number, to_nothing, to_dict))
    refused(teacher, ["side.*"], "side.to_pair returns a tuple.*; side.to_matrix .*; side.to_number .*; and 2 more")


class Sharing(nn.Module):
    """A container, an inactive dropout and an identity that all return one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(inplace=True))
        self.drop = nn.Dropout(0.5)
        self.same = nn.Identity()
        self.tail = nn.Conv2d(5, 3, 1)
        self.alias = self.tail

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.same(self.drop(self.body(x))))


def test_one_tensor_does_not_get_two_nodes() -> None:
    teacher = load(Sharing())
    refused(teacher, ["body", "body.1"], "body.1 and body return one and the same tensor")
    refused(teacher, ["drop,same"], "drop and same return one and the same tensor")
    assert list(select(teacher, ["body.0,body.1"])) == ["body.0", "body.1"]  # the in-place ReLU makes another map
    assert list(select(teacher, ["**"])) == ["body.0", "body.1", "tail"]
    assert list(select(teacher, ["body,**"])) == ["body.0", "body", "tail"]
    assert list(select(teacher, ["*"])) == ["body", "tail"]


def test_a_module_with_two_names_goes_under_the_first() -> None:
    assert list(select(load(Sharing()), ["alias"])) == ["tail"]


def test_selected_layers_take_the_node(net: Teacher) -> None:
    image = net.example(40, 48, batch=2)
    clean = net.module(image)
    axes = {layer.name: layer.axis for layer in survey_layers(net)[0]}
    for name in select(net, ["**"]):
        module = net.module.get_submodule(name)
        module.register_forward_hook(lambda _m, _i, y, a=axes[name]: torch.ops.asvp.perturb(y, 1, 1.5, 1.0, a))
    assert net.module(image).shape == clean.shape
    assert not torch.equal(net.module(image), clean)
