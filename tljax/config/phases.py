"""Config fields of strategies and their phases; all other fields are in `tljax.config.schema`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tljax.config.fields import field


@dataclasses.dataclass(frozen=True)
class NeuronsConfig:
    """Training of single neurons (output channels with their bias and BatchNorm scale and bias) and their selection."""

    layers: tuple[str, ...] = field((), "path patterns of convolutions and dense layers, e.g. 'stage3/.*'; empty: none")
    criterion: str = field(
        "fisher",
        "score that selects the neurons: Fisher information of the weights, |gradient x weight| or variance of the "
        "activation (on training images), norm of the weights, or a random number",
        choices=("fisher", "gradient_weight", "activation_variance", "magnitude", "random"),
    )
    fraction: float = field(0.1, "fraction of the neurons that train", gt=0, le=1)
    count: int | None = field(None, "number of neurons that train, instead of fraction", ge=1)
    scope: str = field(
        "layer",
        "layer: the best neurons of each layer; global: the best of all layers, after dividing each layer's scores by "
        "their root mean square",
        choices=("layer", "global"),
    )
    num_images: int = field(256, "maximum number of training images used to compute the scores", ge=1)


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase of training: which parameters train, with which learning rates and losses, and for how long."""

    name: str = field("train", "name in logs, figures and the report")
    rules: tuple[tuple[str, float], ...] = field(
        ((".*", 1.0),),
        "pairs of path pattern (full match) and learning-rate multiplier; the first match decides; 0 freezes",
    )
    epochs: float | None = field(
        None,
        "length; None: an equal share of the train.epochs that the other phases leave",
        unit="epochs",
        gt=0,
    )
    optim: Mapping = field({}, "fields of optim that differ in this phase, e.g. {'name': 'sgd', 'lr': 0.01}")
    layer_decay: float = field(
        1.0, "learning-rate multiplier per stage of distance from the head (layer-wise decay)", gt=0, le=1
    )
    losses: tuple[tuple[str, float], ...] = field(
        (("cross_entropy", 1.0),),
        "pairs of loss and weight, summed; a custom loss is FILE.py:NAME",
    )
    neurons: NeuronsConfig = dataclasses.field(default_factory=NeuronsConfig)
    ema_decay: float | None = field(
        None,
        "decay per step of an exponential moving average of the weights, which is then evaluated and saved; None: no "
        "average",
        gt=0,
        lt=1,
    )

    @property
    def length(self) -> float:
        """`epochs`, which `build_phases` has set for every phase of a run."""
        assert self.epochs is not None
        return self.epochs


@dataclasses.dataclass(frozen=True)
class StrategyConfig:
    """The transfer-learning strategy."""

    name: str = field(
        "full", "preset (docs/strategies.md), custom (with strategy.phases), or FILE.py:NAME of a custom function"
    )
    phases: tuple[Phase, ...] = field((), "phases of strategy.name=custom")
    losses: tuple[tuple[str, float], ...] = field(
        (), "pairs of loss and weight for every phase of a preset; empty: the preset's losses"
    )
    layers: tuple[str, ...] = field((), "path patterns of the trainable parameters in the preset layers")
    layer_decay: float = field(
        1.0, "learning-rate multiplier per stage of distance from the head, in every phase of a preset", gt=0, le=1
    )
    lr_scale: float = field(0.1, "learning rate of phases that unfreeze the backbone, as a factor of optim.lr", gt=0)
    probe_fraction: float = field(
        0.5,
        "fraction of train.epochs of the first of several phases, e.g. the linear probe of lp_ft",
        gt=0,
        lt=1,
    )
    top_stages: int = field(1, "finetune: number of top stages that train in the second phase", ge=1)
    unfreeze_all: bool = field(False, "finetune: whether all parameters train in an additional last phase")
    neurons: NeuronsConfig = dataclasses.field(default_factory=lambda: NeuronsConfig(layers=("(?!head/).*",)))
    teachers: tuple[str, ...] = field(
        (),
        "teacher networks; several are averaged: workdir:RUN, recipe:CONFIG.py, or a name in the weight catalogue",
    )
    stage_pairs: tuple[tuple[str, str], ...] = field(
        (),
        "pairs of student and teacher stage to compare; empty: the last stage of each stride that both have",
    )
    temperature: float = field(4.0, "temperature of the soft labels of teachers and source network", gt=0)
    alpha: float = field(0.9, "distillation: weight of the soft labels; the true labels have 1 - alpha", ge=0, le=1)
    unlabelled_ratio: int = field(7, "unlabelled images per labelled image in a batch", ge=1)
    threshold: float = field(0.95, "minimum confidence of a pseudo-label", ge=0, le=1)
    distribution_alignment: bool = field(
        False, "align the pseudo-labels of a batch with the class frequencies of the labelled images (ReMixMatch)"
    )
    unlabelled_warmup: float = field(
        0.0,
        "fraction of a phase over which the weight of unlabelled images rises to its full value",
        ge=0,
        le=1,
    )
    ema_decay: float = field(0.99, "fixmatch, mean_teacher: decay per step of the averaged weights", gt=0, lt=1)
    hparams: Mapping = field({}, "additional numbers, passed to custom losses in `hparams`")
