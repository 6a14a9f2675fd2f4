"""From a file or a module to a runnable teacher, and the layers in it that can carry a node."""

from asvp_export.teacher.layers import Layer, candidates, select
from asvp_export.teacher.load import load
from asvp_export.teacher.model import Teacher

__all__ = ["Layer", "Teacher", "candidates", "load", "select"]
