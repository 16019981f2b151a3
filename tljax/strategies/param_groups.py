"""Assignment of every variable path to one parameter group: trainable or frozen, learning-rate multiplier, decay."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from tljax.config import Phase
from tljax.errors import UserError
from tljax.strategies.neurons import Layers, matching_pattern


@dataclasses.dataclass(frozen=True)
class ParamGroup:
    """How a phase treats a variable.

    Attributes:
      rule: the pattern that decided.
      lr_multiplier: multiplier of the learning rate; 0 means frozen.
      decay: whether weight decay applies; true for trainable kernels, false for biases and norms.
      partial: whether only the slices of selected channels train.
    """

    rule: str
    lr_multiplier: float
    decay: bool
    partial: bool = False

    @property
    def trainable(self) -> bool:
        """Whether the variable has a gradient and optimizer state; for statistics, whether they are updated."""
        return self.lr_multiplier > 0


def assign_param_groups(
    params: Mapping,
    batch_stats: Mapping,
    phase: Phase,
    stages: Sequence[str] = (),
    layers: Layers = MappingProxyType({}),
) -> dict[str, ParamGroup]:
    """Return the group of every parameter and BatchNorm statistic, by path.

    The first rule that matches a path decides. Running statistics are updated if their group is trainable and constant
    if it is frozen. Rules must freeze the parameters of layers in which single channels train.

    Args:
      params: path → parameter with a `shape`.
      batch_stats: path → BatchNorm statistic.
      phase: its rules, layer-wise decay, and patterns of layers in which single channels train.
      stages: backbone stages in order, for the layer-wise decay; the head and everything else have depth 0.
      layers: layers in which single channels train, from `neurons.find_layers`.

    Raises:
      UserError: a rule has no effect, a path has no rule or would train twice, or no parameter is trainable.
    """
    depth = {stage: len(stages) - i for i, stage in enumerate(stages)}
    neurons: dict[str, Any] = {
        path: matching_pattern(layer, phase.neurons.layers) for layer, paths in layers.items() for path in paths
    }
    groups: dict[str, ParamGroup] = {}
    deciding = set()
    matching = set()
    for path, value in {**params, **batch_stats}.items():
        hits = [rule for rule in phase.rules if re.fullmatch(rule[0], path)]
        matching.update(hits)
        if not hits:
            raise UserError(
                f'Phase "{phase.name}": no rule covers {path}; the rules are {_format_rules(phase)}. '
                'End them with (".*", 0.0) to freeze the rest.'
            )
        pattern, multiplier = hits[0]
        deciding.add(hits[0])
        _check_multiplier(phase, path, pattern, multiplier, neurons.get(path))
        partial = path in neurons
        if partial:
            pattern, multiplier = neurons[path], 1.0
        scale = phase.layer_decay ** depth.get(path.split("/")[0], 0)
        decay = multiplier > 0 and path in params and len(value.shape) > 1
        groups[path] = ParamGroup(pattern, multiplier * scale, decay, partial)
    _check_rules_used(phase, deciding, matching, groups)
    if not any(groups[path].trainable for path in params):
        raise UserError(f'Phase "{phase.name}": no parameter is trainable under the rules {_format_rules(phase)}.')
    return groups


def _check_rules_used(phase: Phase, deciding: set, matching: set, groups: Mapping[str, ParamGroup]) -> None:
    for rule in phase.rules:
        if rule not in deciding:
            reason = "never applies: earlier rules match all its paths" if rule in matching else "matches nothing"
            layers = _format_layers(groups)
            raise UserError(f'Phase "{phase.name}": rule "{rule[0]}" {reason}; the layers are: {layers}.')


def _check_multiplier(phase: Phase, path: str, pattern: str, multiplier: float, neuron_pattern: str | None) -> None:
    """Raise UserError if a rule has a negative multiplier, or trains a path of which single channels train."""
    if multiplier < 0:
        raise UserError(f'Phase "{phase.name}": rule "{pattern}" has the negative multiplier {multiplier}.')
    if neuron_pattern is not None and multiplier > 0:
        raise UserError(
            f'Phase "{phase.name}": {path} would train twice, by rule "{pattern}" and by neurons.layers '
            f'("{neuron_pattern}"): freeze it, or remove it from neurons.layers.'
        )


class Masks(NamedTuple):
    """Trees over the parameters, in their structure, as `optax.masked` and `optax.partition` take them.

    Attributes:
      trainable: whether a parameter is trainable.
      decay: whether weight decay applies to it.
      lr_multiplier: multiplier of the learning rate; 0 for frozen parameters.
    """

    trainable: Any
    decay: Any
    lr_multiplier: Any


def masks(params: Any, phase: Phase, stages: Sequence[str] = ()) -> Masks:
    """Return the masks of a phase over a tree of parameters, for a custom Optax optimizer.

    The rules are those of training: `optax.masked(optax.add_decayed_weights(1e-4), masks(params, phase).decay)`.

    Args:
      params: a flat dict {path: array}, or nested dicts or an `nnx.State` with the same paths.
      phase: its rules and layer-wise decay.
      stages: backbone stages in order, for the layer-wise decay.

    Raises:
      UserError: as in `assign_param_groups`.
    """
    keyed_params, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [_join_keys(keys) for keys, _ in keyed_params]
    flat_params = {path: param for path, (_, param) in zip(paths, keyed_params, strict=True)}
    flat_masks = masks_of_groups(assign_param_groups(flat_params, {}, phase, stages))
    return Masks(*(jax.tree.unflatten(structure, [mask[path] for path in paths]) for mask in flat_masks))


def masks_of_groups(groups: Mapping[str, ParamGroup]) -> Masks:
    """Return the masks of groups, each a dict by path."""
    return Masks(
        trainable={path: group.trainable for path, group in groups.items()},
        decay={path: group.decay for path, group in groups.items()},
        lr_multiplier={path: group.lr_multiplier for path, group in groups.items()},
    )


def _join_keys(keys: Sequence[Any]) -> str:
    """Return the path of a JAX key path; the `value` key inside an `nnx.Variable` is left out."""
    names = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in keys]
    return "/".join(names[:-1] if names[-1] == "value" else names)


def frozen_modules(modules: Sequence[str], groups: Mapping[str, ParamGroup]) -> set[str]:
    """Return the paths of the BatchNorm and Dropout modules that stay in inference mode.

    A BatchNorm follows its running mean, whatever the group of its scale. A Dropout has no variables: it follows its
    parent module, and is off if the parent has no trainable variable.
    """
    frozen = set()
    for path in modules:
        mean = groups.get(f"{path}/mean")
        parent = f"{path.rpartition('/')[0]}/" if "/" in path else ""
        siblings = [group for p, group in groups.items() if p.startswith(parent)]
        if not (mean.trainable if mean else any(group.trainable for group in siblings)):
            frozen.add(path)
    return frozen


def frozen_stages(stages: Sequence[str], groups: Mapping[str, ParamGroup], random: Sequence[str] = ()) -> list[str]:
    """Return the leading stages without trainable variables, up to the first that has some or is in `random`.

    Args:
      stages: of the model, in order.
      groups: from `assign_param_groups`.
      random: stages with active dropout, whose outputs differ from step to step.
    """
    prefix = []
    for stage in stages:
        if stage in random or any(g.trainable for p, g in groups.items() if p.startswith(f"{stage}/")):
            break
        prefix.append(stage)
    return prefix


def _format_rules(phase: Phase) -> str:
    return ", ".join(f'("{pattern}", {multiplier})' for pattern, multiplier in phase.rules)


def _format_layers(groups: Mapping[str, ParamGroup], limit: int = 8) -> str:
    layers = list(dict.fromkeys(path.rpartition("/")[0] for path in groups))
    return ", ".join(layers[:limit]) + (", …" if len(layers) > limit else "")
