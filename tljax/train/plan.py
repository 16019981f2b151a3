"""The plan of a phase for one model and data set: what trains, what shapes the step, and when things happen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from tljax import losses
from tljax.config import Config, OptimConfig, Phase
from tljax.errors import UserError
from tljax.features.cache_plan import CachePlan, plan_cache
from tljax.features.frozen_network import FROZEN_STAGES, FrozenNetwork, frozen_backbone
from tljax.inference.predictor import Predictor
from tljax.losses import Loss
from tljax.models import Model
from tljax.models import params as params_lib
from tljax.models.layers import BatchNorm, Dropout
from tljax.models.params import Variables
from tljax.strategies import ParamGroup, assign_param_groups, frozen_modules, frozen_stages, neurons
from tljax.train import optimizer
from tljax.train.state import StepSpec


class SplitSizes(NamedTuple):
    """How many labelled images a phase trains on, how many it validates on, and the shape [H, W, C] of one."""

    train: int
    valid: int
    image_shape: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class PhasePlan:
    """Everything that is known of a phase before it starts.

    Attributes:
      phase: as the strategy gave it.
      optim: of the run, with the phase's changes.
      hparams: numbers of the optimizer and the losses, without those that differ from step to step.
      groups: the group of every variable.
      trainable: paths of the trainable parameters, whole or sliced.
      batch_stats: paths of the BatchNorm statistics that training updates.
      frozen: all other paths, and those of sliced parameters.
      layers: layers of which single channels train, with the paths of their parameters.
      channel_counts: how many channels of each of these layers train; an even share, where the best of all are chosen.
      frozen_stages: the stages before the first that trains, updates statistics or has dropout.
      cache_plan: which outputs of frozen networks, these stages among them, are computed once.
      spec: of the compiled step.
      steps: length.
      steps_per_epoch: training images over batch size.
      evaluations: steps after which the model is validated, the last one among them.
      checkpoints: additional steps after which a checkpoint is made.
    """

    phase: Phase
    optim: OptimConfig
    hparams: dict[str, Any]
    groups: dict[str, ParamGroup]
    trainable: tuple[str, ...]
    batch_stats: tuple[str, ...]
    frozen: tuple[str, ...]
    layers: dict[str, tuple[str, ...]]
    channel_counts: dict[str, int]
    frozen_stages: tuple[str, ...]
    cache_plan: CachePlan
    spec: StepSpec
    steps: int
    steps_per_epoch: float
    evaluations: frozenset[int]
    checkpoints: frozenset[int]

    @property
    def changing(self) -> tuple[str, ...]:
        """Paths of all variables that the phase changes."""
        return self.trainable + self.batch_stats

    @property
    def events(self) -> frozenset[int]:
        """Steps after which the host evaluates or saves."""
        return self.evaluations | self.checkpoints

    def next_event(self, step: int) -> int:
        """Return the first event after a step."""
        return min(event for event in self.events if event > step)

    @property
    def needs_images(self) -> bool:
        """Whether a step reads the images themselves, and not only cached outputs of frozen networks."""
        cached = any(network.name == FROZEN_STAGES for network in self.cache_plan.cached)
        return not cached or bool(self.cache_plan.recomputed)

    def partition(
        self, variables: Variables, channel_index: Mapping[str, jax.Array]
    ) -> tuple[Variables, Variables, Variables]:
        """Divide a model's variables into trainable parameters, updated statistics and frozen ones.

        Args:
          variables: of the whole model, by path.
          channel_index: which channels of the sliced parameters train.
        """
        params = {path: variables[path] for path in self.trainable if not self.groups[path].partial}
        params |= neurons.gather({path: variables[path] for path in channel_index}, channel_index)
        batch_stats = {path: variables[path] for path in self.batch_stats}
        return params, batch_stats, {path: variables[path] for path in self.frozen}

    def combine(self, changing: Variables, frozen: Variables, channel_index: Mapping[str, jax.Array]) -> Variables:
        """Return the model's variables from those that change and the frozen ones: the reverse of `partition`."""
        slices = {path: changing[path] for path in channel_index}
        whole = neurons.scatter({path: frozen[path] for path in channel_index}, slices, channel_index)
        return frozen | changing | whole


