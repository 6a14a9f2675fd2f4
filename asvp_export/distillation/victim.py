"""What attackers hold: the shipped graph, which they can run, tap at any tensor, and change; beside it the original."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from asvp_export.errors import InputError
from asvp_export.files import sha256
from asvp_export.insertion.protected import Protected, Transform, exposed_and_residual, insert
from asvp_export.onnx_graph.contents import next_weighted
from asvp_export.onnx_graph.inline import fold
from asvp_export.onnx_graph.metadata import read_provenance
from asvp_export.onnx_graph.pairs import pairs
from asvp_export.onnx_graph.passes import without_nodes
from asvp_export.operator import Perturbation
from asvp_export.parity.removal import NodeFit
from asvp_export.signature import shape_text
from asvp_export.teacher.backends import Backend, OnnxBackend, open_backend
from asvp_export.teacher.layout import frozen
from asvp_export.teacher.model import Teacher, named_outputs
from asvp_export.teacher.onnx_model import OnnxModule, read_onnx

TAPS = ("exposed", "before", "readers", "next")
"""Where attackers read: the exposed map, under the layer's name; the tensor that goes into the node; the residual map,
which the layer's readers get; the output of the next layer with weights."""

PairTransform = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From a layer's clean map to its exposed and its residual one."""

_BATCH = 8


@dataclass(frozen=True, eq=False)
class Activations:
    """What one model shows on a batch: its outputs and its feature maps."""

    outputs: torch.Tensor
    """[N, C, H, W], as the model gives them."""

    features: Mapping[str, list[torch.Tensor]]
    """Tap to a feature map for each protected layer, [N, C, H, W] or as the layer gives it; without missing taps."""

    def __getitem__(self, tap: str) -> list[torch.Tensor]:
        return self.features[tap]


