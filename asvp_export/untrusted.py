"""Reading small files that anyone can have written: plans, manifests, reports, the metadata of an ONNX file.

What they hold is checked against the dataclass that it becomes, by pydantic, without any conversion: a text is no
number, a list is no object. pydantic is imported when something is read, which keeps `asvp-export --help` fast.
"""

from __future__ import annotations

import functools
import json
import os
import reprlib
import stat
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from asvp_export.errors import AsvpError, InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MOST_JSON_BYTES = 32 * 2**20
"""Of a plan, a manifest, a report, or an entry of metadata. A report of 100 000 comparisons is smaller."""

MOST_TEXT = 4096
"""Characters of one text: the name of a layer, a reason."""

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "an object",
    "mapping_type": "an object",
    "dataclass_type": "an object",
    "string_too_long": f"a text of at most {MOST_TEXT} characters",
}

_T = TypeVar("_T", bound="DataclassInstance")


def read_regular(path: Path, role: str, most: int = MOST_JSON_BYTES) -> bytes:
    """The bytes of a file.

    Args:
        path: the file. A pipe or a device is refused: reading one may never end.
        role: what the file is, for the message.
        most: bytes.

    Raises:
        InputError: it is not there, no regular file, too large, or cannot be read.
    """
    try:
        with open(path, "rb", opener=_at_once) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise InputError(f"The {role} {path} is a pipe or a device; a file was expected.")
            size = os.fstat(stream.fileno()).st_size
            # Python allocates at once all that it is asked to read.
            content = stream.read(size + 1) if size <= most else None
            if content is not None and len(content) > size:  # it grows, or the system makes it as it is read
                content += stream.read(most - size)
    except OSError as error:
        raise InputError(f"The {role} {path} cannot be read ({error.strerror}).") from error
    if content is None or len(content) > most:
        raise InputError(f"The {role} {path} is larger than {most // 2**20} MiB; a smaller file was expected.")
    return content


def _at_once(name: str, flags: int) -> int:
    """Open without waiting for who writes into a pipe; Windows has no such pipes."""
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def parsed(text: str | bytes) -> Any:
    """JSON as Python's values.

    Raises:
        ValueError: it is too long, no JSON, or nested too deeply; the message is a few words.
    """
    if len(text) > MOST_JSON_BYTES:
        raise ValueError(f"it is larger than {MOST_JSON_BYTES // 2**20} MiB")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not JSON") from error


def checked(data: object, kind: type[_T], *, ignore_unknown: bool = False) -> _T:
    """JSON as a dataclass, each value of which is of its field's type.

    Args:
        data: what `parsed` gave.
        kind: the dataclass; its fields may be dataclasses, tuples, mappings.
        ignore_unknown: keys that the dataclasses do not have are passed over, as newer versions may write them; False:
            refused.

    Raises:
        ValueError: it does not fit; the message says in a few words where, what was found and what was expected.
    """
    from pydantic import ValidationError

    if not isinstance(data, dict):
        raise ValueError(f"it is {reprlib.repr(data)}, an object was expected")
    if ignore_unknown:
        names = {field.name for field in fields(kind)}
        data = {key: value for key, value in data.items() if key in names}
    try:
        # Only from JSON does strict pydantic take a list as a tuple. File names may hold surrogates: no UTF-8.
        text = json.dumps({"it": data}, ensure_ascii=False).encode("utf-8", "replace")
        return _model(kind, "ignore" if ignore_unknown else "forbid").model_validate_json(text).it
    except ValidationError as error:
        raise ValueError(_reason(error.errors(include_url=False, include_context=False)[0])) from None
    except AsvpError as error:  # of a dataclass that checks its own ranges
        raise ValueError(str(error).rstrip(".")) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


@functools.cache
def _model(kind: type, extra: str) -> Any:
    """A model around a dataclass, since a dataclass takes its configuration from the model that it stands in."""
    from pydantic import create_model

    config: Any = {"strict": True, "allow_inf_nan": False, "extra": extra, "str_max_length": MOST_TEXT}
    return create_model("Read", __config__=config | {"arbitrary_types_allowed": True}, it=(kind, ...))


def _reason(error: Mapping[str, Any]) -> str:
    location = reprlib.repr(".".join(map(str, error["loc"][1:]))).strip("'\"") or "it"
    if error["type"] == "missing":
        return f"{location} is missing"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{location} is not known to this version"
    return f"{location} is {reprlib.repr(error['input'])}, {_EXPECTED.get(error['type'], error['msg'])} was expected"


def no_doubles(names: Iterable[str], kind: str) -> None:
    """Refuse a list that names something twice.

    Raises:
        ValueError: it does.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"it names the {kind} {reprlib.repr(name)} twice")
        seen.add(name)


def file_beside(name: str) -> str:
    """A name of a file in the folder of the file that names it.

    Raises:
        ValueError: it leads elsewhere, or is none.
    """
    if min(name, default="") < " " or name in (".", "..") or Path(name).name != name:
        raise ValueError(f"it names {reprlib.repr(name)}, which is not the name of a file in its folder")
    return name
