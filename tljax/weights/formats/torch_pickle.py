"""PyTorch checkpoints, read without executing any code in them.

A checkpoint is a pickle that refers to storages, and the storages' raw bytes: as records of a zip file, or concatenated
in the legacy format.
"""

from __future__ import annotations

import collections
import contextlib
import io
import mmap
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import ml_dtypes
import numpy as np

from tljax.errors import UserError
from tljax.weights.formats.safetensors import LazyTensor, map_file

LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # 0x1950a86a20f9469cfc6c, pickled
# Keys under which trainers store the state dict. The first one present is used; averaged weights come last.
NESTED = ("state_dict", "model", "model_state", "model_state_dict", "net", "state_dict_ema")

_NUMPY_DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
_EXTENSION_DTYPES = ("bfloat16", "float8_e4m3fn", "float8_e5m2")
_DTYPES = {n: np.dtype(n) for n in _NUMPY_DTYPES} | {n: np.dtype(getattr(ml_dtypes, n)) for n in _EXTENSION_DTYPES}
_STORAGE_TYPES = ("Double", "Float", "Half", "Long", "Int", "Short", "Char", "Byte", "Bool", "BFloat16", "Untyped")
_STORAGES = dict(zip((f"{name}Storage" for name in _STORAGE_TYPES), (*_NUMPY_DTYPES, "bfloat16", "uint8"), strict=True))

# `start` is in elements: the oldest files have views of storages.
_Storage = collections.namedtuple("_Storage", "key dtype start")
_Tensor = collections.namedtuple("_Tensor", "storage offset size stride")


