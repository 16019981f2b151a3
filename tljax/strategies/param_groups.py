"""One function from path to group: what learns, how fast, with or without decay. Everything else asks it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from tljax.config import Phase
from tljax.errors import UserError
from tljax.strategies.neurons import Layers, pattern_of


@dataclasses.dataclass(frozen=True)
class ParamGroup:
    """What a phase does with a leaf.

    Attributes:
      rule: the pattern that decided.
      multiplier: of the learning rate; 0 is frozen.
      decay: whether weight decay applies: to learning kernels, not to biases and norms.
      single: whether only the part of single neurons learns.
    """

    rule: str
    lr_multiplier: float
    decay: bool
    partial: bool = False

    @property
    def trainable(self) -> bool:
        """Whether gradient, optimizer state, batch statistics and dropout exist for the leaf."""
        return self.lr_multiplier > 0


def assign_param_groups(
    params: Mapping,
    batch_stats: Mapping,
    phase: Phase,
    stages: Sequence[str] = (),
    layers: Layers = MappingProxyType({}),
) -> dict[str, ParamGroup]:
    """Gives every leaf exactly one group.

    The first rule that matches a path decides. BatchNorm statistics are leaves like any other: they follow the batch
    where they learn and stand still where they are frozen. Where single neurons of a layer learn, the rules must freeze
    its leaves.

    Args:
      params: path → leaf with a `shape`.
      batch_stats: path → BatchNorm statistic.
      phase: its rules, layer-wise decay and patterns of layers with learning neurons.
      stages: of the backbone in order, for the layer-wise decay; the head and everything else is at depth 0.
      layers: those of which single neurons learn, from `neurons.layers_of`.

    Raises:
      UserError: a rule decides nothing, a leaf has no rule, would learn twice, or nothing learns.
    """
    depth = {stage: len(stages) - i for i, stage in enumerate(stages)}
    neurons = {path: pattern_of(layer, phase.neurons.layers) for layer, paths in layers.items() for path in paths}
    groups, deciding, matching = {}, set(), set()
    for path, leaf in {**params, **batch_stats}.items():
        hits = [rule for rule in phase.rules if re.fullmatch(rule[0], path)]
        matching.update(hits)
        if not hits:
            raise UserError(
                f'Phase "{phase.name}": no rule covers {path}; the rules are {_rules(phase)}. '
                'End them with (".*", 0.0) to freeze the rest.'
            )
        pattern, multiplier = hits[0]
        deciding.add(hits[0])
        if multiplier < 0:
            raise UserError(f'Phase "{phase.name}": rule "{pattern}" has the negative multiplier {multiplier}.')
        if (single := path in neurons) and multiplier > 0:
            raise UserError(
                f'Phase "{phase.name}": {path} would learn twice, by rule "{pattern}" and by its neurons '
                f'("{neurons[path]}"): freeze it, or leave it out of neurons.layers.'
            )
        pattern, multiplier = (neurons[path], 1.0) if single else (pattern, multiplier)
        scale = phase.layer_decay ** depth.get(path.split("/")[0], 0)
        decays = multiplier > 0 and path in params and len(leaf.shape) > 1
        groups[path] = ParamGroup(pattern, multiplier * scale, decays, single)
    for rule in phase.rules:
        if rule not in deciding:
            why = "is never reached, earlier rules match all its paths" if rule in matching else "matches nothing"
            raise UserError(f'Phase "{phase.name}": rule "{rule[0]}" {why}; there is: {_paths(groups)}.')
    if not any(groups[path].trainable for path in params):
        raise UserError(f'Phase "{phase.name}": nothing learns under the rules {_rules(phase)}.')
    return groups


class Masks(NamedTuple):
    """Trees over the parameters, in their structure, as `optax.masked` and `optax.partition` take them.

    Attributes:
      trainable: whether a parameter trains.
      decay: whether weight decay applies to it.
      lr_multiplier: of the learning rate; 0 where it is frozen.
    """

    trainable: Any
    decay: Any
    lr_multiplier: Any


def masks(params: Any, phase: Phase, stages: Sequence[str] = ()) -> Masks:
    """Return the masks of a phase over a tree of parameters, for an optimizer of your own.

    The same rules decide as in training: `optax.masked(optax.add_decayed_weights(1e-4), masks(params, phase).decay)`.

    Args:
      params: a flat dict {path: array}, or nested dicts or an `nnx.State` with the same paths.
      phase: its rules and layer-wise decay.
      stages: of the backbone in order, for the layer-wise decay.

    Raises:
      UserError: as `assign_param_groups`.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [_path(keys) for keys, _ in leaves]
    groups = assign_param_groups(dict(zip(paths, (leaf for _, leaf in leaves), strict=True)), {}, phase, stages)
    flat = masks_of_groups(groups)
    return Masks(*(jax.tree.unflatten(structure, [mask[path] for path in paths]) for mask in flat))


def masks_of_groups(groups: Mapping[str, ParamGroup]) -> Masks:
    """Return the masks of groups by path."""
    return Masks(
        trainable={path: group.trainable for path, group in groups.items()},
        decay={path: group.decay for path, group in groups.items()},
        lr_multiplier={path: group.lr_multiplier for path, group in groups.items()},
    )


def _path(keys: Sequence[Any]) -> str:
    """Return the path of a leaf; the value inside an `nnx.Variable` adds nothing to that of the variable."""
    names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in keys]
    return "/".join(names[:-1] if names[-1] == "value" else names)


def frozen_modules(modules: Sequence[str], groups: Mapping[str, ParamGroup]) -> set[str]:
    """Which BatchNorm and Dropout modules stay in inference mode, by path.

    A BatchNorm follows its running mean, whatever its scale does. A Dropout has no leaves: it follows the module around
    it, and is off where none of that module's leaves learns.
    """
    frozen = set()
    for path in modules:
        mean = groups.get(f"{path}/mean")
        around = f"{path.rpartition('/')[0]}/" if "/" in path else ""
        inside = [group for p, group in groups.items() if p.startswith(around)]
        if not (mean.trainable if mean else any(group.trainable for group in inside)):
            frozen.add(path)
    return frozen


def frozen_stages(stages: Sequence[str], groups: Mapping[str, ParamGroup], random: Sequence[str] = ()) -> list[str]:
    """The stages before the first one that learns, moves its statistics, or draws at random (`random`)."""
    prefix = []
    for stage in stages:
        if stage in random or any(g.trainable for p, g in groups.items() if p.startswith(f"{stage}/")):
            break
        prefix.append(stage)
    return prefix


def _rules(phase: Phase) -> str:
    return ", ".join(f'("{pattern}", {multiplier})' for pattern, multiplier in phase.rules)


def _paths(groups: Mapping[str, ParamGroup], most: int = 8) -> str:
    layers = list(dict.fromkeys(path.rpartition("/")[0] for path in groups))
    return ", ".join(layers[:most]) + (", …" if len(layers) > most else "")
