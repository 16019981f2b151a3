"""Rules that rename and transpose tensors between a foreign layout and our models, in both directions.

A rule is a pattern of foreign names, a pattern of paths in the model, and a transform. A placeholder `{x}` in both
patterns matches the same digits: `Rule("layer{i}.{j}.bn{k}.weight", "stage{i}/block{j}/unit{k}/bn/scale")`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Transform(NamedTuple):
    """A bijection between foreign and native arrays.

    Attributes:
      view: foreign to native without a copy; the first native axis may be split into several.
      to_foreign: native to foreign.
      num_split: number of axes of the view that form the first native axis.
    """

    view: Callable[[np.ndarray], np.ndarray]
    to_foreign: Callable[[np.ndarray], np.ndarray]
    num_split: int = 1

    def from_foreign(self, x: np.ndarray) -> np.ndarray:
        """Convert a foreign array to the native one, as a view if possible."""
        view = self.view(x)
        return view if self.num_split == 1 else view.reshape(-1, *view.shape[self.num_split :])


def contiguous(x: np.ndarray) -> np.ndarray:
    """Return `x` in C order, copied only if needed; in blocks that fit the CPU cache, which is 4 times as fast."""
    if x.flags.c_contiguous:
        return x
    copy = np.empty(x.shape, x.dtype)
    for start in range(0, len(x), 16):
        copy[start : start + 16] = x[start : start + 16].copy(order="K")
    return copy


def _chw(side: int) -> Transform:
    """Return the transform of a dense kernel on features [side, side, C] that are flattened as C, H, W, not H, W, C."""
    return Transform(
        lambda x: x.reshape(len(x), -1, side, side).transpose(2, 3, 1, 0),
        lambda x: contiguous(x.reshape(side, side, -1, x.shape[-1]).transpose(3, 2, 0, 1)).reshape(x.shape[-1], -1),
        num_split=3,
    )


TRANSFORMS = {
    "same": Transform(lambda x: x, lambda x: x),
    "oihw_to_hwio": Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
    # A transposed convolution, which torch stores with the input channels first.
    "iohw_to_hwio": Transform(lambda x: x.transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1)),
    "oi_to_io": Transform(np.transpose, np.transpose),
    "chw7_to_io": _chw(7),
    "chw4_to_io": _chw(4),
    # Dense layers written as a convolution over the whole 7×7 input, or as a 1×1 convolution.
    "oi77_to_io": Transform(
        lambda x: x.transpose(2, 3, 1, 0),
        lambda x: x.reshape(7, 7, -1, x.shape[-1]).transpose(3, 2, 0, 1),
        num_split=3,
    ),
    "oi11_to_io": Transform(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]),
    "c11_to_c": Transform(lambda x: x[:, 0, 0], lambda x: x[:, None, None]),
}


class Rule(NamedTuple):
    """A foreign name, the path of its variable, and the name of a transform in `TRANSFORMS`."""

    name: str
    path: str
    transform: str = "same"


@dataclasses.dataclass(frozen=True)
class Layout:
    """One library's layout of one variant.

    Attributes:
      rules: the first that matches applies, in either direction; rules without placeholders take precedence.
      ignore: patterns (full match) of foreign names that the model does not need.
      head: (name, value) options of `tljax.models.create_model` for the head that names and shapes do not determine.
    """

    rules: tuple[Rule, ...]
    ignore: tuple[str, ...] = ()
    head_options: tuple[tuple[str, Any], ...] = ()

    def rule_for_name(self, name: str) -> Rule | None:
        """Return the rule, without placeholders, for a foreign name; None if there is none."""
        rule, digits = self._by_name.find(name)
        return rule and Rule(name, _fill(rule.path, digits), rule.transform)

    def rule_for_path(self, path: str) -> Rule | None:
        """Return the rule, without placeholders, for the path of a variable; None if there is none."""
        rule, digits = self._by_path.find(path)
        return rule and Rule(_fill(rule.name, digits), path, rule.transform)

    def ignores(self, name: str) -> bool:
        """Return whether a foreign name is skipped."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignore)

    @functools.cached_property
    def _by_name(self) -> _Index:
        return _Index([(rule.name, rule) for rule in self.rules])

    @functools.cached_property
    def _by_path(self) -> _Index:
        return _Index([(rule.path, rule) for rule in self.rules])


