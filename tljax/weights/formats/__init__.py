"""Readers of weights files: safetensors, PyTorch and Keras HDF5, opened as {name: tensor} and read lazily."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from tljax.errors import UserError
from tljax.weights.formats.keras_h5 import open_keras_h5
from tljax.weights.formats.safetensors import LazyTensor, Tensors, open_safetensors, write_safetensors
from tljax.weights.formats.torch_pickle import LEGACY_MAGIC, open_torch

__all__ = ["SUFFIXES", "LazyTensor", "Tensors", "open_tensors", "write_safetensors"]

_BY_SUFFIX = {
    ".safetensors": open_safetensors,
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt"), open_torch),
    **dict.fromkeys((".h5", ".hdf5"), open_keras_h5),
}
SUFFIXES = tuple(_BY_SUFFIX)
_BY_MAGIC = {b"PK\x03\x04": open_torch, LEGACY_MAGIC: open_torch, b"\x89HDF\r\n\x1a\n": open_keras_h5}


@contextlib.contextmanager
def open_tensors(path: str | Path) -> Iterator[Mapping[str, LazyTensor]]:
    """Open a weights file as a context manager that yields {foreign name: tensor}.

    The suffix decides the format, or else the first bytes. Opening checks names, types, shapes and the file size;
    `np.asarray(tensor)` reads the values, inside the context. Nothing in the file is executed.

    Args:
      path: .safetensors; PyTorch's .pth, .pt, .bin, .ckpt; Keras' .h5, .hdf5.

    Raises:
      UserError: the file does not exist, has an unknown format, is damaged, has no tensors or contains code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There are no weights at {path}.")
    if path.suffix.lower() == ".keras":
        raise UserError(
            f"{path} is a whole Keras model, which is not supported: use its save_weights to a .weights.h5 file."
        )
    opener = _BY_SUFFIX.get(path.suffix.lower()) or _detect_format(path)
    with contextlib.ExitStack() as stack:
        yield opener(path, stack)


def _detect_format(path: Path):
    """Return the reader for a file by its first bytes."""
    with path.open("rb") as file:
        head = file.read(32)
    for magic, opener in _BY_MAGIC.items():
        if head.startswith(magic):
            return opener
    if head[8:9] == b"{":  # the JSON header after its length
        return open_safetensors
    raise UserError(f"{path} is not a safetensors, PyTorch or Keras HDF5 file.")
