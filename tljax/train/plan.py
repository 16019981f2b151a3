"""The plan of a phase for one model and data set: trainable parameters, step configuration, and event steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from tljax import plugins
from tljax.config import Config, OptimConfig, Phase
from tljax.errors import UserError
from tljax.features.cache_plan import CachePlan, plan_cache
from tljax.features.frozen_network import FROZEN_STAGES, FrozenNetwork, frozen_backbone
from tljax.inference.predictor import Predictor
from tljax.losses import losses_of, requirements_of
from tljax.models import Model
from tljax.models import params as params_lib
from tljax.models.layers import BatchNorm, Dropout
from tljax.models.params import Variables
from tljax.strategies import ParamGroup, assign_param_groups, frozen_modules, frozen_stages, neurons
from tljax.train import optimizer
from tljax.train.state import StepSpec


class SplitSizes(NamedTuple):
    """Numbers of labelled training images and validation images, and the shape [H, W, C] of an image."""

    train: int
    valid: int
    image_shape: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class PhasePlan:
    """Everything that is determined before a phase starts.

    Attributes:
      phase: the phase of the strategy.
      optim: optimizer config of the run, with the changes of the phase.
      hparams: numbers of the optimizer and the losses, except those that differ between steps.
      groups: parameter group of every variable.
      trainable: paths of the trainable parameters, whole or sliced.
      batch_stats: paths of the BatchNorm statistics that training updates.
      frozen: all other paths, and the paths of sliced parameters.
      layers: layers in which single channels train, with the paths of their parameters.
      channel_counts: number of trainable channels of each of these layers; estimated if selected over all layers.
      frozen_stages: the stages before the first that trains, updates statistics or has dropout.
      cache_plan: which outputs of frozen networks, including these stages, are cached.
      spec: static configuration of the step.
      steps: length of the phase in steps.
      steps_per_epoch: number of training images divided by the batch size.
      evaluations: steps after which the model is validated, including the last one.
      checkpoints: additional steps after which a checkpoint is saved.
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
        """Steps after which the host evaluates or saves a checkpoint."""
        return self.evaluations | self.checkpoints

    def next_event(self, step: int) -> int:
        """Return the step of the first event after a step."""
        return min(event for event in self.events if event > step)

    @property
    def needs_images(self) -> bool:
        """Whether a step reads images, not only cached outputs of frozen networks."""
        cached = any(network.name == FROZEN_STAGES for network in self.cache_plan.cached)
        return not cached or bool(self.cache_plan.recomputed)

    def partition(
        self, variables: Variables, channel_index: Mapping[str, jax.Array]
    ) -> tuple[Variables, Variables, Variables]:
        """Split the variables of a model into trainable parameters, updated statistics and frozen variables.

        Args:
          variables: all variables of the model, by path.
          channel_index: trainable channels of the sliced parameters, by path.
        """
        params = {path: variables[path] for path in self.trainable if not self.groups[path].partial}
        params |= neurons.gather_channels({path: variables[path] for path in channel_index}, channel_index)
        batch_stats = {path: variables[path] for path in self.batch_stats}
        return params, batch_stats, {path: variables[path] for path in self.frozen}

    def combine(self, changing: Variables, frozen: Variables, channel_index: Mapping[str, jax.Array]) -> Variables:
        """Return all variables of the model from those that change and the frozen ones: the inverse of `partition`."""
        slices = {path: changing[path] for path in channel_index}
        whole = neurons.scatter_channels({path: frozen[path] for path in channel_index}, slices, channel_index)
        return frozen | changing | whole


def plan_phase(
    phase: Phase,
    predictor: Predictor,
    sizes: SplitSizes,
    networks: Sequence[FrozenNetwork] = (),
    prior: np.ndarray | None = None,
) -> PhasePlan:
    """Return the plan of a phase; the model may be abstract, because only shapes are used.

    Args:
      phase: the phase of the strategy.
      predictor: config and model, with all outputs that the losses need.
      sizes: sizes of the splits.
      networks: teachers and source network that the losses need.
      prior: [classes], frequencies of the classes among the labelled images.

    Raises:
      UserError: rules do not match the model, a loss is unknown, or fields contradict each other.
    """
    config, model, flat = predictor.config, predictor.model, predictor.flat
    optim = dataclasses.replace(config.optim, **phase.optim)
    hparams = optimizer.optimizer_hparams(optim) | _loss_hparams(config, phase, model, prior)
    layers = neurons.find_layers(flat.params, phase.neurons.layers, model.norm_of_conv)
    channel_counts = neurons.channel_counts(layers, flat.params, phase.neurons) if layers else {}
    groups = assign_param_groups(flat.params, flat.batch_stats, phase, model.stages_with_params, layers)
    graphdef, random_stages = _with_frozen_modules(model, groups)
    frozen = tuple(frozen_stages(model.stage_names, groups, random_stages))
    cache_plan = _plan_cache(phase, predictor, frozen, networks, sizes)
    spec = _step_spec(phase, predictor, graphdef, optim, groups, cache_plan.recomputed)
    per_epoch = sizes.train / config.train.batch_size
    steps = max(1, round(phase.length * per_epoch))
    return PhasePlan(
        phase=phase,
        optim=optim,
        hparams=hparams,
        groups=groups,
        trainable=tuple(path for path in flat.params if groups[path].trainable),
        batch_stats=tuple(path for path in flat.batch_stats if groups[path].trainable),
        frozen=tuple(path for path in groups if not groups[path].trainable or groups[path].partial),
        layers=layers,
        channel_counts=channel_counts,
        frozen_stages=frozen,
        cache_plan=cache_plan,
        spec=spec,
        steps=steps,
        steps_per_epoch=per_epoch,
        evaluations=_multiples(config.train.eval_epochs, per_epoch, steps) | {steps},
        checkpoints=_multiples(config.train.checkpoint_epochs, per_epoch, steps),
    )