class _Index:
    """Lookup of rules by one of their two patterns."""

    def __init__(self, rules: list[tuple[str, Rule]]):
        self._literal = {}
        self._patterns = []
        for pattern, rule in rules:
            if "{" in pattern:
                self._patterns.append((_compile(pattern), rule))
            else:
                self._literal.setdefault(pattern, rule)

    def find(self, text: str) -> tuple[Rule | None, dict[str, str]]:
        """Return the first rule that matches, and {placeholder: digits}; (None, {}) if there is none."""
        if text in self._literal:
            return self._literal[text], {}
        for pattern, rule in self._patterns:
            if match := pattern.fullmatch(text):
                return rule, match.groupdict()
        return None, {}


@functools.cache
def _compile(pattern: str) -> re.Pattern:
    """Compile a pattern with placeholders to a regular expression with one named group per placeholder."""
    parts = re.split(r"\{(\w+)\}", pattern)
    literals = map(re.escape, parts[::2])
    groups = [rf"(?P<{name}>\d+)" for name in parts[1::2]]
    return re.compile("".join(literal + group for literal, group in zip(literals, [*groups, ""], strict=True)))


def _fill(pattern: str, digits: dict[str, str]) -> str:
    """Replace the placeholders of a pattern."""
    return re.sub(r"\{(\w+)\}", lambda match: digits[match[1]], pattern) if digits else pattern


class NativeLayout(Layout):
    """The layout of our own models and of a run's checkpoints."""

    def rule_for_name(self, name: str) -> Rule:
        """Return the rule that leaves name and values unchanged."""
        return Rule(name, name)

    def rule_for_path(self, path: str) -> Rule:
        """Return the rule that leaves path and values unchanged."""
        return Rule(path, path)


NATIVE = NativeLayout(())

# torch counts batches for BatchNorm with `momentum=None`, which none of these networks uses.
COUNTERS = (r".*\.num_batches_tracked",)


def torch_conv(name: str, path: str) -> list[Rule]:
    """Return the rules of a convolution."""
    return [Rule(f"{name}.weight", f"{path}/kernel", "oihw_to_hwio"), Rule(f"{name}.bias", f"{path}/bias")]


def torch_transposed(name: str, path: str) -> list[Rule]:
    """Return the rules of a transposed convolution."""
    return [Rule(f"{name}.weight", f"{path}/kernel", "iohw_to_hwio"), Rule(f"{name}.bias", f"{path}/bias")]


def torch_dense(name: str, path: str, transform: str = "oi_to_io") -> list[Rule]:
    """Return the rules of a Linear layer."""
    return [Rule(f"{name}.weight", f"{path}/kernel", transform), Rule(f"{name}.bias", f"{path}/bias")]


def torch_norm(name: str, path: str) -> list[Rule]:
    """Return the rules of a BatchNorm with its running statistics, or of a LayerNorm."""
    variables = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return [Rule(f"{name}.{foreign}", f"{path}/{native}") for foreign, native in variables.items()]


def keras_dense(name: str, path: str) -> list[Rule]:
    """Return the rules of a Dense layer or a convolution, whose axes Keras orders as we do."""
    return [Rule(f"{name}/kernel", f"{path}/kernel"), Rule(f"{name}/bias", f"{path}/bias")]


def keras_norm(name: str, path: str) -> list[Rule]:
    """Return the rules of a BatchNormalization with its running statistics."""
    variables = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
    return [Rule(f"{name}/{foreign}", f"{path}/{native}") for foreign, native in variables.items()]


def prefixed(prefix: str, layout: Layout, rules: list[Rule], head: tuple[tuple[str, Any], ...] = ()) -> Layout:
    """Return the layout of a network that contains another.

    Args:
      prefix: prefix of the foreign names of the contained network.
      layout: layout of the contained network.
      rules: rules of the other tensors.
      head: see `Layout`.
    """
    prefixed_rules = [rule._replace(name=prefix + rule.name) for rule in layout.rules]
    return Layout((*prefixed_rules, *rules), layout.ignore, head)


def smp_unet(encoder: Layout, head: tuple[tuple[str, Any], ...] = ()) -> Layout:
    """Return the layout of segmentation_models_pytorch's `Unet`.

    Args:
      encoder: layout of the encoder.
      head: further options of the head; see `Layout`.
    """
    blocks = {f"decoder.blocks.{j}.conv{{k}}": f"head/block{j + 1}/unit{{k}}" for j in range(5)}
    blocks |= {f"decoder.center.{j}": f"head/center/unit{j + 1}" for j in range(2)}
    rules = torch_conv("segmentation_head.0", "head/score")
    for name, path in blocks.items():
        rules += torch_conv(f"{name}.0", f"{path}/conv") + torch_norm(f"{name}.1", f"{path}/bn")
    return prefixed("encoder.", encoder, rules, (("upsample", "nearest"), *head))
