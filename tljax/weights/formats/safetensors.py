"""The safetensors format, and the tensor that is read when asked for, which all readers give."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from tljax.errors import UserError

# In the library's order: it lays out tensors from the last of these types to the first, so that each is aligned.
_DTYPES = {
    "BOOL": np.dtype(bool),
    "U8": np.dtype("uint8"),
    "I8": np.dtype("int8"),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "C64": np.dtype("<c8"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}
_CODES = {dtype.name: code for code, dtype in _DTYPES.items()}
_RANK = {code: rank for rank, code in enumerate(_DTYPES)}


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file: known by shape and type, read by `np.asarray`.

    Attributes:
      shape: its sides.
      dtype: NumPy's type, of ml_dtypes for bfloat16 and the 8-bit floats.
      read: gives the values; often a read-only view of the mapped file, which costs no memory of its own.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray] = dataclasses.field(repr=False)

    @property
    def nbytes(self) -> int:
        """Size of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """The values, as NumPy's protocol wants them."""
        return np.array(self.read(), dtype=dtype, copy=copy)


def map_file(path: Path) -> np.ndarray:
    """Returns the file's bytes, uint8 [size], mapped: pages come when touched, and go when memory is short.

    Raises:
      UserError: the file is empty.
    """
    if not path.stat().st_size:
        raise UserError(f"{path} is empty.")
    return np.asarray(np.memmap(path, np.uint8, "r"))


def open_safetensors(path: Path, stack: contextlib.ExitStack | None = None) -> dict[str, LazyTensor]:
    """Returns name → tensor; the views outlive `stack`, which is the other readers' business.

    `safe_open` checks the header (lengths, holes, overlaps), but its `get_tensor` and `get_slice` copy: 392 MiB of
    anonymous memory for VGG-16's first dense kernel of 392 MiB. A view of the mapped file takes none.

    Raises:
      UserError: damaged, or of a type that NumPy does not have.
    """
    from safetensors import SafetensorError, safe_open

    data = map_file(path)
    try:
        with safe_open(path, framework="numpy"):
            pass
        end = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8:end].tobytes())
        header.pop("__metadata__", None)
        return {name: _view(path, name, entry, data[end:]) for name, entry in header.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}.") from error


def write_safetensors(
    path: str | Path, tensors: Mapping[str, np.ndarray | LazyTensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a file that appears whole or not at all: it is written beside `path` and then renamed.

    The library's `serialize_file` wants all tensors in memory at once; here each is read, written and let go. The bytes
    are the library's. The folder must exist.

    Args:
      path: the file; what is there is replaced.
      tensors: name → anything with `shape` and `dtype` that `np.asarray` takes.
      metadata: free text by name, for the header.

    Raises:
      UserError: a type that the format does not have.
    """
    path, header, offset = Path(path), {}, 0
    if metadata:
        header["__metadata__"] = dict(metadata)
    codes = {name: _code(name, tensor) for name, tensor in tensors.items()}
    for name in sorted(tensors, key=lambda n: (-_RANK[codes[n]], n)):
        end = offset + math.prod(tensors[name].shape) * _DTYPES[codes[name]].itemsize
        header[name] = {"dtype": codes[name], "shape": list(tensors[name].shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)  # the values start at a multiple of eight bytes
    header.pop("__metadata__", None)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for name in header:
                values = np.ascontiguousarray(tensors[name], _DTYPES[codes[name]])
                file.write(values.reshape(-1).view(np.uint8))
            file.flush()
            os.fsync(file.fileno())  # else a crash may leave the new name on an empty file
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _view(path: Path, name: str, entry: Mapping, values: np.ndarray) -> LazyTensor:
    if entry["dtype"] not in _DTYPES:
        raise UserError(f"{path}: {name} has the type {entry['dtype']}, which NumPy does not have.")
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    start, end = entry["data_offsets"]
    return LazyTensor(shape, dtype, lambda: values[start:end].view(dtype).reshape(shape))


def _code(name: str, tensor: np.ndarray | LazyTensor) -> str:
    dtype = np.dtype(tensor.dtype)
    if dtype.name not in _CODES:
        raise UserError(f"{name} has the type {dtype}, which safetensors files do not have.")
    return _CODES[dtype.name]
