"""Writing an ONNX file so that it is there verified and whole, or not at all."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

import onnx
from onnx.external_data_helper import load_external_data_for_tensor, set_external_data

from asvp_export.files import check_output, write_error
from asvp_export.onnx_graph.contents import data_bytes, external_files, is_external, stored_bytes, tensors

# protobuf refuses messages of 2 GiB; what is not a tensor needs room as well.
EXTERNAL_LIMIT = 2**31 - 2**24

SMALL = 1024  # bytes: smaller tensors stay inside, where shape inference reads them
_ALIGNMENT = 4096  # bytes: lets a runtime map the file into memory


class Staging:
    """A folder beside the output, in which the file is written and verified before it gets its name.

    Use it as a context manager; whatever ends the block (an error, Ctrl-C), the folder goes.

    Args:
        output: where the file is to be.
        force: replace a file that is there.
        external_data: keep the tensors in a file of their own, also under 2 GiB.
        data_folder: where the external data of the models lies that are to be written; by default `scratch`.

    Raises:
        InputError: the folder does not exist or cannot be written, or the output exists and `force` was not given.
    """

    def __init__(
        self, output: Path, *, force: bool = False, external_data: bool = False, data_folder: Path | None = None
    ) -> None:
        self.output = Path(os.path.realpath(output))  # a link is followed, as `open` does
        self._force = force
        self._external = external_data
        self.data_folder = data_folder
        self._folder: Path | None = None

    def __enter__(self) -> Staging:
        check_output(self.output, force=self._force)
        try:
            self._folder = Path(tempfile.mkdtemp(prefix=".asvp-", dir=self.output.parent))
            self.path.parent.mkdir()
            self.data_folder = self.data_folder or self.scratch
        except OSError as error:
            raise write_error(error, self.output) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def path(self) -> Path:
        """The file as it is being verified."""
        return self.scratch / "file" / self.output.name

    @property
    def scratch(self) -> Path:
        """A folder that goes with the block, for the data of models that are to be written."""
        assert self._folder is not None, "used outside of its block"
        return self._folder

    def write(self, model: onnx.ModelProto) -> None:
        """Write (or rewrite) the file and check it with onnx's full checker.

        Raises:
            MachineError: the disk is full.
        """
        for old in self.path.parent.iterdir():
            old.unlink()
        try:
            if self._external or data_bytes(model) > EXTERNAL_LIMIT:
                model = self._with_external_data(model)
            elif any(map(is_external, tensors(model))):
                model = self._with_data_inside(model)
            self.path.write_bytes(model.SerializeToString(deterministic=True))
        except OSError as error:
            raise write_error(error, self.output) from error
        onnx.checker.check_model(str(self.path), full_check=True)

    def _with_external_data(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy whose tensors lie in `<stem>.<sha256>.data`: a new file never overwrites what an old model needs."""
        slim = onnx.ModelProto()
        slim.CopyFrom(model)
        small = [tensor for tensor in slim.graph.initializer if stored_bytes(tensor) < SMALL]
        for tensor in (*small, *itertools.islice(tensors(slim), len(slim.graph.initializer), None)):
            if is_external(tensor):
                tensor.CopyFrom(self._loaded(tensor))
        digest = hashlib.sha256()
        moved = []
        data = self.path.with_name("tensors")
        with data.open("wb") as stream:
            for tensor in slim.graph.initializer:
                if stored_bytes(tensor) < SMALL:
                    continue
                content = self._loaded(tensor).raw_data
                padding = bytes(-stream.tell() % _ALIGNMENT)
                offset = stream.tell() + len(padding)
                for part in (padding, content):
                    stream.write(part)
                    digest.update(part)
                moved.append((tensor, offset, len(content)))
                tensor.raw_data = b""
        name = f"{self.output.stem}.{digest.hexdigest()[:16]}.data"
        data.rename(data.with_name(name))
        for tensor, offset, length in moved:
            set_external_data(tensor, name, offset=offset, length=length)
            tensor.ClearField("raw_data")
        return slim

    def _with_data_inside(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy with the tensors' data in the model itself."""
        whole = onnx.ModelProto()
        whole.CopyFrom(model)
        for tensor in filter(is_external, tensors(whole)):
            tensor.CopyFrom(self._loaded(tensor))
        return whole

    def _loaded(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """A tensor with its data, let go of with it: memory never holds more than the largest one of a file."""
        if not is_external(tensor):
            return tensor
        loaded = onnx.TensorProto()
        loaded.CopyFrom(tensor)
        load_external_data_for_tensor(loaded, str(self.data_folder))
        loaded.ClearField("external_data")
        loaded.ClearField("data_location")
        return loaded

    def publish(self, output: Path | None = None) -> Path:
        """Give the verified files their names, the model's last; returns the model's path.

        Args:
            output: another name in the same folder than the one asked for.
        """
        output = output or self.output
        previous, new = _replaced_files(output), list[Path]()
        written = [p for p in self.path.parent.iterdir() if p != self.path]
        try:
            for part in (*written, self.path):
                _sync(part)
            for part in written:
                place = output.parent / part.name
                new += [] if place.exists() else [place]
                os.replace(part, place)
            os.replace(self.path, output)
        except BaseException as error:
            for part in new:
                part.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise write_error(error, output) from error
            raise
        for name in previous - {p.name for p in written}:
            (output.parent / name).unlink(missing_ok=True)
        return output


def _replaced_files(path: Path) -> set[str]:
    """Data files that a model of ours which is being replaced leaves behind."""
    if not path.exists():
        return set()
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # not a model: it will be replaced, and has no data files
        return set()
    ours = re.compile(re.escape(path.stem) + r"\.[0-9a-f]{16}\.data")
    return {name for name in external_files(model) if ours.fullmatch(name)}


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
