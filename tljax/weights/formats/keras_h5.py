"""Keras' HDF5 files of weights, named "layer/variable" whichever Keras wrote them.

Three layouts:
- before Keras 3, and in keras-applications: the root attribute `layer_names`, and for each layer a group that lists its
  datasets in `weight_names`, "conv1/kernel:0" or, before Keras 2, "conv1_W:0"; a whole model has it in "model_weights";
- Keras 3's .weights.h5: "layers/conv2d_1/vars/0", counted by class; since 3.6 `vars` has the layer's own name as an
  attribute, and before that "conv2d_1" is all that is known;
- TensorFlow's Keras 2.13: the same under "_layer_checkpoint_dependencies".

A layer inside another (a model used as a layer) keeps the outer one's name in front: "vgg16/block1_conv1/kernel".
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tljax.errors import UserError
from tljax.weights.formats.safetensors import LazyTensor, map_file

_OLD = {"W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_std": "moving_variance"}  # std: a misnomer
_OLD_NAME = re.compile(r"(.+)_(W|b|gamma|beta|running_mean|running_std)(?:_\d+)?")

# What Keras 3 stores as vars/0, vars/1, ...: first what learns, then the statistics.
_BATCH_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
_VARIABLES = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "conv2d_transpose", "dense"), ("kernel", "bias")),
    "depthwise_conv2d": ("kernel", "bias"),
    "separable_conv2d": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "batch_normalization": _BATCH_NORM,
    "layer_normalization": ("gamma", "beta"),
    "normalization": ("mean", "variance", "count"),
}
_CONTAINERS = {"layers", "_layer_checkpoint_dependencies"}
_NO_WEIGHTS = re.compile(r"optimizer|_?compile_|_?metrics|.*seed_generator")
_NUMBERED = re.compile(rf"({'|'.join(_VARIABLES)}|convolution2d|batchnormalization)(?:_(\d+))?")


def open_keras_h5(path: Path, stack: contextlib.ExitStack) -> dict[str, LazyTensor]:
    """Returns "layer/variable" → tensor; layers without weights, the optimizer and random states are left out.

    Args:
      path: the file.
      stack: closes the file; tensors are read before.

    Raises:
      UserError: damaged, no weights of Keras, or values that lie in other files.
    """
    import h5py

    data = map_file(path)
    try:
        file = stack.enter_context(h5py.File(path, "r"))
        root = _child(file, "model_weights") if "model_weights" in file else file
        legacy = any(name.startswith("layer_names") for name in root.attrs)
        tensors = {}
        for name, dataset in (_legacy if legacy else _keras3)(root):
            if name in tensors:
                raise UserError(f"{path} has two weights that are called {name}.")
            tensors[name] = _tensor(path, name, dataset, data)
    except UserError:
        raise
    except Exception as error:  # h5py raises OSError, KeyError, ValueError, RuntimeError and more on damaged files
        raise UserError(f"{path} is not a readable HDF5 file of Keras weights ({error}).") from error
    if not tensors:
        raise UserError(f"{path} has no Keras weights.")
    return tensors


def number_from_one(names: Iterable[str]) -> dict[str, str]:
    """Renumbers the layers that Keras named: old name → new name, in the given order.

    Keras counts a class's layers over the whole session: the first Conv2D is "conv2d", or "conv2d_95" after another
    model. Here "conv2d", "conv2d_1", ... or "conv2d_95", "conv2d_96", ... become "conv2d_1", "conv2d_2", ..., by number
    within each class. Names that somebody chose stay.

    Args:
      names: "layer/variable" or "layer", with outer layers in front if there are any.
    """
    names, seen = list(names), {}
    for name in names:
        for outer, base, number, _ in _numbered(name):
            seen.setdefault((outer, base), set()).add(number)
    new = {key: {number: i for i, number in enumerate(sorted(numbers), start=1)} for key, numbers in seen.items()}
    parts = {name: _numbered(name) for name in names}
    return {n: next((f"{o}{base}_{new[o, base][i]}{rest}" for o, base, i, rest in p), n) for n, p in parts.items()}


def _numbered(name: str) -> Iterator[tuple[str, str, int, str]]:
    """At most one: what stands before the numbered layer, its class, its number, and what stands after it."""
    parts = name.split("/")
    for i, part in enumerate(parts):
        if match := _NUMBERED.fullmatch(part):
            yield "/".join([*parts[:i], ""]), match[1], int(match[2] or 0), "/".join(["", *parts[i + 1 :]])
            return


def _legacy(root: Any) -> Iterator[tuple[str, Any]]:
    for layer in _names(root, "layer_names"):
        group = _child(root, layer)
        split = {name: _split(name) for name in _names(group, "weight_names")}
        owners = {owner for owner, _ in split.values()}
        for name, (owner, variable) in split.items():
            inner = owner.removeprefix(f"{layer}/")
            # One owner is the layer itself, even where Keras made its scope "conv1_1" to be unique.
            plain = owner == layer or (len(owners) == 1 and "/" not in owner)
            yield f"{layer}/{variable}" if plain else f"{layer}/{inner}/{variable}", _child(group, name)


def _split(name: str) -> tuple[str, str]:
    """A weight's name → its owner's name and the variable's."""
    name = re.sub(r":\d+$", "", name)
    if "/" not in name and (old := _OLD_NAME.fullmatch(name)):
        owner, variable = old[1], old[2]
    else:
        owner, _, variable = name.rpartition("/")
        variable = re.sub(r"^(kernel|bias|gamma|beta|moving_mean|moving_variance)_\d+$", r"\1", variable)
    return owner, _OLD.get(variable, variable)