def open_torch(path: Path, stack: contextlib.ExitStack | None = None) -> dict[str, LazyTensor]:
    """Return the state dict as {name: tensor}, without "module." prefixes and values that are not tensors.

    Args:
      path: the file.
      stack: unused, because views stay valid; other readers need it.

    Raises:
      UserError: the file has no state dict, is damaged, or refers to code, which is never executed.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]  # optional
    except ImportError:
        return read_without_torch(path)
    with _user_errors(path):
        if _zip_records(path, map_file(path)) is None:
            return read_without_torch(path)  # torch cannot map the legacy format and would read all of it
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return _state_dict(path, loaded, torch.Tensor, lambda tensor: _from_torch(tensor, torch))


def read_without_torch(path: Path) -> dict[str, LazyTensor]:
    """Return the same as `open_torch`, without torch: every tensor is a view of the mapped file."""
    data = map_file(path)
    with _user_errors(path):
        records = _zip_records(path, data)
        loaded, storages, byte_order = _read_legacy(path, data) if records is None else _read_zip(records)
        return _state_dict(path, loaded, _Tensor, lambda tensor: _view(tensor, storages, byte_order))


@contextlib.contextmanager
def _user_errors(path: Path):
    """Turn every error of reading into a one-line `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise any exception
        if forbidden := re.search(r"GLOBAL (\S+)", str(error)):
            problem = f"imports {forbidden[1]}, which weights do not need: nothing was executed or loaded"
        else:
            cause = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(":. ")
            problem = f"is not a readable torch checkpoint ({cause})"
        raise UserError(f"{path} {problem}.") from error


def _state_dict(
    path: Path, loaded: Any, tensor_type: type, to_lazy: Callable[[Any], LazyTensor]
) -> dict[str, LazyTensor]:
    """Return the tensors of the state dict in an unpickled object.

    Args:
      path: the file.
      loaded: the unpickled object.
      tensor_type: type of the tensors in it.
      to_lazy: converts one to a `LazyTensor`.
    """
    loaded = loaded if isinstance(loaded, Mapping) else {}
    while inner := next((loaded[key] for key in NESTED if isinstance(loaded.get(key), Mapping)), None):
        loaded = inner
    tensors = {
        name: to_lazy(value)
        for name, value in loaded.items()
        if isinstance(name, str) and isinstance(value, tensor_type)
    }
    if not tensors:
        raise UserError(f"{path} has no state dict with tensors.")
    # A stride of zero can expand one element to a huge tensor, which weights do not need.
    if large := next((n for n, tensor in tensors.items() if tensor.nbytes > path.stat().st_size), None):
        raise UserError(f"{path}: {large} declares {tensors[large].nbytes} bytes, more than the file has.")
    for prefix in ("_orig_mod.", "module."):  # added by torch.compile and DataParallel
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


class _Unpickler(pickle.Unpickler):
    """Unpickler that resolves globals to inert stand-ins, new for each file, as pickles can set attributes."""

    def __init__(self, file: Any):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, str] = {}
        rebuild = "torch._utils._rebuild"
        self.allowed: dict[str, Any] = {
            "collections.OrderedDict": collections.OrderedDict,
            **dict.fromkeys((f"{rebuild}_tensor", f"{rebuild}_tensor_v2"), lambda *args: _Tensor(*args[:4])),
            f"{rebuild}_tensor_v3": lambda *args: _Tensor(args[0]._replace(dtype=args[6]), *args[1:4]),
            **dict.fromkeys((f"{rebuild}_parameter", f"{rebuild}_parameter_with_state"), lambda *args: args[0]),
            "torch._tensor._rebuild_from_type_v2": lambda function, type_, args, state: function(*args),
            **dict.fromkeys(("torch.Tensor", "torch.nn.parameter.Parameter"), "a type"),
            **dict.fromkeys(("torch.Size", "torch.device", "_codecs.encode"), lambda *args: None),
            **{f"torch.{name}": name for name in _DTYPES},
            **{f"{m}.{s}": d for m in ("torch", "torch.cuda", "torch.storage") for s, d in _STORAGES.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.allowed:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")  # torch's wording, for `_user_errors`
        return self.allowed[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, _, *view = pid
        if kind != "storage" or dtype not in _DTYPES:
            raise pickle.UnpicklingError(f"a persistent {kind} of {dtype}")
        self.storages[key] = dtype
        return _Storage(key, dtype, view[0][1] if view and view[0] else 0)


def _unpickle(file: io.BytesIO | mmap.mmap, size: int) -> tuple[Any, dict[str, str]]:
    """Return the next object, and {key: dtype name} of the storages that it refers to."""
    start = file.tell()
    # Checked first: lengths beyond the end raise here, and a huge memo index would allocate gigabytes.
    opcodes = pickletools.genops(cast(IO[bytes], file))
    if any("PUT" in opcode.name and (argument or 0) > size for opcode, argument, _ in opcodes):
        raise pickle.UnpicklingError("a memo index beyond the file")
    file.seek(start)
    unpickler = _Unpickler(file)
    return unpickler.load(), unpickler.storages


def _read_legacy(path: Path, data: np.ndarray) -> tuple[Any, dict[str, np.ndarray], str]:
    """Return the object, {key: bytes} of the storages, and their byte order, which is always little-endian."""
    storages: dict[str, np.ndarray] = {}
    with path.open("rb") as raw_file, mmap.mmap(raw_file.fileno(), 0, access=mmap.ACCESS_READ) as file:
        if file.read(len(LEGACY_MAGIC)) != LEGACY_MAGIC:
            raise pickle.UnpicklingError("neither a zip file nor torch's legacy format")
        _unpickle(file, len(data))  # protocol version
        _unpickle(file, len(data))  # system information
        loaded, dtypes = _unpickle(file, len(data))
        keys, _ = _unpickle(file, len(data))
        for key in keys:
            nbytes = struct.unpack("<Q", file.read(8))[0] * _DTYPES[dtypes[key]].itemsize
            storages[key] = data[file.tell() : file.tell() + nbytes]
            file.seek(nbytes, io.SEEK_CUR)  # raises beyond the end of the file
    return loaded, storages, "<"


def _read_zip(records: Mapping[str, np.ndarray]) -> tuple[Any, dict[str, np.ndarray], str]:
    """Return the object, {key: bytes} of the storages, and their byte order, "<" or ">"."""
    root = next(name for name in records if name.endswith("/data.pkl")).removesuffix("data.pkl")
    content = records[f"{root}data.pkl"]
    loaded, dtypes = _unpickle(io.BytesIO(content), len(content))
    storages = {key: records[f"{root}data/{key}"] for key in dtypes}
    big_endian = bytes(records.get(f"{root}byteorder", b"")) == b"big"
    return loaded, storages, ">" if big_endian else "<"


def _zip_records(path: Path, data: np.ndarray) -> dict[str, np.ndarray] | None:
    """Return {name: bytes} of a zip file's records, as views of `data`; None if it is not a zip file."""
    if data[:4].tobytes() != b"PK\x03\x04":
        return None
    records = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            # torch does not compress, so a record is never larger than the file.
            start = info.header_offset + 30
            start += int(data[start - 4 : start].view("<u2").sum(dtype=int))  # lengths of the name and of the padding
            if info.compress_type != zipfile.ZIP_STORED or start + info.file_size > len(data):
                raise UserError(
                    f"{path} is not a readable torch checkpoint: {info.filename} is compressed or truncated."
                )
            records[info.filename] = data[start : start + info.file_size]
    if any("/code/" in name for name in records):
        raise UserError(f"{path} is a TorchScript program, which is not executed: save its state_dict with torch.save.")
    if sum(name.endswith("/data.pkl") for name in records) != 1:
        raise UserError(f"{path} is a zip file that torch.save did not write.")
    return records


def _view(tensor: _Tensor, storages: Mapping[str, np.ndarray], byte_order: str) -> LazyTensor:
    """Return a tensor as a view of its storage."""
    dtype = _DTYPES[tensor.storage.dtype]
    offset = tensor.storage.start + tensor.offset
    if min((offset, *tensor.stride)) < 0:
        raise ValueError("a negative offset or stride")
    # ml_dtypes' types have no big-endian form, so big-endian values are swapped as integers.
    stored = dtype if byte_order == "<" else np.dtype(f">u{dtype.itemsize}")
    native = stored.newbyteorder("=")
    strides = tuple(stride * dtype.itemsize for stride in tensor.stride)
    # Raises if the tensor extends beyond its storage.
    view = np.ndarray(tensor.size, stored, storages[tensor.storage.key], offset * dtype.itemsize, strides)
    return LazyTensor(view.shape, dtype, lambda: view if stored == native else view.astype(native).view(dtype))


def _from_torch(tensor: Any, torch: Any) -> LazyTensor:
    """Convert a torch.Tensor; `torch` is the module."""
    name = str(tensor.dtype).removeprefix("torch.")
    value = tensor.detach()
    if name not in _DTYPES or tensor.layout != torch.strided:
        raise TypeError(f"a tensor of {tensor.dtype}, {tensor.layout}")
    if name in _EXTENSION_DTYPES:  # NumPy receives integers of the same width
        value = value.view(torch.int16 if name == "bfloat16" else torch.uint8)
    return LazyTensor(tuple(value.shape), _DTYPES[name], lambda: value.numpy().view(_DTYPES[name]))
