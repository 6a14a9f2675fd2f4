"""From a file or a module in memory to a teacher that is ready to run."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from asvp_export.assumptions import Assumption
from asvp_export.errors import InputError
from asvp_export.files import sha256
from asvp_export.signature import NCHW, SizeRule, ValueRange
from asvp_export.teacher import checkpoint, formats
from asvp_export.teacher.architecture import build, one_line
from asvp_export.teacher.child import PROBE_TIMEOUT, apart
from asvp_export.teacher.example_inputs import how_to_give, read_inputs, required, signature_of
from asvp_export.teacher.fitting import fit
from asvp_export.teacher.layout import first_that_works, frozen, readings
from asvp_export.teacher.model import Architecture, Teacher
from asvp_export.teacher.norms import statistics_assumed, use_input_statistics
from asvp_export.teacher.onnx_model import OnnxModule, read_onnx
from asvp_export.teacher.probe import Findings, Subject, probe
from asvp_export.teacher.pt2 import Sizes, load_archive
from asvp_export.teacher.recognition import inputs_of, recognise
from asvp_export.teacher.torchscript import load_torchscript


def load(
    model: str | Path | nn.Module,
    *,
    arch: str | None = None,
    arch_args: dict[str, Any] | None = None,
    trust_pickle: bool = False,
    data_range: float | str | tuple[float, float] | ValueRange | None = None,
    main_output: str | None = None,
    norm_statistics: str = "stored",
    inputs: str | Path | None = None,
    layout: str | None = None,
    device: str = "cpu",
    weights_key: str | None = None,
    probe_timeout: float = PROBE_TIMEOUT,
) -> Teacher:
    """Load a trained model and find out by running it on small images what it takes and returns.

    A file's format is told from its content. Nothing in a file is run or unpickled in full unless `trust_pickle` is
    set; an architecture given by `arch` is the user's own Python code and is run.

    Args:
        model: a state dict (.safetensors, .pt, .pth), a torch.export archive (.pt2), an ONNX file, a TorchScript archive,
            a saved `nn.Module` (with `trust_pickle`), or a module in memory, which is copied and left as it was.
        arch: for a state dict: "package.module:factory" or "path/nets.py:factory". Where it is not given, spandrel
            (the extra asvp-export[spandrel]) tells the architecture from the state dict.
        arch_args: keyword arguments for the factory.
        trust_pickle: unpickle the file in full, which runs code of its author's choice.
        data_range: the values of black and white that the model expects: "0..1", "-1..1", "0..255", or white alone (1.0,
            255.0). By default it is detected where it shows (`asvp_export.teacher.probe`), and 0..1 otherwise.
        main_output: of a model with several outputs, the name or the number (from 0) of the one that is the restored
            picture. By default it is chosen (`asvp_export.teacher.main_output`).
        norm_statistics: "stored": normalisation layers use what training stored (evaluation mode); "input": they use
            the statistics of each input, for models that are meant to run in training mode.
        inputs: file (.npz, .pt) with an example of each input, by name or in order: for models that take more than the
            image (a noise map, a noise level), videos, or channels other than 3, 1 and 4.
        layout: "nchw" (channels first) or "nhwc" (channels last), of the image and the outputs. By default it is told from the
            sizes that a file declares and what its graph does first, else by running the model (`asvp_export.teacher.layout`).
        device: "cpu" or "cuda".
        weights_key: which weights are meant where a file holds several state dicts: the keys that lead to them, and then
            what their names begin with, joined by dots ("params", "state_dict.generator").
        probe_timeout: seconds that an ONNX or TorchScript file may take for a run on a small image. Such a file is tried out in
            a process of its own (`asvp_export.teacher.child`).

    Returns:
        The teacher: evaluation mode, float32, gradients off. What was concluded, and could have been concluded otherwise,
        stands in its `assumptions`.

    Raises:
        InputError: the file, the architecture or an option cannot be used; the message says what to do.
        MachineError: memory ran out.
    """
    _check_device(device)
    values = None if data_range is None else ValueRange.read(data_range)
    examples = None if inputs is None else read_inputs(Path(inputs))
    if arch_args and not arch:
        raise InputError(
            "The arch_args were given without arch; name the architecture too (--arch package.module:factory)."
        )
    if isinstance(model, nn.Module):
        _check_weights(model, type(model).__name__)
        _refuse_arch(arch, "a module", weights_key)
        opened = _Opened(_copied(model), "module")
        source, digest = type(model).__name__, _hash_state(opened.module)
    else:
        path = Path(model)
        opened = _from_file(path, arch, arch_args, trust_pickle, weights_key)
        source, digest = path.name, sha256(path)
    known, sizes = opened.architecture, opened.sizes
    module = _ready(opened.module, source, device)
    if norm_statistics != "stored":
        use_input_statistics(module, source, norm_statistics)
    if known is not None:  # spandrel's architectures are called with images in 0..1
        values = values or ValueRange()
        layout = layout or NCHW
    if isinstance(module, OnnxModule):
        if examples is None and len(module.inputs) > 1:
            raise InputError(how_to_give(source, module.example_shapes))
        sizes = module.image_sizes(None if examples is None else signature_of(examples, module, source))

    def attempt(channels_last: bool) -> Findings:
        signature = replace(inputs_of(known), channels_last=channels_last) if known else None
        if examples is not None:
            signature = signature_of(examples, module, source, channels_last)
        dims, stated = frozen(sizes, channels_last), known.size if known else SizeRule()
        subject = Subject(module, source, device, runs, main_output)
        return probe(subject, signature, dims, values, stated, channels_last)

    file = None if isinstance(model, nn.Module) else Path(model)
    with apart(module, file, device, probe_timeout) as runs:
        try:
            found, about_layout = first_that_works(readings(layout, sizes, module), attempt)
        except InputError as error:
            if examples is not None or len(names := required(module)) < 2:
                raise
            image = {names[0]: (1, 3, 64, 64)}
            raise InputError(how_to_give(source, image | dict.fromkeys(names[1:]))) from error
    size = found.size.stricter(known.size) if known else found.size
    signature = found.signature
    if isinstance(module, OnnxModule):  # the file's own names
        signature = replace(signature, image_name=module.input_names[signature.place], outputs=module.output_names)
    teacher = Teacher(
        module, source, digest, opened.kind, signature, found.scale, size, found.data_range, found.fixed, device, known,
        (*opened.assumptions, *about_layout, *found.assumptions),
    )  # fmt: skip
    about_norms = () if norm_statistics != "stored" else statistics_assumed(teacher)
    return replace(teacher, assumptions=(*teacher.assumptions, *about_norms))


@dataclass(frozen=True)
class _Opened:
    """What was in a file."""

    module: nn.Module
    """The model, as it was there."""

    kind: str
    """`Teacher.format`."""

    sizes: Sizes = (None, None, None, None)
    """The sizes that it declares for its image, in its own order."""

    architecture: Architecture | None = None
    """Where that was recognised."""

    assumptions: tuple[Assumption, ...] = ()
    """What was concluded of its weights."""


def _ready(module: nn.Module, source: str, device: str) -> nn.Module:
    """The module in evaluation mode, in float32, on its device, without gradients."""
    _check_weights(module, source)
    try:
        with torch.no_grad():  # a ScriptModule would make its weights results of the conversion
            module = module.float().to(device).eval()
        for weight in module.parameters():
            weight.requires_grad_(False)
    except Exception as error:
        raise InputError(f"{source} cannot be moved to {device} as float32: {one_line(error)}.") from error
    return module


def _from_file(
    path: Path, arch: str | None, arch_args: dict[str, Any] | None, trust_pickle: bool, weights_key: str | None
) -> _Opened:
    kind = formats.recognise(path)
    if kind in (formats.PT2, formats.PT2_OLD):
        _refuse_arch(arch, f"{path}, a torch.export archive", weights_key)
        module, sizes = load_archive(path, kind == formats.PT2_OLD, trust_pickle)
        return _Opened(module, "pt2", sizes)
    if kind == formats.ONNX:
        _refuse_arch(arch, f"{path}, an ONNX file", weights_key)
        return _Opened(read_onnx(path), "onnx")
    if kind == formats.TORCHSCRIPT:
        _refuse_arch(arch, f"{path}, a TorchScript archive", weights_key)
        return _Opened(load_torchscript(path, trust_pickle), "torchscript")
    if kind == formats.SAFETENSORS:
        content: Any = checkpoint.read_safetensors(path)
    else:
        content = checkpoint.read_torch(path, trust_pickle)
    weights = checkpoint.find(content, path, weights_key)
    if isinstance(weights, nn.Module):
        _refuse_arch(arch, f"{path}, a saved module")
        return _Opened(weights, "pickle")
    if not arch:
        found = recognise(weights, path)
        return _Opened(found.module, "state-dict", architecture=found.architecture, assumptions=found.assumptions)
    module = build(arch, arch_args)
    return _Opened(module, "state-dict", assumptions=fit(module, weights, path))


def _refuse_arch(arch: str | None, what: str, weights_key: str | None = None) -> None:
    if arch:
        raise InputError(f"{what}, holds its architecture: leave --arch {arch} out, it is not needed.")
    if weights_key:
        raise InputError(f"{what}, holds one model: leave --weights-key {weights_key} out, there is nothing to choose.")


def _check_weights(module: nn.Module, source: str) -> None:
    if isinstance(module, OnnxModule | torch.jit.ScriptModule):
        return  # its weights may be constants of the graph
    weights = [*module.parameters(), *module.buffers()]
    if not weights:
        raise InputError(f"{source} has no weights; expected a trained model.")
    if any(weight.is_meta or is_lazy(weight) for weight in weights):
        raise InputError(
            f"{source} has weights without values (lazy, or on the meta device); expected a trained model."
        )


def _copied(module: nn.Module) -> nn.Module:
    try:
        with torch.no_grad():  # the weights of a ScriptModule would be results of the copying
            return copy.deepcopy(module)
    except Exception as error:
        raise InputError(f"The module {type(module).__name__} cannot be copied: {one_line(error)}.") from error


def _check_device(device: str) -> None:
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"The device {device!r} is unknown; expected cpu or cuda.") from error
    if wanted.type not in ("cpu", "cuda"):
        raise InputError(f"The device {device!r} is not supported; expected cpu or cuda.")
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise InputError(
            f"The device {device!r} was asked for, but PyTorch sees {found} CUDA devices; use --device cpu."
        )


def _hash_state(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
