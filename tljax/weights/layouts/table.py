"""Rules that rename and reshape, in both directions.

A rule is a pair of patterns, foreign name and path in our model, and a transform. `{x}` in both stands for the same
digits: `Rule("layer{i}.{j}.bn{k}.weight", "stage{i}/block{j}/unit{k}/bn/scale")`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Transform(NamedTuple):
    """A bijection of arrays.

    Attributes:
      view: foreign to ours without a copy, the first axis perhaps still in pieces.
      theirs: ours to foreign.
      pieces: of the first axis in the view.
    """

    view: Callable[[np.ndarray], np.ndarray]
    to_foreign: Callable[[np.ndarray], np.ndarray]
    pieces: int = 1

    def from_foreign(self, x: np.ndarray) -> np.ndarray:
        """Foreign to ours, a view where that can be."""
        view = self.view(x)
        return view if self.pieces == 1 else view.reshape(-1, *view.shape[self.pieces :])


def contiguous(x: np.ndarray) -> np.ndarray:
    """`x` in C order, copied unless it is already; a transposed array in pieces that fit a cache, 4 times as fast."""
    if x.flags.c_contiguous:
        return x
    copy = np.empty(x.shape, x.dtype)
    for start in range(0, len(x), 16):
        copy[start : start + 16] = x[start : start + 16].copy(order="K")
    return copy


def _chw(side: int) -> Transform:
    """A dense layer on a map of side × side places that was flattened as C, H, W; ours are flattened as H, W, C."""
    return Transform(
        lambda x: x.reshape(len(x), -1, side, side).transpose(2, 3, 1, 0),
        lambda x: contiguous(x.reshape(side, side, -1, x.shape[-1]).transpose(3, 2, 0, 1)).reshape(x.shape[-1], -1),
        pieces=3,
    )


TRANSFORMS = {
    "same": Transform(lambda x: x, lambda x: x),
    "oihw_to_hwio": Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
    # A transposed convolution, which torch stores with the inputs first.
    "iohw_to_hwio": Transform(lambda x: x.transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1)),
    "oi_to_io": Transform(np.transpose, np.transpose),
    "chw7_to_io": _chw(7),
    "chw4_to_io": _chw(4),
    # A dense layer that is written as a convolution over the whole 7×7 map, or over one place.
    "oi77_to_io": Transform(
        lambda x: x.transpose(2, 3, 1, 0),
        lambda x: x.reshape(7, 7, -1, x.shape[-1]).transpose(3, 2, 0, 1),
        pieces=3,
    ),
    "oi11_to_io": Transform(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]),
    "c11_to_c": Transform(lambda x: x[:, 0, 0], lambda x: x[:, None, None]),
}


class Rule(NamedTuple):
    """Foreign name ↔ path, by a transform of `TRANSFORMS`."""

    name: str
    path: str
    transform: str = "same"


@dataclasses.dataclass(frozen=True)
class Layout:
    """One library's names for one variant.

    Attributes:
      rules: the first that matches decides, in either direction; those without blanks come before the others.
      ignore: patterns (full match) of names that have no place in our model and are not missed.
      head: options of `tljax.models.build` for the head, as pairs, where names and shapes do not tell them.
    """

    rules: tuple[Rule, ...]
    ignore: tuple[str, ...] = ()
    head: tuple[tuple[str, Any], ...] = ()

    def place(self, name: str) -> Rule | None:
        """Where a foreign tensor goes: a rule without blanks."""
        rule, blanks = self._by_name.find(name)
        return rule and Rule(name, _fill(rule.path, blanks), rule.transform)

    def origin(self, path: str) -> Rule | None:
        """Where one of our leaves comes from: a rule without blanks."""
        rule, blanks = self._by_path.find(path)
        return rule and Rule(_fill(rule.name, blanks), path, rule.transform)

    def ignores(self, name: str) -> bool:
        """Whether a name is not wanted."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignore)

    @functools.cached_property
    def _by_name(self) -> _Index:
        return _Index([(rule.name, rule) for rule in self.rules])

    @functools.cached_property
    def _by_path(self) -> _Index:
        return _Index([(rule.path, rule) for rule in self.rules])