def _names(group: Any, attribute: str) -> list[str]:
    """A list of names; long ones are cut into `attribute`0, `attribute`1, ..."""
    values = group.attrs.get(attribute)
    if values is None:
        chunks = sorted((k for k in group.attrs if re.fullmatch(rf"{attribute}\d+", k)), key=lambda k: (len(k), k))
        values = [name for chunk in chunks for name in group.attrs[chunk]]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in values]


def _keras3(group: Any, layer: tuple[str, ...] = (), kind: str = "") -> Iterator[tuple[str, Any]]:
    variables = _child(group, "vars") if "vars" in group else {}
    keys = sorted(variables, key=lambda k: (len(k), k))  # "10" comes after "9"
    for key, name in zip(keys, _variable_names(kind, keys), strict=True):
        yield "/".join([*layer, name]), _child(variables, key)
    for name in group:
        if name == "vars" or _NO_WEIGHTS.match(name):
            continue
        child = _child(group, name)
        if name in _CONTAINERS:
            yield from _keras3(child, layer)
        elif hasattr(child, "keys"):
            own = _child(child, "vars").attrs.get("name", name) if "vars" in child else name
            yield from _keras3(child, (*layer, own), re.sub(r"_\d+$", "", name))


def _variable_names(kind: str, keys: list[str]) -> list[str]:
    """Names for a class's numbered variables.

    The file does not say whether a BatchNorm of three has lost its gamma (`scale=False`) or its beta (`center=False`).
    It is taken for the former: keras-applications has those, and none of the latter. A class that is not known keeps
    its numbers.
    """
    names = _VARIABLES.get(kind, ())
    if kind == "batch_normalization":
        names = names[-len(keys) :]
    return list(names[: len(keys)]) if len(names) >= len(keys) else keys


def _child(group: Any, name: str) -> Any:
    """What lies under `name` in this very file: links to elsewhere would read what the user did not name."""
    import h5py

    for part in filter(None, name.split("/")):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{part} is missing or a link")
        group = group[part]
    return group


def _tensor(path: Path, name: str, dataset: Any, data: np.ndarray) -> LazyTensor:
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"the values of {name} lie in another file")
    # gzip packs a thousandfold at best: more is a small file that claims to be a large one.
    if dataset.nbytes > dataset.id.get_storage_size() * (1100 if dataset.chunks else 1):
        raise ValueError(f"{name} claims {dataset.nbytes} bytes, more than the file has")
    bfloat16 = dataset.attrs.get("dtype") == "bfloat16"  # which HDF5 does not have: stored as two bytes
    dtype = np.dtype(ml_dtypes.bfloat16) if bfloat16 else dataset.dtype.newbyteorder("=")
    offset = dataset.id.get_offset()
    if offset is None or not (bfloat16 or dtype == dataset.dtype) or dataset.file.userblock_size:
        return LazyTensor(dataset.shape, dtype, functools.partial(_read, path, name, dataset, dtype))
    # Values in one piece are a view of the mapped file, which saves HDF5's copy of them.
    view = data[offset : offset + dataset.nbytes].view(dtype).reshape(dataset.shape)
    return LazyTensor(dataset.shape, dtype, lambda: view)


def _read(path: Path, name: str, dataset: Any, dtype: np.dtype) -> np.ndarray:
    try:
        values = np.asarray(dataset[()])
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged at {name}, or was closed before it was read: {error}.") from error
    return values.view(dtype) if values.dtype.kind == "V" else values.astype(dtype)