class Victim:
    """The shipped model and the original, as attackers and auditors can run them.

    Args:
        protected: the defence in PyTorch, or the graph of a file (`of_file`).
        file: the ONNX file that is shipped; it is then run as it is, by onnxruntime and the function body.
    """

    def __init__(self, protected: Protected, file: _File | None = None) -> None:
        self.teacher = protected.teacher
        self.nodes: dict[str, Perturbation] = dict(protected.nodes)
        self.protected = protected
        self._file = file
        self._backend = open_backend(self.teacher)
        self._original = self._tapped(insert(self.teacher, {}).module)
        if file:
            self._shipped = _Tapped(OnnxBackend(self.teacher, file.bare), file.bare, file.tensors)
        else:
            self._shipped = self._tapped(insert(self.teacher, {}, protected.weights).module)

    @classmethod
    def of_file(cls, teacher: Teacher, path: Path) -> Victim:
        """The shipped file beside the original.

        Raises:
            InputError: the file carries no node, names layers that the original does not have, or takes or gives
                something else.
        """
        file = _File(path)
        dims = frozen(file.module.image_sizes(teacher.signature), teacher.signature.channels_last)
        for ours, theirs in zip(
            (teacher.static_shape[0], teacher.channels, *teacher.static_shape[2:]), dims, strict=True
        ):
            if ours and theirs and ours != theirs:
                shapes = dims, (teacher.static_shape[0], teacher.channels, *teacher.static_shape[2:])
                file_images, teacher_images = (shape_text(side or "?" for side in shape) for shape in shapes)
                raise InputError(
                    f"{path} takes images of {file_images} (N x C x H x W) and {teacher.source} of {teacher_images}; "
                    "give the teacher that the file was exported from."
                )
        if len(file.module.output_names) != len(teacher.signature.outputs):
            raise InputError(
                f"{path} has {len(file.module.output_names)} outputs and {teacher.source} "
                f"{len(teacher.signature.outputs)}; give the teacher that the file was exported from."
            )
        batch, _, height, width = (ours or theirs for ours, theirs in zip(teacher.static_shape, dims, strict=True))
        teacher = replace(teacher, static_shape=(batch, teacher.static_shape[1], height, width))
        return cls(Protected(teacher, file.bare, file.nodes), file)

    @property
    def notes(self) -> list[str]:
        """What an auditor should know of the two."""
        if self._file and self._file.source_sha256 not in ("", self.teacher.sha256):
            return [
                f"{self._file.path.name} was not exported from {self.teacher.source} (the sha256 differs): unless it "
                "is the same model in another file, the verdict includes the difference between two models"
            ]
        return []

    def _tapped(self, module: nn.Module) -> _Tapped:
        """A copy of the original's module with taps where its nodes stand."""
        sites = self._backend.names.sites
        if missing := [layer for layer in self.nodes if layer not in sites]:
            raise InputError(
                f"{missing[0]} carries a node, and {self.teacher.source} has no layer of that name; "
                "give the teacher that the file was exported from."
            )
        return _Tapped(self._backend, module, {layer: (sites[layer],) for layer in self.nodes})

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the original and of what is shipped."""
        digest = hashlib.sha256(self.teacher.sha256.encode())
        if self._file:
            digest.update(sha256(self._file.path).encode())
        digest.update(json.dumps({name: node.described() for name, node in self.nodes.items()}).encode())
        for name, weight in sorted(self.protected.weights.items()):
            digest.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def original(self, images: torch.Tensor) -> Activations:
        """The unprotected teacher; at its taps the clean feature maps."""
        all_taps = self._look(lambda batch: self._original.run(self.teacher, batch, {}), images)
        clean = {tap: all_taps[tap] for tap in all_taps.features if tap in ("exposed", "next")}
        return Activations(all_taps.outputs, clean)

    def shipped(self, images: torch.Tensor) -> Activations:
        """The shipped model as it is."""
        if file := self._file:
            return self._look(lambda batch: file.run(self.teacher, batch), images)
        pairs = {name: partial(exposed_and_residual, node=node) for name, node in self.nodes.items()}
        return self._look(lambda batch: self._shipped.run(self.teacher, batch, pairs), images)

    def without_nodes(self, images: torch.Tensor, transforms: Mapping[str, Transform]) -> Activations:
        """The shipped graph with node and inverse replaced by their layer's transform, deleted where there is none."""
        pairs = {layer: partial(_same_for_both, transform) for layer, transform in transforms.items()}
        return self._look(lambda batch: self._shipped.run(self.teacher, batch, pairs), images)

    def deleted(self) -> nn.Module | None:
        """The shipped graph without its nodes, to train further: its weights are its own; None without gradients."""
        if self._file or not self._backend.trainable:
            return None
        module = insert(self.teacher, {}, self.protected.weights).module
        weights = {  # under every name of a tied weight: the one left out would be the teacher's own memory
            f"{part}.{leaf}" if part else leaf: weight.detach().clone()
            for part, submodule in module.named_modules()
            for leaf, weight in submodule.named_parameters(recurse=False)
        }
        return insert(self.teacher, {}, weights).module

    def tapped(self, module: nn.Module) -> Callable[[torch.Tensor], Activations]:
        """A changed graph, from `deleted`, with taps at the same layers."""
        tapped = self._tapped(module)
        return lambda images: self._look(lambda batch: tapped.run(self.teacher, batch, {}), images)

    def _look(self, run: Callable[[torch.Tensor], Activations], images: torch.Tensor) -> Activations:
        return _in_static_batches(run, images, self.teacher.static_shape[0])

    def fits(self, images: torch.Tensor) -> dict[str, NodeFit]:
        """For each layer what attackers can fit instead of node and inverse: from the clean and the residual map."""
        fits = {layer: NodeFit(node.axis) for layer, node in self.nodes.items()}
        for batch in images.split(_BATCH):
            shipped = self.shipped(batch)
            for fit, clean, residual in zip(fits.values(), shipped["before"], shipped["readers"], strict=True):
                fit.add(clean, residual)
        return fits


