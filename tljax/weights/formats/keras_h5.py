"""Keras' HDF5 weights files, read with names "layer/variable" for every version of Keras.

Three file structures:
- before Keras 3, and in keras-applications: the root attribute `layer_names`, and for each layer a group that lists its
  datasets in `weight_names`, "conv1/kernel:0" or, before Keras 2, "conv1_W:0"; a whole model has it in "model_weights";
- Keras 3's .weights.h5: "layers/conv2d_1/vars/0", counted by class; since 3.6, `vars` has the layer's own name as an
  attribute, and before that only "conv2d_1" is stored;
- TensorFlow's Keras 2.13: the same under "_layer_checkpoint_dependencies".

A layer inside another (a model used as a layer) has the outer layer's name as a prefix: "vgg16/block1_conv1/kernel".
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tljax.errors import UserError
from tljax.weights.formats.safetensors import LazyTensor, map_file

# Names before Keras 2; running_std is a variance.
_OLD_VARIABLES = {"W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_std": "moving_variance"}
_OLD_NAME = re.compile(r"(.+)_(W|b|gamma|beta|running_mean|running_std)(?:_\d+)?")

# Variables that Keras 3 stores as vars/0, vars/1, ...: first the trainable ones, then the statistics.
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
    """Return {"layer/variable": tensor}, without the optimizer and random states.

    Args:
      path: the file.
      stack: closes the file; tensors must be read before.

    Raises:
      UserError: the file is damaged, has no Keras weights, or stores values in other files.
    """
    import h5py

    data = map_file(path)
    try:
        file = stack.enter_context(h5py.File(path, "r"))
        root = _child(file, "model_weights") if "model_weights" in file else file
        legacy = any(name.startswith("layer_names") for name in root.attrs)
        tensors = {}
        for name, dataset in (_iter_legacy if legacy else _iter_keras3)(root):
            if name in tensors:
                raise UserError(f"{path} has two variables named {name}.")
            tensors[name] = _tensor(path, name, dataset, data)
    except UserError:
        raise
    except Exception as error:  # h5py raises OSError, KeyError, ValueError, RuntimeError and more on damaged files
        raise UserError(f"{path} is not a readable HDF5 file of Keras weights ({error}).") from error
    if not tensors:
        raise UserError(f"{path} has no Keras weights.")
    return tensors


def number_from_one(names: Iterable[str]) -> dict[str, str]:
    """Renumber the layers whose names Keras generated, and return {old name: new name} in the given order.

    Keras counts a class's layers over the whole session: the first Conv2D is "conv2d", or "conv2d_95" after another
    model. Here "conv2d", "conv2d_1", ... or "conv2d_95", "conv2d_96", ... become "conv2d_1", "conv2d_2", ..., by number
    within each class. Other names do not change.

    Args:
      names: "layer/variable" or "layer", with outer layers as prefixes.
    """
    parsed = {name: _parse_generated_name(name) for name in names}
    numbers = {}
    for generated in filter(None, parsed.values()):
        numbers.setdefault((generated.prefix, generated.layer_class), set()).add(generated.number)
    new_numbers = {key: {old: new for new, old in enumerate(sorted(olds), start=1)} for key, olds in numbers.items()}
    renamed = {}
    for name, generated in parsed.items():
        if generated is None:
            renamed[name] = name
        else:
            prefix, layer_class, number, suffix = generated
            renamed[name] = f"{prefix}{layer_class}_{new_numbers[prefix, layer_class][number]}{suffix}"
    return renamed


class _GeneratedName(NamedTuple):
    """A name with a layer that Keras named, such as "base/conv2d_1/kernel".

    Attributes:
      prefix: outer layers, with a slash at the end: "base/".
      layer_class: "conv2d".
      number: 1; 0 for "conv2d".
      suffix: the rest, with a slash at the start: "/kernel".
    """

    prefix: str
    layer_class: str
    number: int
    suffix: str


def _parse_generated_name(name: str) -> _GeneratedName | None:
    """Split a name at the first layer that Keras named; None if there is none."""
    parts = name.split("/")
    for i, part in enumerate(parts):
        if match := _NUMBERED.fullmatch(part):
            prefix = "/".join([*parts[:i], ""])
            suffix = "/".join(["", *parts[i + 1 :]])
            return _GeneratedName(prefix, match[1], int(match[2] or 0), suffix)
    return None


def _iter_legacy(root: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, dataset) of a file written before Keras 3."""
    for layer in _read_names(root, "layer_names"):
        group = _child(root, layer)
        split_names = {name: _split_weight_name(name) for name in _read_names(group, "weight_names")}
        owners = {owner for owner, _ in split_names.values()}
        for name, (owner, variable) in split_names.items():
            # A single owner is the layer itself, even if Keras made its scope unique: "conv1_1" for "conv1".
            if owner == layer or (len(owners) == 1 and "/" not in owner):
                full_name = f"{layer}/{variable}"
            else:
                full_name = f"{layer}/{owner.removeprefix(f'{layer}/')}/{variable}"
            yield full_name, _child(group, name)


