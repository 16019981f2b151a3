"""Conversion of a config's `strategy` section to the phases of a run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from tljax import plugins
from tljax.config import Config, ModelConfig, Phase
from tljax.config.validate import validate_phase
from tljax.errors import UserError, did_you_mean
from tljax.losses import requirements_of
from tljax.strategies.presets import PRESET_HEADS, PRESETS
from tljax.tasks import task_of


@dataclasses.dataclass(frozen=True)
class Strategy:
    """The phases of a run.

    Attributes:
      pretrained: whether the pretrained weights are loaded.
      phases: phases in order, each with its length in epochs.
    """

    pretrained: bool
    phases: tuple[Phase, ...]

    @functools.cached_property
    def requires(self) -> frozenset[str]:
        """Everything that the losses of the phases need, as keys of `tljax.losses.REQUIREMENTS`."""
        return frozenset().union(*map(requirements_of, self.phases))


def with_preset_head(config: Config) -> Config:
    """Return the config with the head of its preset; only fields of `model` with their default value change."""
    default = ModelConfig()
    preset = PRESET_HEADS.get(config.strategy.name, {})
    changes = {k: v for k, v in preset.items() if getattr(config.model, k) == getattr(default, k)}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


def build_phases(config: Config, stages: Sequence[str]) -> Strategy:
    """Return the phases of a config, with lengths that add up to `train.epochs`.

    Args:
      config: the config of the run.
      stages: backbone stages with parameters, in order.

    Raises:
      UserError: the strategy does not exist, a custom strategy returns no phases, or the phases do not add up to the
        length of the run.
    """
    strategy = config.strategy
    if strategy.name == "custom":
        phases = list(strategy.phases)
    else:
        phases = _preset_phases(config, stages)
        if len(phases) > 1 and phases[0].epochs is None:
            epochs = strategy.probe_fraction * config.train.epochs
            phases[0] = dataclasses.replace(phases[0], epochs=epochs)
        if strategy.losses:
            phases = [dataclasses.replace(p, losses=strategy.losses) for p in phases]
    phases = [dataclasses.replace(p, losses=_resolve_losses(config, p)) for p in phases]
    pretrained = strategy.name != "scratch" and config.model.weights is not None
    return Strategy(pretrained, _fill_epochs(phases, config.train.epochs))


def _preset_phases(config: Config, stages: Sequence[str]) -> list[Phase]:
    strategy = config.strategy
    name = strategy.name
    is_custom = plugins.is_plugin(name)
    preset = plugins.load_plugin(name, "strategy") if is_custom else PRESETS.get(name)
    if preset is None:
        raise UserError(f'There is no strategy.name "{name}"{did_you_mean(name, [*PRESETS, "custom"])}')
    if not callable(preset):
        raise UserError(f"strategy.name={name!r} must be a function, got {type(preset).__name__}.")
    phases = preset(strategy, tuple(stages), config.optim.lr)
    if not isinstance(phases, (list, tuple)) or not phases or not all(isinstance(p, Phase) for p in phases):
        raise UserError(f"strategy.name={name!r} must return a list of tljax.config.Phase, got {phases!r}.")
    if is_custom:
        phases = [validate_phase(phase, config.optim) for phase in phases]
    # Phases of a custom strategy may set a layer decay themselves.
    return [dataclasses.replace(p, layer_decay=p.layer_decay * strategy.layer_decay) for p in phases]


def _resolve_losses(config: Config, phase: Phase) -> tuple[tuple[str, float], ...]:
    """Return the losses of a phase for the task of the run, with those that config fields add to every phase."""
    optim = dataclasses.replace(config.optim, **phase.optim)
    auxiliary = {"aux_cross_entropy": config.model.aux_weight, "l2": optim.l2, "l2_sp": optim.l2_sp}
    # In a strategy, cross_entropy stands for the task's loss of labels.
    task = task_of(config)
    label_loss = task.label_loss
    if plugins.is_plugin(label_loss) and any(name == "source_cross_entropy" for name, _ in phase.losses):
        raise UserError(
            f'Phase "{phase.name}": source_cross_entropy is not available for the custom task "{task.name}".'
        )
    task_losses = {"cross_entropy": label_loss, "source_cross_entropy": f"source_{label_loss}"}
    phase_losses = ((task_losses.get(name, name), weight) for name, weight in phase.losses)
    return (*phase_losses, *((name, weight) for name, weight in auxiliary.items() if weight))


def _fill_epochs(phases: list[Phase], epochs: float) -> tuple[Phase, ...]:
    open_ended = [p for p in phases if p.epochs is None]
    left = epochs - sum(p.epochs or 0 for p in phases)
    if left < -1e-6 or (open_ended and left <= 0) or (not open_ended and left > 1e-6):
        raise UserError(
            f"The phases' epochs ({', '.join(f'{p.name}: {p.epochs}' for p in phases)}) do not add up to "
            f"train.epochs ({epochs})."
        )
    share = left / max(1, len(open_ended))
    return tuple(dataclasses.replace(p, epochs=p.epochs or share) for p in phases)
