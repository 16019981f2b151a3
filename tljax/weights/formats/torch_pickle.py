"""torch.save's files, read without executing anything in them.

A torch file is a pickle that names storages, and their raw bytes: as records of a zip file, or (legacy) in a row.
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
from typing import Any

import ml_dtypes
import numpy as np

from tljax.errors import UserError
from tljax.weights.formats.safetensors import LazyTensor, map_file

LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # 0x1950a86a20f9469cfc6c, pickled
# Where trainers put the state dict; with several at hand the first counts, so the averaged weights come last.
NESTED = ("state_dict", "model", "model_state", "model_state_dict", "net", "state_dict_ema")

_NATIVE = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
_FOREIGN = ("bfloat16", "float8_e4m3fn", "float8_e5m2")
_DTYPES = {n: np.dtype(n) for n in _NATIVE} | {n: np.dtype(getattr(ml_dtypes, n)) for n in _FOREIGN}
_KINDS = ("Double", "Float", "Half", "Long", "Int", "Short", "Char", "Byte", "Bool", "BFloat16", "Untyped")
_STORAGES = dict(zip((f"{kind}Storage" for kind in _KINDS), (*_NATIVE, "bfloat16", "uint8"), strict=True))


_Storage = collections.namedtuple("_Storage", "key dtype start")  # in elements: old files name views into storages
_Tensor = collections.namedtuple("_Tensor", "storage offset size stride")


def open_torch(path: Path, stack: contextlib.ExitStack | None = None) -> dict[str, LazyTensor]:
    """Returns name → tensor of the state dict, wherever it is nested, without "module." prefixes and other values.

    Raises:
      UserError: no checkpoint of tensors, damaged, or it asks for code to be run, which is not done.
    """
    try:
        import torch
    except ImportError:
        return read_without_torch(path)
    with _explained(path):
        if _records(path, map_file(path)) is None:
            return read_without_torch(path)  # torch cannot map this older format: it would hold all of it in memory
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return _opened(path, loaded, torch.Tensor, lambda tensor: _from_torch(tensor, torch))


def read_without_torch(path: Path) -> dict[str, LazyTensor]:
    """As `open_torch`, by the reader of our own: every tensor is a view of the mapped file."""
    data = map_file(path)
    with _explained(path):
        zipped = _records(path, data)
        loaded, storages, order = _read_legacy(path, data) if zipped is None else _read_zip(zipped)
        return _opened(path, loaded, _Tensor, lambda tensor: _view(tensor, storages, order))


@contextlib.contextmanager
def _explained(path: Path):
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # what a damaged pickle raises is anybody's guess
        words = (
            f"is not a readable torch checkpoint ({type(error).__name__}: {error}".splitlines()[0].rstrip(":. ") + ")"
        )
        if forbidden := re.search(r"GLOBAL (\S+)", str(error)):
            words = f"asks for {forbidden[1]}, which weights do not need: nothing was executed and nothing loaded"
        raise UserError(f"{path} {words}.") from error


def _opened(path: Path, loaded: Any, kind: type, view: Callable[[Any], LazyTensor]) -> dict[str, LazyTensor]:
    loaded = loaded if isinstance(loaded, Mapping) else {}
    while inner := next((loaded[key] for key in NESTED if isinstance(loaded.get(key), Mapping)), None):
        loaded = inner
    tensors = {n: view(value) for n, value in loaded.items() if isinstance(n, str) and isinstance(value, kind)}
    if not tensors:
        raise UserError(f"{path} has no state dict with tensors.")
    # A stride of zero makes a huge tensor of one element: nothing that weights need.
    if large := next((n for n, tensor in tensors.items() if tensor.nbytes > path.stat().st_size), None):
        raise UserError(f"{path}: {large} claims {tensors[large].nbytes} bytes, more than the file has.")
    for prefix in ("_orig_mod.", "module."):  # of torch.compile and of DataParallel
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


class _Unpickler(pickle.Unpickler):
    """Finds nothing but inert stand-ins, made anew for each file: a pickle can set attributes of what it is given."""

    def __init__(self, file: Any):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, str] = {}
        rebuild = "torch._utils._rebuild"
        self.known: dict[str, Any] = {
            "collections.OrderedDict": collections.OrderedDict,
            **dict.fromkeys((f"{rebuild}_tensor", f"{rebuild}_tensor_v2"), lambda *args: _Tensor(*args[:4])),
            f"{rebuild}_tensor_v3": lambda *args: _Tensor(args[0]._replace(dtype=args[6]), *args[1:4]),
            **dict.fromkeys((f"{rebuild}_parameter", f"{rebuild}_parameter_with_state"), lambda *args: args[0]),
            "torch._tensor._rebuild_from_type_v2": lambda make, kind, args, state: make(*args),
            **dict.fromkeys(("torch.Tensor", "torch.nn.parameter.Parameter"), "a type"),
            **dict.fromkeys(("torch.Size", "torch.device", "_codecs.encode"), lambda *args: None),
            **{f"torch.{name}": name for name in _DTYPES},
            **{f"{m}.{s}": d for m in ("torch", "torch.cuda", "torch.storage") for s, d in _STORAGES.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.known:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")  # torch's words, for `_explained`
        return self.known[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, _, *view = pid
        if kind != "storage" or dtype not in _DTYPES:
            raise pickle.UnpicklingError(f"a persistent {kind} of {dtype}")
        self.storages[key] = dtype
        return _Storage(key, dtype, view[0][1] if view and view[0] else 0)


def _unpickle(file: io.BytesIO | mmap.mmap, size: int) -> tuple[Any, dict[str, str]]:
    """Returns the next object, and the type of each storage that it names."""
    start = file.tell()
    # A look ahead: lengths beyond the end raise here, and a wild memo index would have gigabytes reserved.
    if any("PUT" in opcode.name and argument > size for opcode, argument, _ in pickletools.genops(file)):
        raise pickle.UnpicklingError("a memo index beyond the file")
    file.seek(start)
    unpickler = _Unpickler(file)
    return unpickler.load(), unpickler.storages


def _read_legacy(path: Path, data: np.ndarray) -> tuple[Any, dict[str, np.ndarray], str]:
    """The object, each storage's bytes, and their order: always little-endian, whoever wrote them."""
    storages: dict[str, np.ndarray] = {}
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
        if file.read(len(LEGACY_MAGIC)) != LEGACY_MAGIC:
            raise pickle.UnpicklingError("neither a zip file nor torch's older format")
        _protocol, _system, (loaded, dtypes), (keys, _) = (_unpickle(file, len(data)) for _ in range(4))
        for key in keys:
            nbytes = struct.unpack("<Q", file.read(8))[0] * _DTYPES[dtypes[key]].itemsize
            storages[key] = data[file.tell() : file.tell() + nbytes]
            file.seek(nbytes, io.SEEK_CUR)  # raises beyond the end
    return loaded, storages, "<"


