"""From a module with nodes to an ONNX model in memory: PyTorch's exporter, and what it leaves to do."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from functools import partial

import onnx
import onnx_ir as ir
import torch
from onnx_ir.external_data import unload_from_model
from onnxscript import values
from torch.export import UnflattenedModule

from asvp_export.errors import AsvpError, InputError
from asvp_export.onnx_graph import publish
from asvp_export.onnx_graph.passes import attach_functions, name_by_module, name_nodes, remove_traces
from asvp_export.operator import DOMAIN, OP_TYPE, VERSION, Perturbation
from asvp_export.options import DEFAULT_OPSET
from asvp_export.signature import Signature
from asvp_export.teacher.backends.base import TRACED, ExportSettings, Insertion
from asvp_export.teacher.backends.refusal import FixedError, Frozen, refusal
from asvp_export.teacher.backends.translations import OneTypeOfBounds, translations
from asvp_export.teacher.model import Teacher

OPSETS = range(18, 27)


def traced(teacher: Teacher, inserted: Insertion, settings: ExportSettings) -> onnx.ModelProto:
    """Trace a module with nodes; see `asvp_export.teacher.backends.base.Backend.export`."""
    opset, static, data_folder = settings.opset, settings.static, settings.data_folder
    opset = DEFAULT_OPSET if opset is None else opset
    if opset not in OPSETS:
        raise InputError(f"The opset {opset} was asked for; {OPSETS[0]} to {OPSETS[-1]} can be written and run.")
    frozen = (1, None, *static) if static else teacher.static_shape
    calls = _calls(teacher, inserted, frozen)
    try:
        program = _trace(inserted.module, teacher, frozen, opset, settings.traced_at)
    except Exception as error:  # the exporter wraps whatever went wrong inside
        attempt = partial(_trace, inserted.module, teacher, opset=opset, at=TRACED)
        raise refusal(error, teacher, frozen, lambda dims: attempt(frozen=dims)) from error
    if data_folder is not None and _bytes_of(program.model) > publish.EXTERNAL_LIMIT:
        unload_from_model(program.model, data_folder, "traced.data", size_threshold_bytes=publish.SMALL - 1)
    model = program.model_proto
    written = next(o.version for o in model.opset_import if o.domain == "")
    if written != opset:
        raise AsvpError(f"The opset {opset} was asked for and the exporter wrote {written}; choose another opset.")
    name_nodes(model, inserted.nodes, calls)
    name_by_module(model)
    remove_traces(model)
    if None in (frozen[2], frozen[3]):
        _name_output(model, teacher)
    attach_functions(model)
    return model


def _trace(
    module: torch.nn.Module, teacher: Teacher, frozen: Frozen, opset: int, at: tuple[int, int]
) -> torch.onnx.ONNXProgram:
    """The module as the exporter writes it.

    Raises:
        Exception: whatever went wrong inside the exporter; FixedError: it froze sizes that were to be free.
    """
    signature, stuck = teacher.signature, _frozen_names(frozen)
    free = tuple({i: name for i, name in axes.items() if name not in stuck} for axes in signature.dimensions)
    # Modules from .pt2 archives take *args, whose shapes come in a tuple of their own.
    shapes = (free,) if isinstance(module, UnflattenedModule) else free
    with _quiet(), torch.no_grad(), OneTypeOfBounds():
        program = torch.onnx.export(
            module,
            teacher.inputs(_example(teacher, frozen, at)),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=shapes if any(free) else None,
            input_names=list(signature.names),
            output_names=list(signature.outputs),
            custom_translation_table={torch.ops.asvp.perturb.default: _translated, **translations()},
            verbose=False,
        )
    if program is None:
        raise AsvpError("PyTorch's exporter returned no model.")
    _check_free(program.model, signature, frozen)
    return program


def _bytes_of(model: ir.Model) -> int:
    values = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return sum(value.nbytes for value in values if value is not None)


def _example(teacher: Teacher, frozen: Frozen, at: tuple[int, int]) -> torch.Tensor:
    return teacher.example(height=frozen[2] or at[0], width=frozen[3] or at[1], batch=frozen[0] or 2)


def _frozen_names(frozen: Frozen) -> set[str]:
    """Which of the image's sizes are frozen, by name; N, C, H, W are given."""
    return {
        name for name, size in zip(("batch", "", "height", "width"), frozen, strict=True) if name and size is not None
    }


