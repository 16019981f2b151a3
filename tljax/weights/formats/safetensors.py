"""The safetensors format, and `LazyTensor`, which all readers return."""

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

# In the safetensors library's order: for alignment, it writes tensors from the last of these types to the first.
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
    """A tensor in a file, with known shape and dtype, whose values `np.asarray` reads.

    Attributes:
      shape: shape of the tensor.
      dtype: NumPy dtype, from ml_dtypes for bfloat16 and 8-bit floats.
      read: returns the values, if possible as a read-only view of the mapped file, which takes no extra memory.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray] = dataclasses.field(repr=False)

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """Read the values, for NumPy's array protocol."""
        return np.array(self.read(), dtype=dtype, copy=copy)


# {foreign name: tensor}; `np.asarray` of a value reads it.
Tensors = Mapping[str, LazyTensor | np.ndarray]


def map_file(path: Path) -> np.ndarray:
    """Return the bytes of a file, uint8 [size], memory-mapped: pages load on access and can be evicted.

    Raises:
      UserError: the file is empty.
    """
    if not path.stat().st_size:
        raise UserError(f"{path} is empty.")
    return np.asarray(np.memmap(path, np.uint8, "r"))


def open_safetensors(path: Path, stack: contextlib.ExitStack | None = None) -> dict[str, LazyTensor]:
    """Return {name: tensor}.

    `safe_open` checks the header (lengths, holes, overlaps), but its `get_tensor` and `get_slice` copy: 392 MiB for
    VGG-16's first dense kernel. A view of the mapped file takes no memory.

    Args:
      path: the file.
      stack: unused, because views stay valid; the other readers need it.

    Raises:
      UserError: the file is damaged, or has a dtype that NumPy does not support.
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
    """Write a file atomically: to a temporary file in the same folder, which must exist, and then rename it.

    The library's `serialize_file` needs all tensors in memory at once; this reads, writes and frees one at a time, with
    byte-identical results.

    Args:
      path: the file, replaced if it exists.
      tensors: {name: value with `shape` and `dtype` that `np.asarray` accepts}.
      metadata: {name: text} for the header.

    Raises:
      UserError: the format does not support a dtype.
    """
    path = Path(path)
    header, offset = {}, 0
    if metadata:
        header["__metadata__"] = dict(metadata)
    codes = {name: _dtype_code(name, tensor) for name, tensor in tensors.items()}
    for name in sorted(tensors, key=lambda n: (-_RANK[codes[n]], n)):
        end = offset + math.prod(tensors[name].shape) * _DTYPES[codes[name]].itemsize
        header[name] = {"dtype": codes[name], "shape": list(tensors[name].shape), "data_offsets": [offset, end]}
        offset = end
    header_bytes = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    header_bytes += b" " * (-len(header_bytes) % 8)  # aligns the values to eight bytes
    header.pop("__metadata__", None)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(len(header_bytes).to_bytes(8, "little") + header_bytes)
            for name in header:
                values = np.ascontiguousarray(tensors[name], _DTYPES[codes[name]])
                file.write(values.reshape(-1).view(np.uint8))
            file.flush()
            os.fsync(file.fileno())  # otherwise a crash could leave an empty file under the new name
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _view(path: Path, name: str, entry: Mapping, values: np.ndarray) -> LazyTensor:
    """Return a tensor as a view of the file's values, uint8 [size], by its entry in the header."""
    if entry["dtype"] not in _DTYPES:
        raise UserError(f"{path}: {name} has dtype {entry['dtype']}, which NumPy does not support.")
    dtype = _DTYPES[entry["dtype"]]
    shape = tuple(entry["shape"])
    start, end = entry["data_offsets"]
    return LazyTensor(shape, dtype, lambda: values[start:end].view(dtype).reshape(shape))


def _dtype_code(name: str, tensor: np.ndarray | LazyTensor) -> str:
    dtype = np.dtype(tensor.dtype)
    if dtype.name not in _CODES:
        raise UserError(f"{name} has dtype {dtype}, which safetensors does not support.")
    return _CODES[dtype.name]
