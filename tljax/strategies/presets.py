"""The named strategies, each a short list of phases: what learns, by which objectives, and for how long.

A strategy is a function of the config's `strategy` block, the backbone's stages and the learning rate; one of your own,
in any file, is named `FILE.py:NAME` in `strategy.name`. docs/strategies.md compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tljax.config import Phase, StrategyConfig
from tljax.errors import UserError, did_you_mean

PresetFn = Callable[[StrategyConfig, Sequence[str], float], list[Phase]]
HEAD, EVERYTHING, REST_FROZEN = ("head/.*", 1.0), (".*", 1.0), (".*", 0.0)
LABELS = ("cross_entropy", 1.0)


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


def finetune(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """The head on the frozen base, then the top stages too, then, with `strategy.unfreeze_all`, everything."""
    slow = {"lr": lr * config.lr_scale}
    top = tuple((f"{stage}/.*", 1.0) for stage in stages[-config.top_stages :])
    phases = [Phase("head", (HEAD, REST_FROZEN)), Phase("top", (HEAD, *top, REST_FROZEN), optim=slow)]
    return [*phases, Phase("everything", (EVERYTHING,), optim=slow)] if config.unfreeze_all else phases


def gradual_unfreeze(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """The head, then one more stage at a time from the top (Howard & Ruder 2018, arXiv:1801.06146)."""
    phases, rules = [Phase("head", (HEAD, REST_FROZEN))], [HEAD]
    for stage in reversed(stages):
        rules.append((f"{stage}/.*", 1.0))
        last = stage == stages[0]
        rest = () if last else (REST_FROZEN,)
        phases.append(Phase(f"from {stage}", (*rules, *rest), optim={"lr": lr * config.lr_scale}))
    return phases


def micro(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """The head, then single neurons of the frozen network (`strategy.neurons`) and nothing else."""
    return [
        Phase("head", (HEAD, REST_FROZEN)),
        Phase("neurons", (REST_FROZEN,), neurons=config.neurons, optim={"lr": lr * config.lr_scale}),
    ]


def micro_two_heads(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Single neurons under two outputs on the same features: a plain softmax, and hidden layers that weigh ten times.

    Both learn the true labels. SGD at 1e-4 with momentum 0.9, whatever `optim` says.
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
    """Everything learns from the soft labels of `strategy.teachers` (Hinton et al. 2015, arXiv:1503.02531)."""
    return [Phase("distillation", (EVERYTHING,), losses=_soft_labels(config))]


def attention_transfer(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Everything learns where teachers look (Zagoruyko & Komodakis 2017, arXiv:1612.03928)."""
    return [Phase("attention transfer", (EVERYTHING,), losses=(LABELS, ("attention_transfer", 1000.0)))]


def fitnets(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """The lower half learns a teacher's map, then everything its soft labels (Romero et al. 2015, arXiv:1412.6550)."""
    below = stages[: stages.index(hint_stage(config, stages)) + 1]
    rules = (*((f"{stage}/.*", 1.0) for stage in below), ("head/hint_.*", 1.0), REST_FROZEN)
    return [
        Phase("hints", rules, losses=(("hints", 1.0),)),
        Phase("distillation", (("head/hint_.*", 0.0), EVERYTHING), losses=_soft_labels(config)),
    ]


def delta(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Everything learns, its maps held near the source network's (Li et al. 2019, arXiv:1901.09229)."""
    return [Phase("delta", (EVERYTHING,), losses=(LABELS, ("delta", 0.01)))]


def lwf(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Everything learns, and the source's own outputs stay as they were (Li & Hoiem 2017, arXiv:1606.09282)."""
    return [Phase("learning without forgetting", (EVERYTHING,), losses=(LABELS, ("lwf", 1.0)))]


def pseudo_label(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """The labelled pictures, then the unlabelled ones too, by the network's own confident answers (Lee 2013)."""
    return [
        Phase("labelled", (EVERYTHING,)),
        Phase("pseudo-labels", (EVERYTHING,), losses=(LABELS, ("pseudo_label", 1.0))),
    ]


def fixmatch(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Confident answers on weak views label the strong views of pictures (Sohn et al. 2020, arXiv:2001.07685)."""
    return [Phase("fixmatch", (EVERYTHING,), losses=(LABELS, ("fixmatch", 1.0)), ema_decay=config.ema_decay)]


def mean_teacher(config: StrategyConfig, stages, lr: float) -> list[Phase]:
    """Answers stay near those of the averaged weights (Tarvainen & Valpola 2017, arXiv:1703.01780).

    The weight is one for pretrained networks; the paper's, for long training from random weights, is 100.
    """
    return [Phase("mean teacher", (EVERYTHING,), losses=(LABELS, ("mean_teacher", 1.0)), ema_decay=config.ema_decay)]


def hint_stage(config: StrategyConfig, stages: Sequence[str]) -> str:
    """The student's stage that `fitnets` regresses: the first of `strategy.stage_pairs`, else the middle one."""
    stage = config.stage_pairs[0][0] if config.stage_pairs else stages[(len(stages) - 1) // 2]
    if stage not in stages:
        raise UserError(f'strategy.stage_pairs: "{stage}" is no stage that learns{did_you_mean(stage, stages)}')
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
# Fields of `model` that a preset sets where the config leaves them as they are by default.
HEADS = {"micro_two_heads": {"hidden": (128,), "dropout": 0.5}}
