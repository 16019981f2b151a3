"""The named strategies, each a short list of phases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from tljax.config import Config, Phase, StrategyConfig
from tljax.errors import UserError, nearest

HEAD, EVERYTHING, REST_FROZEN = ("head/.*", 1.0), (".*", 1.0), (".*", 0.0)


@dataclasses.dataclass(frozen=True)
class Strategy:
    """What a preset stands for.

    Attributes:
      pretrained: whether the source weights are loaded.
      phases: in order, each with its length in epochs.
    """

    pretrained: bool
    phases: tuple[Phase, ...]


def scratch(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Everything learns from random weights: what transfer has to beat."""
    return full(config, stages, lr)


def full(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Everything learns from the source weights."""
    return [Phase("full", (EVERYTHING,))]


def feature_extraction(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Only the head learns (Donahue et al. 2014)."""
    return [Phase("head", (HEAD, REST_FROZEN))]


def freeze_last(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Everything but the head learns."""
    return [Phase("all but head", (("head/.*", 0.0), EVERYTHING))]


def layers(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Only what `strategy.layers` matches learns."""
    return [Phase("layers", (*((pattern, 1.0) for pattern in config.layers), REST_FROZEN))]


def lp_ft(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Linear probing, then full fine-tuning at a smaller rate (Kumar et al. 2022, arXiv:2202.10054)."""
    return [
        Phase("linear probe", (HEAD, REST_FROZEN)),
        Phase("fine-tune", (EVERYTHING,), optim={"lr": lr * config.lr_scale}),
    ]


def gradual_unfreeze(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """The head, then one more stage at a time from the top (Howard & Ruder 2018, arXiv:1801.06146)."""
    phases, rules = [Phase("head", (HEAD, REST_FROZEN))], [HEAD]
    for stage in reversed(stages):
        rules.append((f"{stage}/.*", 1.0))
        last = stage == stages[0]
        rest = () if last else (REST_FROZEN,)
        phases.append(Phase(f"from {stage}", (*rules, *rest), optim={"lr": lr * config.lr_scale}))
    return phases


PRESETS: dict[str, Callable[[StrategyConfig, Sequence[str], float], list[Phase]]] = {
    f.__name__: f for f in (scratch, feature_extraction, full, freeze_last, layers, lp_ft, gradual_unfreeze)
}


def resolve(config: Config, stages: Sequence[str]) -> Strategy:
    """The strategy of a config, its phases' lengths filled in so that they add up to `train.epochs`.

    Args:
      config: of the run.
      stages: of the backbone that have leaves, in order.

    Raises:
      UserError: no such preset, or phases longer than the run.
    """
    strategy = config.strategy
    if strategy.name == "custom":
        phases = list(strategy.phases)
    elif strategy.name in PRESETS:
        made = PRESETS[strategy.name](strategy, stages, config.optim.lr)
        phases = [dataclasses.replace(p, layer_decay=strategy.layer_decay) for p in made]
        if len(phases) > 1:
            probe = strategy.probe_fraction * config.train.epochs
            phases[0] = dataclasses.replace(phases[0], epochs=probe)
    else:
        raise UserError(f'There is no strategy.name "{strategy.name}"{nearest(strategy.name, [*PRESETS, "custom"])}')
    if weight := config.model.aux_weight:
        phases = [dataclasses.replace(p, objectives=(*p.objectives, ("aux_cross_entropy", weight))) for p in phases]
    return Strategy(
        strategy.name != "scratch" and config.model.weights is not None, _share(phases, config.train.epochs)
    )


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