def _read_zip(records: Mapping[str, np.ndarray]) -> tuple[Any, dict[str, np.ndarray], str]:
    root = next(name for name in records if name.endswith("/data.pkl")).removesuffix("data.pkl")
    loaded, dtypes = _unpickle(io.BytesIO(records[f"{root}data.pkl"]), len(records[f"{root}data.pkl"]))
    big = bytes(records.get(f"{root}byteorder", b"")) == b"big"
    return loaded, {key: records[f"{root}data/{key}"] for key in dtypes}, ">" if big else "<"


def _records(path: Path, data: np.ndarray) -> dict[str, np.ndarray] | None:
    """Name → bytes of a zip file's records, as views; None when it is no zip file."""
    if data[:4].tobytes() != b"PK\x03\x04":
        return None
    records = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            # torch packs nothing, so a small file cannot claim to be a large one.
            start = info.header_offset + 30
            start += int(data[start - 4 : start].view("<u2").sum(dtype=int))  # the lengths of the name and the padding
            if info.compress_type != zipfile.ZIP_STORED or start + info.file_size > len(data):
                raise UserError(f"{path} is not a readable torch checkpoint: {info.filename} is packed or cut off.")
            records[info.filename] = data[start : start + info.file_size]
    if any("/code/" in name for name in records):
        raise UserError(f"{path} is a TorchScript program, which is not run: save its state_dict with torch.save.")
    if sum(name.endswith("/data.pkl") for name in records) != 1:
        raise UserError(f"{path} is a zip file, but not one of torch.save.")
    return records


def _view(tensor: _Tensor, storages: Mapping[str, np.ndarray], order: str) -> LazyTensor:
    dtype, offset = _DTYPES[tensor.storage.dtype], tensor.storage.start + tensor.offset
    if min((offset, *tensor.stride)) < 0:
        raise ValueError("a negative offset or stride")
    raw = dtype if order == "<" else np.dtype(f">u{dtype.itemsize}")  # ml_dtypes' types have one order only
    native, strides = raw.newbyteorder("="), tuple(s * dtype.itemsize for s in tensor.stride)
    # Raises for what lies beyond the storage.
    view = np.ndarray(tensor.size, raw, storages[tensor.storage.key], offset * dtype.itemsize, strides)
    return LazyTensor(view.shape, dtype, lambda: view if raw == native else view.astype(native).view(dtype))


def _from_torch(tensor: Any, torch: Any) -> LazyTensor:
    name, value = str(tensor.dtype).removeprefix("torch."), tensor.detach()
    if name not in _DTYPES or tensor.layout != torch.strided:
        raise TypeError(f"a tensor of {tensor.dtype}, {tensor.layout}")
    if name in _FOREIGN:  # crosses over to NumPy as integers of the same width
        value = value.view(torch.int16 if name == "bfloat16" else torch.uint8)
    return LazyTensor(tuple(value.shape), _DTYPES[name], lambda: value.numpy().view(_DTYPES[name]))
