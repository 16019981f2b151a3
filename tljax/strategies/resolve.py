"""From a config's `strategy` block to phases that fill the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tljax import plugins
from tljax.config import Config, ModelConfig, Phase
from tljax.config.validate import validate_phase
from tljax.errors import UserError, did_you_mean
from tljax.strategies.presets import HEADS, PRESETS
from tljax.tasks import task_of


@dataclasses.dataclass(frozen=True)
class Strategy:
    """What a strategy's name stands for.

    Attributes:
      pretrained: whether the source weights are loaded.
      phases: in order, each with its length in epochs.
    """

    pretrained: bool
    phases: tuple[Phase, ...]


def with_preset_head(config: Config) -> Config:
    """The config with the head that its preset brings, where the head is left at its default."""
    default = ModelConfig()
    wanted = HEADS.get(config.strategy.name, {})
    changes = {k: v for k, v in wanted.items() if getattr(config.model, k) == getattr(default, k)}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


def build_phases(config: Config, stages: Sequence[str]) -> Strategy:
    """The strategy of a config, its phases' lengths filled in so that they add up to `train.epochs`.

    Args:
      config: of the run.
      stages: of the backbone that have leaves, in order.

    Raises:
      UserError: no such strategy, a function of the user's own that gives no phases, or phases longer than the run.
    """
    strategy = config.strategy
    if strategy.name == "custom":
        phases = list(strategy.phases)
    else:
        phases = _phases(config, stages)
        if len(phases) > 1 and phases[0].epochs is None:
            first = strategy.probe_fraction * config.train.epochs
            phases[0] = dataclasses.replace(phases[0], epochs=first)
        if strategy.losses:
            phases = [dataclasses.replace(p, losses=strategy.losses) for p in phases]
    phases = [dataclasses.replace(p, losses=_losses(config, p)) for p in phases]
    pretrained = strategy.name != "scratch" and config.model.weights is not None
    return Strategy(pretrained, _share(phases, config.train.epochs))


def _phases(config: Config, stages: Sequence[str]) -> list[Phase]:
    strategy, name = config.strategy, config.strategy.name
    own = plugins.is_plugin(name)
    preset = plugins.load_plugin(name, "strategy") if own else PRESETS.get(name)
    if preset is None:
        raise UserError(f'There is no strategy.name "{name}"{did_you_mean(name, [*PRESETS, "custom"])}')
    if not callable(preset):
        raise UserError(f"strategy.name={name!r} must be a function, got {type(preset).__name__}.")
    phases = preset(strategy, tuple(stages), config.optim.lr)
    if not isinstance(phases, (list, tuple)) or not phases or not all(isinstance(p, Phase) for p in phases):
        raise UserError(f"strategy.name={name!r} must return a list of tljax.config.Phase, got {phases!r}.")
    if own:
        phases = [validate_phase(phase, config.optim) for phase in phases]
    # A phase of the user's own may have a decay of its own.
    return [dataclasses.replace(p, layer_decay=p.layer_decay * strategy.layer_decay) for p in phases]


def _losses(config: Config, phase: Phase) -> tuple[tuple[str, float], ...]:
    """A phase's own objectives, and those that fields of the config add to every phase."""
    optim = dataclasses.replace(config.optim, **phase.optim)
    further = {"aux_cross_entropy": config.model.aux_weight, "l2": optim.l2, "l2_sp": optim.l2_sp}
    # What a strategy says of labels holds of whatever they are labels of.
    labels = task_of(config).label_loss
    means = {"cross_entropy": labels, "source_cross_entropy": f"source_{labels}"}
    own = ((means.get(name, name), weight) for name, weight in phase.losses)
    return (*own, *((name, weight) for name, weight in further.items() if weight))


def _share(phases: list[Phase], epochs: float) -> tuple[Phase, ...]:
    open_ended = [p for p in phases if p.epochs is None]
    left = epochs - sum(p.epochs or 0 for p in phases)
    if left < -1e-6 or (open_ended and left <= 0) or (not open_ended and left > 1e-6):
        raise UserError(
            f"The phases' epochs ({', '.join(f'{p.name}: {p.epochs}' for p in phases)}) do not add up to "
            f"train.epochs ({epochs})."
        )
    each = left / max(1, len(open_ended))
    return tuple(dataclasses.replace(p, epochs=p.epochs or each) for p in phases)