def plan_phase(
    phase: Phase,
    predictor: Predictor,
    sizes: SplitSizes,
    networks: Sequence[FrozenNetwork] = (),
    prior: np.ndarray | None = None,
) -> PhasePlan:
    """Plan a phase; the model may be abstract, only shapes are read.

    Args:
      phase: of the strategy.
      predictor: config and model, with all outputs that the losses ask for.
      sizes: of the splits.
      networks: teachers and source network that the losses ask for.
      prior: [classes], frequencies of the classes among the labelled images.

    Raises:
      UserError: rules that do not fit the model, an unknown loss, or fields that contradict each other.
    """
    config, model, flat = predictor.config, predictor.model, predictor.flat
    terms = losses_of(phase)
    requires = frozenset().union(*(loss.requires for loss in terms))
    _check_losses(phase, terms, predictor)
    optim = dataclasses.replace(config.optim, **phase.optim)
    patterns = phase.neurons.layers
    layers = neurons.find_layers(flat.params, patterns, model.norm_of_conv) if patterns else {}
    groups = assign_param_groups(flat.params, flat.batch_stats, phase, model.stages_with_params, layers)
    trainable = tuple(path for path in flat.params if groups[path].trainable)
    graphdef, random_stages = _with_frozen_modules(model, groups)
    frozen = tuple(frozen_stages(model.stage_names, groups, random_stages))
    views = tuple(view for view in ("weak", "strong") if view in requires)
    backbone = None
    if frozen:
        matched = [student for network in networks for student, _ in network.maps]
        dtype = config.train.compute_dtype
        backbone = frozen_backbone(model, frozen, matched, "maps" in requires, predictor.preprocess, dtype)
        backbone = backbone.with_output_bytes(backbone.variables({}, flat.variables), sizes.image_shape)
    cache_plan = plan_cache(config, phase.name, backbone, networks, sizes, unlabelled=bool(views))
    spec = StepSpec(
        task=predictor.task,
        graphdef=graphdef,
        param_groups=tuple((path, groups[path]) for path in trainable),
        optimizer=optimizer.optimizer_spec(optim),
        losses=terms,
        preprocess=predictor.preprocess,
        dtype=config.train.compute_dtype,
        augment=config.augment,
        views=views,
        ema=phase.ema_decay is not None,
        networks=cache_plan.recomputed,
        grad_accum_steps=config.train.grad_accum_steps,
        dense=all(path.startswith("head/") and flat.params[path].ndim <= 2 for path in trainable),
    )
    per_epoch = sizes.train / config.train.batch_size
    steps = max(1, round(phase.epochs * per_epoch))
    extra = config.train.checkpoint_epochs
    return PhasePlan(
        phase=phase,
        optim=optim,
        hparams=optimizer.optimizer_hparams(optim) | _loss_hparams(config, phase, model, prior),
        groups=groups,
        trainable=trainable,
        batch_stats=tuple(path for path in flat.batch_stats if groups[path].trainable),
        frozen=tuple(path for path in groups if not groups[path].trainable or groups[path].partial),
        layers=layers,
        channel_counts=neurons.channel_counts(layers, flat.params, phase.neurons) if layers else {},
        frozen_stages=frozen,
        cache_plan=cache_plan,
        spec=spec,
        steps=steps,
        steps_per_epoch=per_epoch,
        evaluations=_multiples(config.train.eval_epochs, per_epoch, steps) | {steps},
        checkpoints=_multiples(extra, per_epoch, steps) if extra else frozenset(),
    )


