"""Strict assignment of foreign tensors to a model: every tensor and every variable is matched or excluded by name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from tljax.errors import UserError
from tljax.models import Model
from tljax.models import params as params_lib
from tljax.weights.formats import Tensors
from tljax.weights.layouts.table import TRANSFORMS, Layout, Rule, contiguous


class MatchReport(NamedTuple):
    """How foreign tensors match a model.

    Attributes:
      plan: {path: rule without placeholders that fills it}.
      unused: tensors that match no variable.
      missing: paths of variables without a tensor.
      shape_mismatches: tensors whose shape differs from their variable's.
    """

    rules: dict[str, Rule]
    unexpected: list[str]
    missing: list[str]
    shape_mismatches: list[str]

    @property
    def complete(self) -> bool:
        """Whether every tensor and every variable matches."""
        return not (self.unexpected or self.missing or self.shape_mismatches)

    def describe(self) -> str:
        """Return sentences that list everything that does not match."""
        return (
            f"Unexpected tensors: {_format_names(self.unexpected)}. Missing variables: {_format_names(self.missing)}. "
            f"Shape mismatches: {_format_names(self.shape_mismatches)}."
        )


def match_tensors(
    tensors: Tensors,
    model: Model,
    layout: Layout,
    *,
    keep: str | Sequence[str] = (),
    optional: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
) -> MatchReport:
    """Match every foreign tensor to a variable by name and shape; arguments as in `assign_weights`."""
    keep = _as_patterns(keep)
    optional = _as_patterns(optional)
    ignore = _as_patterns(ignore)
    _, params, stats = params_lib.flatten_model(model)
    target = params | stats
    first = first_kernel(params)
    aliases = getattr(getattr(model, "head", None), "weight_aliases", {})
    plan, unused, mismatches = {}, [], []
    for name, tensor in tensors.items():
        if layout.ignores(name) or _matches(name, ignore):
            continue
        rule = _apply_alias(layout.rule_for_name(name), aliases)
        if rule is None:
            unused.append(name)
        elif _matches(rule.path, keep) or rule.path.split("/")[0] in model.unused_stages:
            continue
        elif rule.path in plan:
            mismatches.append(f"{name}: another tensor fills {rule.path} already")
        elif rule.path not in target:
            unused += [] if _matches(rule.path, optional) else [f"{name} (for {rule.path})"]
        else:
            shape = native_shape(rule, tensor.shape)
            expected = target[rule.path].shape
            is_alias = rule.path.rpartition("/")[0] in aliases.values()
            fits = shape == expected or (is_alias and _dense_shape(expected) == shape)
            if fits or (rule.path == first and _is_adaptable(shape, expected)):
                plan[rule.path] = rule
            elif not _matches(rule.path, optional):
                plan[rule.path] = rule
                mismatches.append(f"{name}: {shape or tuple(tensor.shape)}, but {rule.path} is {expected}")
    missing = [p for p in target if p not in plan and not _matches(p, (*keep, *optional))]
    return MatchReport(plan, unused, missing, mismatches)


def assign_weights(
    tensors: Tensors,
    model: Model,
    layout: Layout,
    *,
    keep: str | Sequence[str] = (),
    optional: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    source: str = "the source",
) -> None:
    """Fill `model` in place from foreign tensors, one at a time, or raise and leave it unchanged.

    Weights for RGB images also fit a model with another number of input channels: see `adapt_channels`.

    Args:
      tensors: {foreign name: array}; any value with a `shape` that `np.asarray` accepts.
      model: may be abstract. Tensors of stages that it does not build (`model.unused_stages`) are skipped.
      layout: layout of the foreign names.
      keep: patterns of model paths that keep their value, even if the source has a tensor for them.
      optional: patterns of model paths that are filled if the source has a tensor that fits, and else keep their value.
      ignore: patterns of foreign names that are skipped, besides the layout's own.
      source: name of the source in the error message.

    Raises:
      UserError: unexpected tensors, missing variables or mismatched shapes; the message lists them.
    """
    report = match_tensors(tensors, model, layout, keep=keep, optional=optional, ignore=ignore)
    if not report.complete:
        raise UserError(
            f"{source} does not fit the model. {report.describe()} "
            "List unwanted tensors in `ignore` and variables that keep their value in `keep`."
        )
    variables = params_lib.flatten_state(nnx.state(model))
    first = first_kernel(variables)
    for path, rule in report.rules.items():
        variable = variables[path]
        value = TRANSFORMS[rule.transform].view(np.asarray(tensors[rule.name]))
        if path == first and value.shape[2] != variable.shape[2]:
            value = adapt_channels(value, variable.shape[2])
        variable.set_value(jax.device_put(_aligned_copy(value, variable.dtype).reshape(variable.shape)))


def export_weights(model: Model, layout: Layout) -> dict[str, np.ndarray]:
    """Return the variables of a model under foreign names and in the foreign memory layout.

    The inverse of `assign_weights`.

    Raises:
      UserError: the layout has no name for a variable.
    """
    _, params, stats = params_lib.flatten_model(model)
    tensors, unnamed = {}, []
    for path, value in (params | stats).items():
        if (rule := layout.rule_for_path(path)) is None:
            unnamed.append(path)
        else:
            tensors[rule.name] = contiguous(TRANSFORMS[rule.transform].to_foreign(np.asarray(value)))
    if unnamed:
        raise UserError(f"This layout has no names for {_format_names(unnamed)}.")
    return tensors


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapt the RGB kernel of a first convolution, [k, k, 3, out], to another number of input channels.

    For one channel, the kernel is summed over RGB, so a grayscale image gives the same result as three equal channels.
    For more channels, the three are repeated in turn and scaled by 3 / `channels`, which keeps the scale of the
    activations (timm's rule).

    Returns:
      The adapted kernel [k, k, channels, out].
    """
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    return kernel[:, :, np.arange(channels) % 3] * np.float32(3 / channels)