def in_batches(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """Pieces that memory holds with all feature maps."""
    yield from images.split(_BATCH)


def _same_for_both(transform: Transform, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One transform instead of both nodes: what is exposed is what the readers get."""
    changed = transform(x)
    return changed, changed


class _Tapped:
    """A module whose feature maps are read, and replaced, behind some layers."""

    def __init__(self, backend: Backend, module: nn.Module, sites: Mapping[str, Sequence[str]]) -> None:
        self._sites = dict(sites)
        self._transforms: Mapping[str, PairTransform] = {}
        self._maps: dict[tuple[str, str], torch.Tensor] = {}
        self._awaiting_next: set[str] = set()
        taps = backend.tap(module, sites)
        self.module = taps.module
        for layers, part in taps.followers:  # before the layers themselves: a layer does not follow itself
            part.register_forward_hook(self._next_hook(layers))
        for layer, parts in taps.parts.items():
            for part in parts:
                part.register_forward_hook(self._hook(layer))

    def _hook(self, layer: str):
        def hook(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
            exposed, residual = self._transforms[layer](output) if layer in self._transforms else (output, output)
            if (layer, "before") not in self._maps:  # else it is called again
                # Copies: an in-place ReLU, or a sum, may write into what flows on.
                maps = {"before": output, "exposed": exposed, "readers": residual}
                self._maps |= {(layer, tap): x.clone() for tap, x in maps.items()}
                self._awaiting_next.add(layer)
            return residual

        return hook

    def _next_hook(self, layers: Collection[str]):
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            reached = self._awaiting_next.intersection(layers)
            self._awaiting_next -= reached
            if reached and isinstance(output, torch.Tensor):
                self._maps |= dict.fromkeys(((layer, "next") for layer in reached), output.clone())

        return hook

    def run(self, teacher: Teacher, images: torch.Tensor, transforms: Mapping[str, PairTransform]) -> Activations:
        self._transforms, self._maps, self._awaiting_next = transforms, {}, set()
        with torch.inference_mode():
            outputs = _main(teacher, self.module(*teacher.inputs(images.to(teacher.device))))
        return Activations(outputs, _by_tap(self._sites, self._maps))


class _File:
    """The shipped file: run as it is with its taps as further outputs, and its graph without the nodes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.module = read_onnx(path)
        model = onnx.ModelProto()
        model.CopyFrom(self.module.model)
        fold(model)
        provenance = read_provenance({entry.key: entry.value for entry in model.metadata_props})
        calls = [call for call in pairs(model, provenance.layers if provenance else ()) if not call.name.inverse]
        if not calls:
            raise InputError(
                f"{path} carries no ASVP node; give the protected file, or --layers to protect the model here."
            )
        self.source_sha256 = provenance.source_sha256 if provenance else ""
        self.bare = OnnxModule(without_nodes(model), path.parent)
        self.nodes: dict[str, Perturbation] = {}
        self.tensors: dict[str, tuple[str, ...]] = {}
        self._taps: dict[tuple[str, str], str] = {}
        for call in calls:
            layer, (clean, exposed) = call.name.layer, (call.node.input[0], call.node.output[0])
            self.tensors[layer] = (*self.tensors.get(layer, ()), clean)
            if layer not in self.nodes:  # a layer that is called again has a node at each call; the first is read
                self.nodes[layer] = call.perturbation()
                taps = {"before": clean, "exposed": exposed, "readers": call.readers}
                self._taps |= {(layer, tap): tensor for tap, tensor in taps.items()}
                if following := next_weighted(model, call.readers):
                    self._taps[layer, "next"] = following

    @cached_property
    def _outputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.module.output_names, *self._taps.values()]))

    @cached_property
    def _session(self):
        return self.module.session(self._outputs)

    def run(self, teacher: Teacher, images: torch.Tensor) -> Activations:
        feeds = {name: x.numpy() for name, x in self.module.cast(teacher.inputs(images)).items()}
        values = dict(zip(self._outputs, self._session.run(list(self._outputs), feeds), strict=True))
        features = {key: torch.from_numpy(values[name]).float() for key, name in self._taps.items()}
        outputs = [torch.from_numpy(values[name]) for name in self.module.output_names]
        return Activations(_main(teacher, tuple(outputs)), _by_tap(self.nodes, features))


def _main(teacher: Teacher, result: object) -> torch.Tensor:
    output = list(named_outputs(result).values())[teacher.signature.main]
    return teacher.signature.from_model(output).float()


def _by_tap(
    layers: Mapping[str, object] | Sequence[str], maps: Mapping[tuple[str, str], torch.Tensor]
) -> dict[str, list[torch.Tensor]]:
    return {
        tap: [maps[layer, tap] for layer in layers] for tap in TAPS if all((layer, tap) in maps for layer in layers)
    }


def _in_static_batches(
    run: Callable[[torch.Tensor], Activations], images: torch.Tensor, size: int | None
) -> Activations:
    """Run a model whose batch is fixed at `size` (None: it is free), the last batch padded with its last image."""
    if size is None or len(images) == size:
        return run(images)
    activations = []
    for batch in images.split(size):
        padded = run(torch.cat([batch, batch[-1:].expand(size - len(batch), *batch.shape[1:])]))
        features = {tap: [x[: len(batch)] for x in padded[tap]] for tap in padded.features}
        activations.append(Activations(padded.outputs[: len(batch)], features))
    outputs = torch.cat([batch.outputs for batch in activations])
    features = {
        tap: [torch.cat(layer) for layer in zip(*(batch[tap] for batch in activations), strict=True)]
        for tap in activations[0].features
    }
    return Activations(outputs, features)


def laid_out(features: torch.Tensor, axis: int) -> torch.Tensor:
    """A feature map as [N, C, H, W] float32: channels moved to axis 1, tokens laid out as a square.

    Raises:
        InputError: tokens that make no square.
    """
    x = features.movedim(axis, 1).float()
    if x.ndim == 3:
        side = int(np.sqrt(x.shape[2]))
        if side * side != x.shape[2]:
            raise InputError(
                f"{x.shape[2]} tokens of a square patch cannot be laid out as a square, which an audit needs. Protect "
                "another layer."
            )
        x = x.unflatten(2, (side, side))
    if x.ndim != 4:
        raise InputError(f"A feature map of {x.ndim} dimensions cannot be imitated; 3 or 4 were expected.")
    return x