def _split_weight_name(name: str) -> tuple[str, str]:
    """Split a weight's name into the name of the layer that owns it and the variable's name."""
    name = re.sub(r":\d+$", "", name)
    if "/" not in name and (old := _OLD_NAME.fullmatch(name)):
        owner, variable = old[1], old[2]
    else:
        owner, _, variable = name.rpartition("/")
        variable = re.sub(r"^(kernel|bias|gamma|beta|moving_mean|moving_variance)_\d+$", r"\1", variable)
    return owner, _OLD_VARIABLES.get(variable, variable)


def _read_names(group: Any, attribute: str) -> list[str]:
    """Read a list of names from an attribute, or from its chunks `attribute`0, `attribute`1, ... if it is long."""
    values = group.attrs.get(attribute)
    if values is None:
        chunks = sorted((k for k in group.attrs if re.fullmatch(rf"{attribute}\d+", k)), key=lambda k: (len(k), k))
        values = [name for chunk in chunks for name in group.attrs[chunk]]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in values]


def _iter_keras3(group: Any, layer: tuple[str, ...] = (), layer_class: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, dataset) of a group of Keras 3, recursively.

    Args:
      group: the HDF5 group.
      layer: names of the layers that contain it, from the outermost.
      layer_class: class of the innermost layer, e.g. "conv2d".
    """
    variables = _child(group, "vars") if "vars" in group else {}
    keys = sorted(variables, key=lambda k: (len(k), k))  # "10" after "9"
    for key, name in zip(keys, _variable_names(layer_class, keys), strict=True):
        yield "/".join([*layer, name]), _child(variables, key)
    for name in group:
        if name == "vars" or _NO_WEIGHTS.match(name):
            continue
        child = _child(group, name)
        if name in _CONTAINERS:
            yield from _iter_keras3(child, layer)
        elif hasattr(child, "keys"):
            layer_name = _child(child, "vars").attrs.get("name", name) if "vars" in child else name
            yield from _iter_keras3(child, (*layer, layer_name), re.sub(r"_\d+$", "", name))


def _variable_names(layer_class: str, keys: list[str]) -> list[str]:
    """Return the names of a layer's numbered variables; the numbers themselves for an unknown class.

    A BatchNorm with three variables has no gamma (`scale=False`) or no beta (`center=False`), which the file does not
    record. It is read as the former: keras-applications has these, and none of the latter.
    """
    names = _VARIABLES.get(layer_class, ())
    if layer_class == "batch_normalization":
        names = names[-len(keys) :]
    return list(names[: len(keys)]) if len(names) >= len(keys) else keys


def _child(group: Any, name: str) -> Any:
    """Return the object at `name` in this file; links are refused, because they could read other files."""
    import h5py

    for part in filter(None, name.split("/")):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{part} is missing or a link")
        group = group[part]
    return group


def _tensor(path: Path, name: str, dataset: Any, data: np.ndarray) -> LazyTensor:
    """Return a dataset as a tensor.

    Args:
      path: the file.
      name: name of the tensor, for messages.
      dataset: the HDF5 dataset.
      data: bytes of the file, uint8 [size], memory-mapped.
    """
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"the values of {name} are stored in another file")
    # gzip compresses by a factor of about 1000 at most; a larger ratio means a false size.
    if dataset.nbytes > dataset.id.get_storage_size() * (1100 if dataset.chunks else 1):
        raise ValueError(f"{name} declares {dataset.nbytes} bytes, more than the file has")
    bfloat16 = dataset.attrs.get("dtype") == "bfloat16"  # HDF5 has no such type: Keras stores two bytes
    dtype = np.dtype(ml_dtypes.bfloat16) if bfloat16 else dataset.dtype.newbyteorder("=")
    offset = dataset.id.get_offset()
    if offset is None or not (bfloat16 or dtype == dataset.dtype) or dataset.file.userblock_size:
        return LazyTensor(dataset.shape, dtype, functools.partial(_read, path, name, dataset, dtype))
    # Contiguous values are a view of the mapped file, which saves HDF5's copy.
    view = data[offset : offset + dataset.nbytes].view(dtype).reshape(dataset.shape)
    return LazyTensor(dataset.shape, dtype, lambda: view)


def _read(path: Path, name: str, dataset: Any, dtype: np.dtype) -> np.ndarray:
    try:
        values = np.asarray(dataset[()])
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged at {name}, or was closed before {name} was read: {error}.") from error
    return values.view(dtype) if values.dtype.kind == "V" else values.astype(dtype)
