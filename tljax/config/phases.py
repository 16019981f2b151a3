"""The fields of a strategy and of its phases; the rest of a run's are in `tljax.config.schema`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tljax.config.fields import field


@dataclasses.dataclass(frozen=True)
class NeuronsConfig:
    """Which single neurons (output channels, with bias and BatchNorm scale and bias) learn, and how they are chosen."""

    layers: tuple[str, ...] = field((), "path patterns of convolutions and dense layers, e.g. 'stage3/.*'; empty: none")
    criterion: str = field(
        "fisher",
        "what makes a neuron worth learning, on training pictures: the Fisher information of its weights, "
        "|gradient x weight|, the variance of its activation, the norm of its weights, or chance",
        choices=("fisher", "gradient_weight", "activation_variance", "magnitude", "random"),
    )
    fraction: float = field(0.1, "share of the neurons that learn", gt=0, le=1)
    count: int | None = field(None, "how many neurons learn, instead of a fraction", ge=1)
    scope: str = field(
        "layer",
        "layer: the best of each layer; global: the best of all, scores of a layer divided by their root mean square",
        choices=("layer", "global"),
    )
    num_images: int = field(256, "training pictures that the criterion is measured on, at most", ge=1)


@dataclasses.dataclass(frozen=True)
class Phase:
    """One stretch of training: what learns, how fast, by which objectives, and for how long."""

    name: str = field("train", "name in logs, figures and the report")
    rules: tuple[tuple[str, float], ...] = field(
        ((".*", 1.0),),
        "pairs of path pattern (full match) and learning-rate multiple; the first that matches decides; 0 freezes",
    )
    epochs: float | None = field(
        None,
        "length; None: an equal share of what train.epochs leaves to such phases",
        unit="epochs",
        gt=0,
    )
    optim: Mapping = field({}, "fields of optim that differ in this phase, e.g. {'name': 'sgd', 'lr': 0.01}")
    layer_decay: float = field(
        1.0, "learning-rate multiple per stage away from the head (layer-wise decay)", gt=0, le=1
    )
    losses: tuple[tuple[str, float], ...] = field(
        (("cross_entropy", 1.0),),
        "pairs of objective and weight that add up to the loss; an objective of your own is FILE.py:NAME",
    )
    neurons: NeuronsConfig = dataclasses.field(default_factory=NeuronsConfig)
    ema_decay: float | None = field(
        None,
        "decay per step of a running average of the weights, which is then validated and kept; None: no average",
        gt=0,
        lt=1,
    )


@dataclasses.dataclass(frozen=True)
class StrategyConfig:
    """How the pretrained network is adapted."""

    name: str = field(
        "full", "preset (docs/strategies.md), custom with phases, or FILE.py:NAME, a function of your own"
    )
    phases: tuple[Phase, ...] = field((), "the phases of a custom strategy")
    losses: tuple[tuple[str, float], ...] = field(
        (), "pairs of objective and weight, for every phase of a preset; empty: the preset's own"
    )
    layers: tuple[str, ...] = field((), "path patterns that learn under the preset layers")
    layer_decay: float = field(
        1.0, "learning-rate multiple per stage away from the head, in every phase of a preset", gt=0, le=1
    )
    lr_scale: float = field(
        0.1, "learning rate of the phases that unfreeze the backbone, as a multiple of optim.lr", gt=0
    )
    probe_fraction: float = field(
        0.5, "share of train.epochs of the first of several phases, such as lp_ft's linear probe", gt=0, lt=1
    )
    top_stages: int = field(1, "finetune: stages from the top that learn in its second phase", ge=1)
    unfreeze_all: bool = field(False, "finetune: whether a last phase follows in which everything learns")
    neurons: NeuronsConfig = dataclasses.field(default_factory=lambda: NeuronsConfig(layers=("(?!head/).*",)))
    teachers: tuple[str, ...] = field(
        (),
        "networks to learn from, averaged: workdir:RUN, recipe:CONFIG.py, or weights of the catalogue",
    )
    stage_pairs: tuple[tuple[str, str], ...] = field(
        (), "stages of student and teacher whose maps are compared; empty: the last of each stride that both have"
    )
    temperature: float = field(4.0, "of the soft labels of teachers and source", gt=0)
    alpha: float = field(0.9, "distillation: weight of the soft labels; 1 - alpha is that of the true ones", ge=0, le=1)
    unlabelled_ratio: int = field(7, "unlabelled pictures per labelled one in a batch", ge=1)
    threshold: float = field(0.95, "least confidence of a pseudo-label", ge=0, le=1)
    distribution_alignment: bool = field(
        False, "align the pseudo-labels of a batch with the labelled pictures' class frequencies (ReMixMatch)"
    )
    unlabelled_warmup: float = field(
        0.0, "share of a phase over which the weight of the unlabelled pictures rises to its full value", ge=0, le=1
    )
    ema_decay: float = field(0.99, "fixmatch, mean_teacher: decay per step of the averaged weights", gt=0, lt=1)
    hparams: Mapping = field({}, "further numbers, which objectives of your own find in `hyper`")