def _aligned_copy(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return a contiguous copy aligned to 64 bytes, which JAX's CPU device uses without another copy."""
    size = math.prod(value.shape) * np.dtype(dtype).itemsize
    buffer = np.empty(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    copy = buffer[start : start + size].view(dtype).reshape(value.shape)
    if value.flags.c_contiguous:
        np.copyto(copy, value, casting="same_kind")
        return copy
    # A transposed array is copied in blocks of its last axis that fit the CPU cache: two to four times as fast.
    for start in range(0, value.shape[-1], 64):
        block = np.s_[..., start : start + 64]
        np.copyto(copy[block], value[block], casting="same_kind")
    return copy


def first_kernel(params: Mapping[str, Any]) -> str | None:
    """Return the path of the kernel of the first convolution, which reads the image; None if there is none."""
    kernels = [p for p in params if p.startswith("stem/") and p.endswith("/kernel") and len(params[p].shape) == 4]
    return min(kernels, default=None)


def native_shape(rule: Rule, shape: Sequence[int]) -> tuple[int, ...] | None:
    """Return the model's shape for a foreign tensor's `shape`; None if the rule's transform does not apply to it."""
    try:
        return TRANSFORMS[rule.transform].from_foreign(np.broadcast_to(np.float32(0), tuple(shape))).shape
    except (ValueError, IndexError):
        return None


def _apply_alias(rule: Rule | None, aliases: Mapping[str, str]) -> Rule | None:
    """Replace the layer of a rule's path by the name that the model's head uses for it."""
    if rule is None:
        return None
    layer, _, parameter = rule.path.rpartition("/")
    return rule._replace(path=f"{aliases[layer]}/{parameter}") if layer in aliases else rule


def _dense_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the kernel shape of the dense layer equivalent to a convolution over its whole input."""
    return (math.prod(shape[:-1]), *shape[-1:])


def _is_adaptable(shape: tuple[int, ...] | None, expected: tuple[int, ...]) -> bool:
    """Return whether `shape` is an RGB kernel that equals `expected` up to the input channels."""
    return shape is not None and len(shape) == 4 and shape[2] == 3 and shape == (*expected[:2], 3, *expected[3:])


def _as_patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(p, name) for p in patterns)


def _format_names(names: list[str], max_names: int = 12) -> str:
    suffix = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return (", ".join(names[:max_names]) or "none") + suffix
