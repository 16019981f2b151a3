"""Files of weights as other frameworks write them, opened as name → tensor, read one tensor at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from tljax.errors import UserError
from tljax.weights.formats.keras_h5 import open_keras_h5
from tljax.weights.formats.safetensors import LazyTensor, open_safetensors, write_safetensors
from tljax.weights.formats.torch_pickle import LEGACY_MAGIC, open_torch

__all__ = ["LazyTensor", "open_tensors", "write_safetensors"]

_BY_SUFFIX = {
    ".safetensors": open_safetensors,
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt"), open_torch),
    **dict.fromkeys((".h5", ".hdf5"), open_keras_h5),
}
_BY_MAGIC = {b"PK\x03\x04": open_torch, LEGACY_MAGIC: open_torch, b"\x89HDF\r\n\x1a\n": open_keras_h5}


@contextlib.contextmanager
def open_tensors(path: str | Path) -> Iterator[Mapping[str, LazyTensor]]:
    """Opens a file of weights: a context manager that gives foreign name → tensor.

    The suffix says what the file is, else its first bytes do. Opening checks names, types, shapes and that the file
    is all there; values are read by `np.asarray(tensor)`, inside the context. Nothing in the file is executed.

    Args:
      path: .safetensors; torch's .pth, .pt, .bin, .ckpt; Keras' .h5, .hdf5.

    Raises:
      UserError: not there, of an unknown kind, damaged, without tensors, or it asks for code to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There are no weights at {path}.")
    if path.suffix.lower() == ".keras":
        raise UserError(
            f"{path} is a whole Keras model, which is not read: use its save_weights to a .weights.h5 file."
        )
    opener = _BY_SUFFIX.get(path.suffix.lower()) or _by_first_bytes(path)
    with contextlib.ExitStack() as stack:
        yield opener(path, stack)


def _by_first_bytes(path: Path):
    with path.open("rb") as file:
        head = file.read(32)
    for magic, opener in _BY_MAGIC.items():
        if head.startswith(magic):
            return opener
    if head[8:9] == b"{":  # after the length of the header, which is JSON
        return open_safetensors
    raise UserError(f"{path} is no safetensors, torch or Keras HDF5 file.")
