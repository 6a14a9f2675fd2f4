"""Which of a model's outputs is the restored picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from asvp_export.assumptions import Assumption
from asvp_export.errors import InputError
from asvp_export.onnx_graph.contents import reads
from asvp_export.teacher.onnx_model import OnnxModule

OPTION = "--main-output NAME"


class MainOutput:
    """Chooses the main output, the same one at every size.

    The one that is asked for. Else, of the floating image batches, those with the image's channels (else those of 3 or
    1); of these the largest; of several as large the one that is computed from the others, the last stage. Where that
    does not decide, the first.

    Args:
        module: the model.
        source: its name, for messages.
        requested: the output's name, or its position as a number; None: to be found.
    """

    def __init__(self, module: nn.Module, source: str, requested: str | None) -> None:
        self._module, self._source, self._requested = module, source, requested
        self._order: dict[tuple[str, ...], str] = {}
        self._assumption: Assumption | None = None

    @property
    def assumptions(self) -> tuple[Assumption, ...]:
        """What was concluded, where there was more than one output."""
        return (self._assumption,) if self._assumption else ()

    def choose(self, outputs: Mapping[str, torch.Tensor], image: torch.Tensor, inputs: Sequence[torch.Tensor]) -> int:
        """The position of the main output among all of one run.

        Args:
            outputs: name to tensor, channels first; at least one of them a floating image batch.
            image: the image batch, channels first.
            inputs: what was run, in the model's order and layout.

        Raises:
            InputError: the output that is asked for is not there, or is no image batch.
        """
        names = list(outputs)
        pictures = [name for name, tensor in outputs.items() if is_picture(tensor, image.shape[0])]
        if self._requested is not None:
            return names.index(self._named(pictures, outputs))
        alike = [name for name in pictures if outputs[name].shape[-3] == image.shape[-3]]
        alike = alike or [name for name in pictures if outputs[name].shape[-3] in (1, 3)] or pictures
        size = max(outputs[name].shape[-2:].numel() for name in alike)
        largest = tuple([name for name in alike if outputs[name].shape[-2:].numel() == size])
        if len(largest) > 1 and largest not in self._order:
            self._order[largest] = _last_computed(self._module, names, largest, inputs)
        last = self._order.get(largest, "")
        chosen = last or next(iter(largest))
        self._note(chosen, names, alike, largest, bool(last))
        return names.index(chosen)

    def _named(self, pictures: Sequence[str], outputs: Mapping[str, torch.Tensor]) -> str:
        requested = str(self._requested)
        name = list(outputs)[int(requested)] if requested.isdecimal() and int(requested) < len(outputs) else requested
        if name in pictures:
            return name
        shown = ", ".join(f"{picture} {'x'.join(map(str, outputs[picture].shape))}" for picture in pictures)
        raise InputError(
            f"The main output {requested} was asked for; the pictures among the outputs of {self._source} are {shown}. "
            "Give one of these to --main-output."
        )

    def _note(
        self, chosen: str, names: Sequence[str], alike: Sequence[str], largest: Sequence[str], last: bool
    ) -> None:
        if len(names) == 1:
            return
        others = ", ".join(name for name in names if name != chosen)
        if len(alike) == 1:
            because = f"it alone has a picture's channels (the others: {others})"
        elif len(largest) == 1:
            because = f"it is the largest picture (the others: {others})"
        elif last:
            behind = [name for name in largest if name != chosen]
            because = f"it is computed from {', '.join(behind)}, and is equally large"
        else:
            because = f"it is the first of several equally large pictures (the others: {others})"
        self._assumption = Assumption("main output", chosen, because, len(alike) == 1, OPTION)


def is_picture(tensor: torch.Tensor, batch: int) -> bool:
    """Whether an output is a floating image batch, N,C,H,W or N,T,C,H,W."""
    return tensor.is_floating_point() and tensor.ndim in (4, 5) and tensor.shape[0] == batch


def _last_computed(
    module: nn.Module, all_names: Sequence[str], names: Sequence[str], inputs: Sequence[torch.Tensor]
) -> str:
    """The output that all the others named go into; "" where there is none, or it cannot be found out."""
    try:
        graph = isinstance(module, OnnxModule)
        before = _graph_order(module, names) if graph else _traced(module, all_names, names, inputs)
    except Exception:  # a user's model with gradients may raise anything
        return ""
    last = [name for name in names if all(other in before[name] for other in names if other != name)]
    return last[0] if last else ""  # several: one tensor under several names


def _graph_order(module: OnnxModule, names: Sequence[str]) -> dict[str, set[str]]:
    """Name to the named outputs that it is computed from, of an ONNX graph."""
    behind: dict[str, set[str]] = {}
    for node in module.model.graph.node:
        ancestors = {name for read in reads(node) for name in (*behind.get(read, ()), read) if name in names}
        for output in node.output:
            behind[output] = ancestors
    return {name: behind.get(name, set()) for name in names}


def _traced(
    module: nn.Module, all_names: Sequence[str], names: Sequence[str], inputs: Sequence[torch.Tensor]
) -> dict[str, set[str]]:
    """The same of a module, from PyTorch's record of a run."""
    from asvp_export.teacher.model import named_outputs

    floats = [x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    with torch.enable_grad():
        arguments = [x * 1 if x.requires_grad else x for x in floats]  # a forward may write into what it gets
        outputs = dict(zip(all_names, named_outputs(module(*arguments)).values(), strict=True))
        ancestors: dict[str, set[str]] = {}
        for name in names:
            others = [other for other in names if other != name]
            grads = torch.autograd.grad(
                outputs[name].sum(), [outputs[other] for other in others], retain_graph=True, allow_unused=True
            )
            ancestors[name] = {other for other, grad in zip(others, grads, strict=True) if grad is not None}
    return ancestors