class _Index:
    """Rules by one of their two patterns."""

    def __init__(self, rules: list[tuple[str, Rule]]):
        self._whole, self._blank = {}, []
        for pattern, rule in rules:
            if "{" in pattern:
                self._blank.append((_compile(pattern), rule))
            else:
                self._whole.setdefault(pattern, rule)

    def find(self, text: str) -> tuple[Rule | None, dict[str, str]]:
        """The rule that decides, and what stands in its blanks."""
        if text in self._whole:
            return self._whole[text], {}
        for pattern, rule in self._blank:
            if match := pattern.fullmatch(text):
                return rule, match.groupdict()
        return None, {}


@functools.cache
def _compile(pattern: str) -> re.Pattern:
    pieces = re.split(r"\{(\w+)\}", pattern)
    literal = map(re.escape, pieces[::2])
    blanks = [rf"(?P<{name}>\d+)" for name in pieces[1::2]]
    return re.compile("".join(a + b for a, b in zip(literal, [*blanks, ""], strict=True)))


def _fill(pattern: str, blanks: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: blanks[match[1]], pattern) if blanks else pattern


class NativeLayout(Layout):
    """Our own names, as checkpoints of runs have them."""

    def place(self, name: str) -> Rule:
        """Itself."""
        return Rule(name, name)

    origin = place


NATIVE = NativeLayout(())

# torch counts batches for a momentum mode that none of these networks uses.
COUNTERS = (r".*\.num_batches_tracked",)


def torch_conv(name: str, path: str) -> list[Rule]:
    """A convolution, its bias included if there is one."""
    return [Rule(f"{name}.weight", f"{path}/kernel", "oihw_to_hwio"), Rule(f"{name}.bias", f"{path}/bias")]


def torch_transposed(name: str, path: str) -> list[Rule]:
    """A transposed convolution."""
    return [Rule(f"{name}.weight", f"{path}/kernel", "iohw_to_hwio"), Rule(f"{name}.bias", f"{path}/bias")]


def torch_dense(name: str, path: str, transform: str = "oi_to_io") -> list[Rule]:
    """A Linear layer."""
    return [Rule(f"{name}.weight", f"{path}/kernel", transform), Rule(f"{name}.bias", f"{path}/bias")]


def torch_norm(name: str, path: str) -> list[Rule]:
    """A BatchNorm with its statistics, or a LayerNorm."""
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return [Rule(f"{name}.{theirs}", f"{path}/{ours}") for theirs, ours in names.items()]


def keras_dense(name: str, path: str) -> list[Rule]:
    """A Dense layer or a convolution, which Keras lays out as we do."""
    return [Rule(f"{name}/kernel", f"{path}/kernel"), Rule(f"{name}/bias", f"{path}/bias")]


def keras_norm(name: str, path: str) -> list[Rule]:
    """A BatchNormalization with its statistics."""
    names = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
    return [Rule(f"{name}/{theirs}", f"{path}/{ours}") for theirs, ours in names.items()]


def prefixed(prefix: str, layout: Layout, rules: list[Rule], head: tuple[tuple[str, Any], ...] = ()) -> Layout:
    """A layout as part of a larger network, whose other tensors have rules of their own."""
    return Layout((*(r._replace(name=prefix + r.name) for r in layout.rules), *rules), layout.ignore, head)


def smp_unet(encoder: Layout, head: tuple[tuple[str, Any], ...] = ()) -> Layout:
    """`Unet` of segmentation_models_pytorch with an encoder in the names of `encoder`."""
    blocks = {f"decoder.blocks.{j}.conv{{k}}": f"head/block{j + 1}/unit{{k}}" for j in range(5)}
    blocks |= {f"decoder.center.{j}": f"head/center/unit{j + 1}" for j in range(2)}
    rules = torch_conv("segmentation_head.0", "head/score")
    for theirs, ours in blocks.items():
        rules += torch_conv(f"{theirs}.0", f"{ours}/conv") + torch_norm(f"{theirs}.1", f"{ours}/bn")
    return prefixed("encoder.", encoder, rules, (("upsample", "nearest"), *head))