def _check_losses(phase: Phase, terms: Sequence[Loss], predictor: Predictor) -> None:
    requires = frozenset().union(*(loss.requires for loss in terms))
    if "ema" in requires and phase.ema_decay is None:
        raise UserError(f'Phase "{phase.name}": a loss needs the average of the weights, but ema_decay is not set.')
    for target, task in (("masks", "segmentation"), ("boxes", "detection")):
        if target in requires and predictor.task.name != task:
            name = next(loss.name for loss in terms if target in loss.requires)
            raise UserError(
                f'Phase "{phase.name}": {name} needs {target}, but model.head={predictor.config.model.head!r} is for '
                f"{predictor.task.name}."
            )


def losses_of(phase: Phase) -> tuple[Loss, ...]:
    """Return the losses of a phase; raises UserError, with the phase's name, for an unknown one."""
    try:
        return tuple(losses.get_loss(name) for name, _ in phase.losses)
    except UserError as error:
        raise UserError(f'Phase "{phase.name}": {error}') from error


def _loss_hparams(config: Config, phase: Phase, model: Model, prior: np.ndarray | None) -> dict[str, Any]:
    """Return what losses find in `hparams`, besides the numbers of the optimizer and of a step."""
    strategy = config.strategy
    hparams = {
        "loss_weights": tuple(weight for _, weight in phase.losses),
        "temperature": strategy.temperature,
        "threshold": strategy.threshold,
        "distribution_alignment": float(strategy.distribution_alignment),
        "unlabelled_warmup": strategy.unlabelled_warmup,
        "prior": np.ones(1, np.float32) if prior is None else prior.astype(np.float32),
        "class_weights": _class_weights(config.optim.class_weights, prior),
        "ema_decay": phase.ema_decay or 0.0,
        # The head's default where the config asks for nothing.
        "dropout": config.model.dropout or getattr(getattr(model.head, "drop", None), "rate", 0.0),
    }
    reserved = {*hparams, *optimizer.optimizer_hparams(config.optim), "lr", "progress"}
    for name, number in strategy.hparams.items():
        if name in reserved:
            raise UserError(f'strategy.hparams: "{name}" is reserved; choose another name.')
        if not isinstance(number, (int, float)):
            raise UserError(f"strategy.hparams.{name} must be a number, got {number!r}.")
    return hparams | dict(strategy.hparams)


def _class_weights(weights: Sequence[float], prior: np.ndarray | None) -> np.ndarray:
    classes = 1 if prior is None else len(prior)
    if weights and len(weights) != classes:
        raise UserError(f"optim.class_weights has {len(weights)} numbers, but there are {classes} classes.")
    return np.array(weights or (1.0,) * classes, np.float32)


def _multiples(every_epochs: float, steps_per_epoch: float, steps: int) -> frozenset[int]:
    count = int(steps / (every_epochs * steps_per_epoch)) + 1
    marks = (max(1, round(k * every_epochs * steps_per_epoch)) for k in range(1, count + 1))
    return frozenset(mark for mark in marks if mark <= steps)


def _with_frozen_modules(model: Model, groups: Mapping[str, ParamGroup]) -> tuple[nnx.GraphDef, list[str]]:
    """Return the graph definition with frozen modules marked, and the stages in which dropout stays on.

    The dropout rate of the head is a hyperparameter of the step, so that runs of several rates share one program.
    """
    modules = {
        "/".join(map(str, path)): m for path, m in nnx.iter_modules(model) if isinstance(m, (BatchNorm, Dropout))
    }
    frozen = frozen_modules(list(modules), groups)
    drop = getattr(model.head, "drop", None)
    rate = drop.rate if drop is not None else 0.0
    for path, module in modules.items():
        module.frozen = path in frozen
    if rate:
        drop.rate = 0.5  # any: the step replaces it
    graphdef = params_lib.flatten_model(model).graphdef
    for module in modules.values():
        module.frozen = False
    if rate:
        drop.rate = rate
    random = {p.split("/")[0] for p, m in modules.items() if isinstance(m, Dropout) and m.rate > 0 and p not in frozen}
    return graphdef, sorted(random)
