"""Strategy presets. Each is a function that returns phases: what trains, with which losses, and for how long.

The arguments are the config's `strategy` section, the backbone stages with parameters, and the learning rate. A custom
strategy is a function with the same arguments in any file, selected by `strategy.name="FILE.py:NAME"`.
docs/strategies.md compares the presets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tljax.config import Phase, StrategyConfig
from tljax.errors import UserError, did_you_mean

PresetFn = Callable[[StrategyConfig, Sequence[str], float], list[Phase]]
HEAD, EVERYTHING, REST_FROZEN = ("head/.*", 1.0), (".*", 1.0), (".*", 0.0)
LABELS = ("cross_entropy", 1.0)


def scratch(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Train all parameters from random weights, the baseline of transfer learning."""
    return full(config, stages, lr)


def full(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Train all parameters, starting from the pretrained weights."""
    return [Phase("full", (EVERYTHING,))]


def feature_extraction(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Train only the head (Donahue et al. 2014)."""
    return [Phase("head", (HEAD, REST_FROZEN))]


def freeze_last(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Train everything except the head."""
    return [Phase("all but head", (("head/.*", 0.0), EVERYTHING))]


def layers(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Train only the parameters that match `strategy.layers`."""
    return [Phase("layers", (*((pattern, 1.0) for pattern in config.layers), REST_FROZEN))]


def lp_ft(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Train a linear probe, then fine-tune at a smaller learning rate (Kumar et al. 2022, arXiv:2202.10054)."""
    return [
        Phase("linear probe", (HEAD, REST_FROZEN)),
        Phase("fine-tune", (EVERYTHING,), optim={"lr": lr * config.lr_scale}),
    ]


def finetune(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Train the head, then also the top stages, then, with `strategy.unfreeze_all`, all parameters."""
    small_lr = {"lr": lr * config.lr_scale}
    top = tuple((f"{stage}/.*", 1.0) for stage in stages[-config.top_stages :])
    phases = [Phase("head", (HEAD, REST_FROZEN)), Phase("top", (HEAD, *top, REST_FROZEN), optim=small_lr)]
    return [*phases, Phase("everything", (EVERYTHING,), optim=small_lr)] if config.unfreeze_all else phases


def gradual_unfreeze(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Train the head, then unfreeze one more stage per phase from the top (Howard & Ruder 2018, arXiv:1801.06146)."""
    phases = [Phase("head", (HEAD, REST_FROZEN))]
    rules = [HEAD]
    for stage in reversed(stages):
        rules.append((f"{stage}/.*", 1.0))
        rest = () if stage == stages[0] else (REST_FROZEN,)
        phases.append(Phase(f"from {stage}", (*rules, *rest), optim={"lr": lr * config.lr_scale}))
    return phases


def micro(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Train the head, then only the selected neurons of the otherwise frozen network (`strategy.neurons`)."""
    return [
        Phase("head", (HEAD, REST_FROZEN)),
        Phase("neurons", (REST_FROZEN,), neurons=config.neurons, optim={"lr": lr * config.lr_scale}),
    ]


def micro_two_heads(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Train selected neurons under two classifiers: a linear one, and one with hidden layers and ten times the weight.

    Both are trained on the true labels, by SGD with learning rate 1e-4 and momentum 0.9 regardless of `optim`.
    """
    return [
        Phase(
            "two heads",
            (HEAD, REST_FROZEN),
            neurons=config.neurons,
            losses=(("source_cross_entropy", 1.0), ("cross_entropy", 10.0)),
            optim={"name": "momentum", "lr": 1e-4, "momentum": 0.9},
        )
    ]


def distillation(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Train on the soft labels of `strategy.teachers` (Hinton et al. 2015, arXiv:1503.02531)."""
    return [Phase("distillation", (EVERYTHING,), losses=_soft_labels(config))]


def attention_transfer(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Match the spatial attention maps of teachers (Zagoruyko & Komodakis 2017, arXiv:1612.03928)."""
    return [Phase("attention transfer", (EVERYTHING,), losses=(LABELS, ("attention_transfer", 1000.0)))]


def fitnets(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Regress a teacher's features in the lower half, then distill (Romero et al. 2015, arXiv:1412.6550)."""
    lower = stages[: stages.index(hint_stage(config, stages)) + 1]
    rules = (*((f"{stage}/.*", 1.0) for stage in lower), ("head/hint_.*", 1.0), REST_FROZEN)
    return [
        Phase("hints", rules, losses=(("hints", 1.0),)),
        Phase("distillation", (("head/hint_.*", 0.0), EVERYTHING), losses=_soft_labels(config)),
    ]


def delta(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Penalize the distance of the features from the source network's (DELTA, Li et al. 2019, arXiv:1901.09229)."""
    return [Phase("delta", (EVERYTHING,), losses=(LABELS, ("delta", 0.01)))]


def lwf(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Preserve the outputs of the source classifier during training (Li & Hoiem 2017, arXiv:1606.09282)."""
    return [Phase("learning without forgetting", (EVERYTHING,), losses=(LABELS, ("lwf", 1.0)))]


def pseudo_label(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Train on labelled images, then also on unlabelled ones with the network's confident predictions (Lee 2013)."""
    return [
        Phase("labelled", (EVERYTHING,)),
        Phase("pseudo-labels", (EVERYTHING,), losses=(LABELS, ("pseudo_label", 1.0))),
    ]


def fixmatch(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Label strong views by confident predictions on weak views (Sohn et al. 2020, arXiv:2001.07685)."""
    return [Phase("fixmatch", (EVERYTHING,), losses=(LABELS, ("fixmatch", 1.0)), ema_decay=config.ema_decay)]


def mean_teacher(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Keep predictions close to those of the averaged weights (Tarvainen & Valpola 2017, arXiv:1703.01780).

    The weight of the loss is 1, for pretrained networks; the paper uses 100 for long training from random weights.
    """
    return [Phase("mean teacher", (EVERYTHING,), losses=(LABELS, ("mean_teacher", 1.0)), ema_decay=config.ema_decay)]


def hint_stage(config: StrategyConfig, stages: Sequence[str]) -> str:
    """Return the student stage that `fitnets` regresses: the first of `strategy.stage_pairs`, or the middle stage.

    Raises:
      UserError: the stage is not one of `stages`.
    """
    stage = config.stage_pairs[0][0] if config.stage_pairs else stages[(len(stages) - 1) // 2]
    if stage not in stages:
        hint = did_you_mean(stage, stages)
        raise UserError(f'strategy.stage_pairs: the student has no stage "{stage}" with parameters{hint}')
    return stage


def _soft_labels(config: StrategyConfig) -> tuple[tuple[str, float], ...]:
    return (("cross_entropy", 1 - config.alpha), ("distillation", config.alpha))


PRESETS: dict[str, PresetFn] = {
    f.__name__: f
    for f in (
        scratch,
        feature_extraction,
        full,
        freeze_last,
        layers,
        lp_ft,
        finetune,
        gradual_unfreeze,
        micro,
        micro_two_heads,
        distillation,
        attention_transfer,
        fitnets,
        delta,
        lwf,
        pseudo_label,
        fixmatch,
        mean_teacher,
    )
}
# Fields of `model` that a preset sets if they have their default value.
PRESET_HEADS = {"micro_two_heads": {"hidden": (128,), "dropout": 0.5}}
