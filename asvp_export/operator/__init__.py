"""The operator: its definition, the PyTorch reference and the ONNX function body."""

from asvp_export.operator.reference import reference
from asvp_export.operator.schema import DOMAIN, OP_TYPE, VERSION, Perturbation
from asvp_export.operator.torch_op import perturb

__all__ = ["DOMAIN", "OP_TYPE", "VERSION", "Perturbation", "perturb", "reference"]