def _calls(teacher: Teacher, inserted: Insertion, frozen: Frozen) -> list[str]:
    """The protected layers in the order in which a forward reaches their nodes.

    Raises:
        InputError: the forward puts other tensors in the place of its weights; tracing that ends the whole process.
    """
    calls: list[str] = []
    module = inserted.module
    parts = dict(module.named_modules())
    hooks = [parts[name].register_forward_hook(lambda *_, name=name: calls.append(name)) for name in inserted.nodes]
    addresses = {name: weight.data_ptr() for name, weight in module.named_parameters()}
    with torch.inference_mode():
        module(*teacher.inputs(_example(teacher, frozen, TRACED)))
    for hook in hooks:
        hook.remove()
    moved = [name for name, weight in module.named_parameters() if weight.data_ptr() != addresses[name]]
    if moved:
        raise InputError(
            f"The model's forward recomputes {len(moved)} of its weights at each run ({', '.join(moved[:2])}), which "
            "PyTorch's exporter cannot handle. Give the TorchScript file that torch.jit.trace makes of it instead."
        )
    return calls


_Schema = onnx.defs.OpSchema
_operator = values.Op(
    values.Opset(DOMAIN, VERSION),
    OP_TYPE,
    _Schema(
        OP_TYPE,
        DOMAIN,
        VERSION,
        type_constraints=[("T", [f"tensor({t})" for t in ("float", "float16", "bfloat16", "double")], "")],
        inputs=[_Schema.FormalParameter("X", "T")],
        outputs=[_Schema.FormalParameter("Y", "T")],
        attributes=[
            _Schema.Attribute("rank", _Schema.AttrType.INT),
            _Schema.Attribute("gain", _Schema.AttrType.FLOAT),
            _Schema.Attribute("energy", _Schema.AttrType.FLOAT),
            _Schema.Attribute("axis", _Schema.AttrType.INT),
        ],
    ),
)


def _translated(
    x,
    rank: int = Perturbation.rank,
    gain: float = Perturbation.gain,
    energy: float = Perturbation.energy,
    axis: int = Perturbation.axis,
):
    """torch.ops.asvp.perturb as a node of our domain, for the exporter's translation table."""
    return _operator(x, rank=rank, gain=gain, energy=energy, axis=axis)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks: missing packages, its own deprecated calls, constants it does not fold."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("torch.onnx", "onnxscript"))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as said above
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _check_free(model: ir.Model, signature: Signature, frozen: Frozen) -> None:
    """A size that the trace froze on its way looks free at 64 and fails at 72; refuse it here.

    Raises:
        FixedError: there is one.
    """
    dims = model.graph.inputs[signature.image_index].shape or ()
    axes, requested = signature.dimensions[signature.image_index], _frozen_names(frozen)
    stuck = [f"{name} ({dims[i]})" for i, name in axes.items() if name not in requested and isinstance(dims[i], int)]
    if stuck:
        raise FixedError(stuck)


def _name_output(model: onnx.ModelProto, teacher: Teacher) -> None:
    """Readable names for the main output's sizes, where the exporter writes 2*((height//2))."""
    if not isinstance(teacher.scale, int):
        return
    dims = model.graph.output[teacher.signature.main].type.tensor_type.shape.dim
    axes = (1, 2) if teacher.signature.channels_last else (-2, -1)
    for dim, name in zip((dims[axis] for axis in axes), ("height", "width"), strict=True):
        if dim.dim_param:
            dim.dim_param = name if teacher.scale == 1 else f"{teacher.scale}*{name}"
