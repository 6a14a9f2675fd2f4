"""Writing an ONNX file so that it is there verified and whole, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import onnx
from onnx.external_data_helper import load_external_data_for_tensor, set_external_data

from asvp_export.files import abandoned, check_output, claimed, signals_held_back, write_error
from asvp_export.interrupts import unfinished
from asvp_export.onnx_graph.contents import data_bytes, external_files, is_external, stored_bytes, tensors

# protobuf refuses messages of 2 GiB; what is not a tensor needs room as well.
EXTERNAL_LIMIT = 2**31 - 2**24

SMALL = 1024  # bytes: smaller tensors stay inside, where shape inference reads them
_ALIGNMENT = 4096  # bytes: lets a runtime map the file into memory

_PREFIX = ".asvp-staging-"
_STAGING = re.compile(re.escape(_PREFIX) + r"\w{8}")
_TOUCHED = "touched"  # in a staging folder: names of the data files that its publication adds, or makes needless
_TENSORS = "tensors"  # what a data file is called until its content is known
_DATA = re.compile(r"[^/\\\n]+\.[0-9a-f]{16}\.data")


def is_data_of(name: str, output: Path) -> bool:
    """Whether a name is one of an output's data files: its stem, 16 digits of the content's hash, `.data`."""
    return bool(_DATA.fullmatch(name)) and name.rsplit(".", 2)[0] == output.stem


class Staging:
    """A folder beside the output, in which the file is written and verified before it gets its name.

    Use it as a context manager; whatever ends the block (an error, Ctrl-C), the folder goes. What a run that was killed
    left beside the output goes when the block is entered.

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
        self._claim = contextlib.ExitStack()

    def __enter__(self) -> Staging:
        check_output(self.output, force=self._force)
        _remove_abandoned(self.output.parent)
        try:
            with signals_held_back():
                while self._folder is None or not self._claim.enter_context(claimed(self._folder)):
                    self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self.output.parent))
                unfinished.add(self._folder)
                self.path.parent.mkdir()
                self.data_folder = self.data_folder or self.scratch
        except BaseException as error:
            self._remove()
            if isinstance(error, OSError):
                raise write_error(error, self.output) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        with signals_held_back(), self._claim:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                unfinished.discard(self._folder)

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
        data = self.path.with_name(_TENSORS)
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
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for tensor in filter(is_external, tensors(copy)):
            tensor.CopyFrom(self._loaded(tensor))
        return copy

    def _loaded(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """The tensor with its data in it: itself, or a copy, which a caller can drop before it loads the next."""
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

        Whatever ends this, a kill -9 too, the model that has the name finds its data: new data comes before the new
        model, old data goes after it, and no two contents share a name. Signals wait until it is done.

        Args:
            output: another name in the same folder than the one asked for.

        Raises:
            InputError: the folder is not writable any more. MachineError: the disk is full. What stood there still
                does.
        """
        output = output or self.output
        folder = output.parent
        written = [part for part in self.path.parent.iterdir() if part != self.path]
        touched = _own_data(output, self.output) | {part.name for part in written}
        try:
            (self.scratch / _TOUCHED).write_text("\n".join(touched), encoding="utf-8")
            for part in (*written, self.path):
                _sync(part)
            with signals_held_back():
                try:
                    for part in written:
                        os.replace(part, folder / part.name)
                    _sync_names(folder)
                    os.replace(self.path, output)
                    _sync_names(folder)
                finally:
                    with contextlib.suppress(OSError):
                        self.path.unlink(missing_ok=True)  # a model that did not get its name needs no data
                    _remove_needless(folder, touched, output)
        except OSError as error:
            raise write_error(error, output) from error
        return output


def _own_data(path: Path, output: Path) -> set[str]:
    """Names of the data files of ours that a model which is being replaced reads."""
    if not path.exists():
        return set()
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # not a model: it will be replaced, and has no data files
        return set()
    return {name for name in external_files(model) if is_data_of(name, output)}


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed publications left in a folder: staging folders, and data that no model there reads."""
    for staging in abandoned(folder, _STAGING):
        names = list[str]()
        with contextlib.suppress(OSError, UnicodeDecodeError):
            names = (staging / _TOUCHED).read_text(encoding="utf-8").split("\n")
        shutil.rmtree(staging, ignore_errors=True)
        _remove_needless(folder, filter(_DATA.fullmatch, names))


def _remove_needless(folder: Path, names: Iterable[str], *models: Path) -> None:
    """Remove data files that no model in a folder names, nor one that another run is about to publish there.

    Nothing is raised: this comes after the publication, whose result stands.

    Args:
        folder: of the data files.
        names: of the data files.
        *models: of the folder, whatever their names end in.
    """
    with contextlib.suppress(OSError):
        for path in [folder / name for name in names]:
            # Staged models first: one that is published meanwhile is then found under its name.
            if path.is_file() and not any(
                _mentions(model, path.name) for model in (*_staged(folder), *_models(folder), *models)
            ):
                path.unlink()


def _staged(folder: Path) -> Iterator[Path]:
    for path in folder.glob(f"{_PREFIX}*/file/*"):
        if path.name != _TENSORS and not _DATA.fullmatch(path.name):
            yield path


def _models(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix.lower() == ".onnx"]


def _mentions(model: Path, data: str) -> bool:
    """Whether a model holds the name of a data file. Its bytes are searched: it need not be one that can be read."""
    try:
        with model.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(data.encode()) >= 0
    except (FileNotFoundError, ValueError):  # ValueError: it is empty
        return False
    except OSError:  # nobody knows
        return True


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _sync_names(folder: Path) -> None:
    """Bring the names in a folder to the disk, where that can be done: a power failure keeps their order."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