def _plan_cache(
    phase: Phase,
    predictor: Predictor,
    frozen: Sequence[str],
    networks: Sequence[FrozenNetwork],
    sizes: SplitSizes,
) -> CachePlan:
    config, requires = predictor.config, requirements_of(phase)
    backbone = None
    if frozen:
        matched = [student for network in networks for student, _ in network.maps]
        dtype, all_maps = config.train.compute_dtype, "maps" in requires
        backbone = frozen_backbone(predictor.model, frozen, matched, all_maps, predictor.preprocess, dtype)
        backbone = backbone.with_output_bytes(backbone.variables({}, predictor.flat.variables), sizes.image_shape)
    return plan_cache(config, phase.name, backbone, networks, sizes, unlabelled=bool(_views(phase)))


def _step_spec(
    phase: Phase,
    predictor: Predictor,
    graphdef: nnx.GraphDef,
    optim: OptimConfig,
    groups: Mapping[str, ParamGroup],
    recomputed: tuple[FrozenNetwork, ...],
) -> StepSpec:
    _check_losses(phase, predictor)
    config, params = predictor.config, predictor.flat.params
    trainable = [path for path in params if groups[path].trainable]
    return StepSpec(
        task=predictor.task,
        graphdef=graphdef,
        param_groups=tuple((path, groups[path]) for path in trainable),
        optimizer=optimizer.optimizer_spec(optim),
        losses=losses_of(phase),
        preprocess=predictor.preprocess,
        dtype=config.train.compute_dtype,
        augment=config.augment,
        views=_views(phase),
        ema=phase.ema_decay is not None,
        networks=recomputed,
        grad_accum_steps=config.train.grad_accum_steps,
        dense=all(path.startswith("head/") and params[path].ndim <= 2 for path in trainable),
        files=tuple(plugins.plugin_hashes([optim.name, *(name for name, _ in config.augment.ops)]).values()),
    )


def _views(phase: Phase) -> tuple[str, ...]:
    """Return the views of unlabelled images that the losses of a phase read."""
    requires = requirements_of(phase)
    return tuple(view for view in ("weak", "strong") if view in requires)


def _check_losses(phase: Phase, predictor: Predictor) -> None:
    terms, requires = losses_of(phase), requirements_of(phase)
    if "ema" in requires and phase.ema_decay is None:
        raise UserError(f'Phase "{phase.name}": a loss needs the average of the weights, but ema_decay is not set.')
    for target, task in (("masks", "segmentation"), ("boxes", "detection")):
        if target in requires and predictor.task.labels != task:
            name = next(loss.name for loss in terms if target in loss.requires)
            raise UserError(
                f'Phase "{phase.name}": {name} needs {target}, but model.head={predictor.config.model.head!r} is for '
                f"{predictor.task.name}."
            )


def _loss_hparams(config: Config, phase: Phase, model: Model, prior: np.ndarray | None) -> dict[str, Any]:
    """Return the `hparams` of losses, without those of the optimizer and of single steps."""
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
        # 0 means the default of the head.
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


def _multiples(every_epochs: float | None, steps_per_epoch: float, steps: int) -> frozenset[int]:
    if every_epochs is None:
        return frozenset()
    count = int(steps / (every_epochs * steps_per_epoch)) + 1
    multiples = (max(1, round(k * every_epochs * steps_per_epoch)) for k in range(1, count + 1))
    return frozenset(step for step in multiples if step <= steps)


def _with_frozen_modules(model: Model, groups: Mapping[str, ParamGroup]) -> tuple[nnx.GraphDef, list[str]]:
    """Return the graph definition with frozen modules marked, and the stages with active dropout.

    The dropout rate of the head is a hyperparameter of the step, so that runs with different rates share one program.
    """
    modules = {
        "/".join(map(str, path)): m for path, m in nnx.iter_modules(model) if isinstance(m, (BatchNorm, Dropout))
    }
    frozen = frozen_modules(list(modules), groups)
    drop = getattr(model.head, "drop", None)
    rate = drop.rate if drop is not None else 0.0
    for path, module in modules.items():
        module.frozen = path in frozen
    if drop is not None and rate:
        drop.rate = 0.5  # an arbitrary value, which the step replaces
    graphdef = params_lib.flatten_model(model).graphdef
    for module in modules.values():
        module.frozen = False
    if drop is not None and rate:
        drop.rate = rate
    random = {p.split("/")[0] for p, m in modules.items() if isinstance(m, Dropout) and m.rate > 0 and p not in frozen}
    return graphdef, sorted(random)
