"""From a file or a module in memory to a teacher that is ready to run."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from asvp_export.assumptions import Assumption
from asvp_export.errors import InputError, summary
from asvp_export.files import sha256
from asvp_export.keywords import LoadKeywords
from asvp_export.option_groups import grouped
from asvp_export.options import LoadOptions
from asvp_export.signature import NCHW, SizeRule, ValueRange
from asvp_export.teacher import checkpoint, formats
from asvp_export.teacher.architecture import build
from asvp_export.teacher.child import Child, Limits, child_process
from asvp_export.teacher.example_inputs import how_to_give, read_inputs, required, signature_of
from asvp_export.teacher.fitting import fit
from asvp_export.teacher.layout import first_that_works, frozen, readings
from asvp_export.teacher.model import Architecture, Teacher
from asvp_export.teacher.norms import statistics_assumed, use_input_statistics
from asvp_export.teacher.onnx_model import OnnxModule, read_onnx
from asvp_export.teacher.probe import Findings, Subject, probe
from asvp_export.teacher.pt2 import Sizes, load_archive
from asvp_export.teacher.spandrel import recognise, spandrel_signature
from asvp_export.teacher.torchscript import load_torchscript, refuse_unsafe_code


def load(model: str | Path | nn.Module, **options: Unpack[LoadKeywords]) -> Teacher:
    """Load a trained model and find out by running it on small images what it takes and returns.

    A file's format is told from its content. Nothing in a file is run or unpickled in full unless `trust_pickle` is
    set; an architecture given by `arch` is the user's own Python code and is run.

    Args:
        model: a state dict (.safetensors, .pt, .pth), a torch.export archive (.pt2), an ONNX file, a TorchScript
            archive, a saved `nn.Module` (with `trust_pickle`), or a module in memory, which is copied and left as it
            was.
        **options: see `asvp_export.options.LoadOptions`. `data_range` may be a word ("0..255"), a pair, or white alone
            (255.0); `device` may be "cuda:1".

    Returns:
        The teacher: evaluation mode, float32, gradients off. Its `assumptions` say what was concluded, and could have
        been concluded otherwise.

    Raises:
        InputError: the file, the architecture or an option cannot be used; the message says what to do.
        MachineError: memory ran out.
    """
    return load_teacher(model, *grouped(options, LoadKeywords, LoadOptions))


def load_teacher(model: str | Path | nn.Module, options: LoadOptions) -> Teacher:
    """`load`, with the options as an object."""
    _check_device(options.device)
    if options.arch_args and not options.arch:
        raise InputError(
            "Arguments of the architecture (--arch-args) were given without an architecture; name it too (--arch "
            "package.module:factory)."
        )
    file = None if isinstance(model, nn.Module) else Path(model)
    with child_process(file, options.device, Limits(options.probe_timeout, options.probe_memory)) as child:
        return _teacher(model, options, child)


def _teacher(model: str | Path | nn.Module, options: LoadOptions, child: Child) -> Teacher:
    values = None if options.data_range is None else ValueRange.read(options.data_range)
    examples = None if options.inputs is None else read_inputs(options.inputs)
    opened, source, digest = _opened(model, options, child)
    architecture, sizes, layout = opened.architecture, opened.sizes, options.layout
    module = _prepared(opened.module, source, options.device)
    if options.norm_statistics != "stored":
        use_input_statistics(module, source, options.norm_statistics)
    if architecture is not None:  # spandrel's architectures are called with images in 0..1
        values = values or ValueRange()
        layout = layout or NCHW
    if isinstance(module, OnnxModule):
        if examples is None and len(module.inputs) > 1:
            raise InputError(how_to_give(source, module.example_shapes))
        sizes = module.image_sizes(None if examples is None else signature_of(examples, module, source))

    def attempt(channels_last: bool) -> Findings:
        signature = replace(spandrel_signature(architecture), channels_last=channels_last) if architecture else None
        if examples is not None:
            signature = signature_of(examples, module, source, channels_last)
        dims, stated = frozen(sizes, channels_last), architecture.size if architecture else SizeRule()
        subject = Subject(module, source, options.device, call, options.main_output)
        return probe(subject, signature, dims, values, stated, channels_last)

    call = child.stand_for(module)
    try:
        findings, about_layout = first_that_works(readings(layout, sizes, module), attempt)
    except InputError as error:
        if examples is not None or len(names := required(module)) < 2:
            raise
        image = {names[0]: (1, 3, 64, 64)}
        raise InputError(how_to_give(source, image | dict.fromkeys(names[1:]))) from error
    size = findings.size.stricter(architecture.size) if architecture else findings.size
    signature = findings.signature
    if isinstance(module, OnnxModule):  # the file's own names
        signature = replace(
            signature, image_name=module.input_names[signature.image_index], outputs=module.output_names
        )
    assumptions = (*opened.assumptions, *about_layout, *findings.assumptions)
    teacher = Teacher(
        module=module,
        source=source,
        sha256=digest,
        format=opened.kind,
        signature=signature,
        scale=findings.scale,
        size=size,
        data_range=findings.data_range,
        static_shape=findings.static_shape,
        device=options.device,
        architecture=architecture,
        assumptions=assumptions,
    )
    about_norms = () if options.norm_statistics != "stored" else statistics_assumed(teacher)
    return replace(teacher, assumptions=(*assumptions, *about_norms))


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


def _opened(model: str | Path | nn.Module, options: LoadOptions, child: Child) -> tuple[_Opened, str, str]:
    """What is in a file or is handed in, its name, and its SHA-256."""
    if isinstance(model, nn.Module):
        name = type(model).__name__
        _check_weights(model, name)
        _refuse_arch(options.arch, "a module", options.weights_key)
        module = _copied(model)
        return _Opened(module, "module"), name, _hash_state(module)
    path = Path(model)
    return _from_file(path, options, child), path.name, sha256(path)


def _prepared(module: nn.Module, source: str, device: str) -> nn.Module:
    """The module in evaluation mode, in float32, on its device, without gradients."""
    _check_weights(module, source)
    try:
        with torch.no_grad():  # a ScriptModule would make its weights results of the conversion
            module = module.float().to(device).eval()
        for weight in module.parameters():
            weight.requires_grad_(False)
    except Exception as error:
        raise InputError(f"{source} cannot be moved to {device} as float32: {summary(error)}.") from error
    return module


def _from_file(path: Path, options: LoadOptions, child: Child) -> _Opened:
    arch, trust_pickle, weights_key = options.arch, options.trust_pickle, options.weights_key
    kind = formats.recognise(path)
    if kind in (formats.PT2, formats.PT2_OLD):
        _refuse_arch(arch, f"{path}, a torch.export archive", weights_key)
        module, sizes = load_archive(path, kind == formats.PT2_OLD, trust_pickle)
        return _Opened(module, "pt2", sizes)
    if kind == formats.ONNX:
        _refuse_arch(arch, f"{path}, an ONNX file", weights_key)
        child.start("onnx")
        return _Opened(read_onnx(path, child), "onnx")
    if kind == formats.TORCHSCRIPT:
        _refuse_arch(arch, f"{path}, a TorchScript archive", weights_key)
        refuse_unsafe_code(path, trust_pickle)
        child.start("torchscript")
        child.open()
        return _Opened(load_torchscript(path), "torchscript")
    if kind == formats.SAFETENSORS:
        content: Any = checkpoint.read_safetensors(path)
    else:
        content = checkpoint.read_torch(path, trust_pickle)
    weights = checkpoint.find(content, path, weights_key)
    if isinstance(weights, nn.Module):
        _refuse_arch(arch, f"{path}, a saved module")
        return _Opened(weights, "pickle")
    if not arch:
        recognised = recognise(weights, path)
        return _Opened(
            recognised.module, "state-dict", architecture=recognised.architecture, assumptions=recognised.assumptions
        )
    module = build(arch, options.arch_args)
    return _Opened(module, "state-dict", assumptions=fit(module, weights, path))


def _refuse_arch(arch: str | None, source: str, weights_key: str | None = None) -> None:
    if arch:
        raise InputError(f"{source}, holds its architecture already; leave --arch {arch} out.")
    if weights_key:
        raise InputError(f"{source}, holds only one model; leave --weights-key {weights_key} out.")


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
        raise InputError(f"The module {type(module).__name__} cannot be copied: {summary(error)}.") from error


def _check_device(device: str) -> None:
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"The device {device!r} is unknown; expected cpu or cuda.") from error
    if parsed.type not in ("cpu", "cuda"):
        raise InputError(f"The device {device!r} is not supported; expected cpu or cuda.")
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(
            f"The device {device!r} was asked for, but PyTorch sees {count} CUDA devices; use --device cpu."
        )


def _hash_state(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
