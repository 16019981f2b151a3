"""A phase made concrete for a model and a data set: who learns, the step's spec, and when things happen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from tljax import losses
from tljax.config import Config, OptimConfig, Phase
from tljax.errors import UserError
from tljax.features.feature_cache import CachePlan, plan_cache
from tljax.features.frozen_network import FROZEN_STAGES, FrozenNetwork, frozen_backbone, output_bytes
from tljax.losses import Loss
from tljax.models import Model
from tljax.models import params as params_lib
from tljax.models.layers import BatchNorm, Dropout
from tljax.models.params import Variables
from tljax.strategies import ParamGroup, assign_param_groups, frozen_modules, frozen_stages, neurons
from tljax.tasks import task_of
from tljax.train import optimizer
from tljax.train.step import StepSpec
from tljax.weights import Preprocess


class SplitSizes(NamedTuple):
    """What a phase sees: how many labelled pictures to train on, how many for validation, and [H, W, C] of one."""

    train: int
    valid: int
    image_shape: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class PhasePlan:
    """All that is known of a phase before it starts.

    Attributes:
      phase: as the strategy gave it.
      optim: with the phase's own changes.
      hyper: the numbers of the optimizer and the objectives, without those of a step.
      groups: of every leaf.
      learned: paths of the parameters that learn, wholly or by single neurons.
      moving: paths of the BatchNorm statistics that follow the batches.
      frozen: all other paths, and those of which single neurons learn.
      layers: the leaves of each layer of which single neurons learn, by its path.
      neurons: how many of each layer learn; an even share, where the best of all layers are chosen.
      prefix: the stages before the first that learns, moves or draws at random.
      keeping: what frozen networks, these stages among them, say of the pictures, and whether it is computed once.
      spec: of the compiled step.
      steps: length.
      steps_per_epoch: training pictures over batch size.
      evaluations: steps after which the model is validated, the last one among them.
      checkpoints: further steps after which the state is saved.
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
    def cached(self) -> tuple[FrozenNetwork, ...]:
        """Networks whose outputs for the training pictures are computed once."""
        return self.cache_plan.cached

    @property
    def changing(self) -> tuple[str, ...]:
        """Paths of all leaves that the phase changes."""
        return self.trainable + self.batch_stats

    def next_event(self, step: int) -> int:
        """The next step after which the host has something to do."""
        return min(mark for mark in self.evaluations | self.checkpoints if mark > step)

    @property
    def needs_images(self) -> bool:
        """Whether a step looks at the pictures themselves, or only at what is known of them."""
        return not any(network.name == FROZEN_STAGES for network in self.cache_plan.cached) or bool(
            self.cache_plan.recomputed
        )

    def partition(self, leaves: Variables, index: Mapping[str, jax.Array]) -> tuple[Variables, Variables, Variables]:
        """Divides a model's leaves into learned, moving and frozen ones; `index` says which channels are learned."""
        whole = [p for p in self.trainable if not self.groups[p].partial]
        learned, moving, frozen = ({p: leaves[p] for p in paths} for paths in (whole, self.batch_stats, self.frozen))
        return learned | neurons.gather({p: leaves[p] for p in index}, index), moving, frozen

    def combine(self, changing: Variables, frozen: Variables, index: Mapping[str, jax.Array]) -> Variables:
        """The model's leaves from learned and moving ones and the frozen ones: the reverse of `take`."""
        slices = {p: changing[p] for p in index}
        return frozen | changing | neurons.scatter({p: frozen[p] for p in index}, slices, index)


def plan_phase(
    config: Config,
    phase: Phase,
    model: Model,
    pictures: SplitSizes,
    preprocess: Preprocess,
    observed: Sequence[FrozenNetwork] = (),
    theirs: Mapping[str, Variables] = MappingProxyType({}),
    prior: np.ndarray | None = None,
) -> PhasePlan:
    """Makes a phase concrete; `model` may be abstract, only shapes are read.

    Args:
      config: of the run.
      phase: of its strategy.
      model: with all outputs that the objectives ask for.
      pictures: that it sees.
      preprocess: of the weights, at the run's own input size.
      observed: networks that the objectives look at.
      theirs: their leaves, or shapes of them, by name.
      prior: frequencies of the classes among the labelled pictures.

    Raises:
      UserError: rules that do not fit the model, an unknown objective, or fields that do not go together.
    """
    terms = losses_of(phase)
    needs = frozenset().union(*(term.requires for term in terms))
    if "average" in needs and phase.ema_decay is None:
        raise UserError(f'Phase "{phase.name}": an objective looks at the averaged weights, but average is not set.')
    task = task_of(config)
    for need, wanted in (("masks", "segmentation"), ("boxes", "detection")):
        if need in needs and task.name != wanted:
            term = next(term.name for term in terms if need in term.requires)
            raise UserError(
                f'Phase "{phase.name}": {term} learns from {need}, but model.head={config.model.head!r} is for '
                f"{task.name}."
            )
    optim = dataclasses.replace(config.optim, **phase.optim)
    _, params, stats = params_lib.flatten_model(model)
    stages = [s for s in model.stage_names if any(p.startswith(f"{s}/") for p in params)]
    layers = neurons.find_layers(params, phase.neurons.layers, model.norm_of_conv) if phase.neurons.layers else {}
    groups = assign_param_groups(params, stats, phase, stages, layers)
    graphdef, drawing = _with_frozen_modules(model, groups)
    views = tuple(view for view in ("weak", "strong") if view in needs)
    first, prefix = tuple(frozen_stages(model.stage_names, groups, drawing)), None
    if first:
        paired = [ours for network in observed for ours, _ in network.maps]
        prefix = frozen_backbone(model, first, paired, "maps" in needs, preprocess, config.train.compute_dtype)
    networks = [*([prefix] if prefix else []), *observed]
    sizes = {
        n.name: output_bytes(n, n.variables(theirs, params_lib.variables(model)), pictures.image_shape)
        for n in networks
    }
    counts = pictures.train, pictures.valid
    keeping = plan_cache(config, phase.name, prefix, observed, sizes, counts, unlabelled=bool(views))
    spec = StepSpec(
        task=task,
        graphdef=graphdef,
        param_groups=tuple((p, groups[p]) for p in params if groups[p].trainable),
        optimizer=optimizer.optimizer_spec(optim),
        losses=terms,
        preprocess=preprocess,
        dtype=config.train.compute_dtype,
        augment=config.augment,
        views=views,
        ema=phase.ema_decay is not None,
        networks=keeping.recomputed,
        grad_accum_steps=config.train.grad_accum_steps,
        dense=all(p.startswith("head/") and len(params[p].shape) <= 2 for p in params if groups[p].trainable),
    )
    per_epoch = pictures.train / config.train.batch_size
    steps = max(1, round(phase.epochs * per_epoch))
    every = config.train.checkpoint_epochs
    return PhasePlan(
        phase=phase,
        optim=optim,
        hparams=optimizer.optimizer_hparams(optim) | _numbers(config, phase, model, prior),
        groups=groups,
        trainable=tuple(p for p in params if groups[p].trainable),
        batch_stats=tuple(p for p in stats if groups[p].trainable),
        frozen=tuple(p for p in groups if not groups[p].trainable or groups[p].partial),
        layers=layers,
        channel_counts=neurons.channel_counts(layers, params, phase.neurons) if layers else {},
        frozen_stages=first,
        cache_plan=keeping,
        spec=spec,
        steps=steps,
        steps_per_epoch=per_epoch,
        evaluations=_marks(config.train.eval_epochs, per_epoch, steps) | {steps},
        checkpoints=_marks(every, per_epoch, steps) if every else frozenset(),
    )


def losses_of(phase: Phase) -> tuple[Loss, ...]:
    """The objectives of a phase; raises UserError, with the phase's name, where there is no such objective."""
    try:
        return tuple(losses.get_loss(name) for name, _ in phase.losses)
    except UserError as error:
        raise UserError(f'Phase "{phase.name}": {error}') from error


def _numbers(config: Config, phase: Phase, model: Model, prior: np.ndarray | None) -> dict[str, Any]:
    """What objectives find in `hyper`, besides the optimizer's numbers and those of a step."""
    strategy = config.strategy
    own = {
        "weights": tuple(weight for _, weight in phase.losses),
        "temperature": strategy.temperature,
        "threshold": strategy.threshold,
        "balance": float(strategy.distribution_alignment),
        "ramp": strategy.unlabelled_warmup,
        "prior": np.ones(1, np.float32) if prior is None else prior.astype(np.float32),
        "class_weights": _class_weights(config.optim.class_weights, prior),
        "average": phase.ema_decay or 0.0,
        # As the head has it where the config asks for nothing.
        "dropout": config.model.dropout or getattr(getattr(model.head, "drop", None), "rate", 0.0),
    }
    taken = {*own, *optimizer.optimizer_hparams(config.optim), "lr", "progress"}
    for name, number in strategy.hparams.items():
        if name in taken:
            raise UserError(f'strategy.hparams: "{name}" means something else already; take another name.')
        if not isinstance(number, (int, float)):
            raise UserError(f"strategy.hparams.{name} must be a number, got {number!r}.")
    return own | dict(strategy.hparams)


def _class_weights(given: Sequence[float], prior: np.ndarray | None) -> np.ndarray:
    classes = 1 if prior is None else len(prior)
    if given and len(given) != classes:
        raise UserError(f"optim.class_weights has {len(given)} numbers, but there are {classes} classes.")
    return np.array(given or (1.0,) * classes, np.float32)


def _marks(every_epochs: float, steps_per_epoch: float, steps: int) -> frozenset[int]:
    count = int(steps / (every_epochs * steps_per_epoch)) + 1
    marks = (max(1, round(k * every_epochs * steps_per_epoch)) for k in range(1, count + 1))
    return frozenset(m for m in marks if m <= steps)


def _with_frozen_modules(model: Model, groups: dict[str, ParamGroup]) -> tuple[nnx.GraphDef, list[str]]:
    """The graph definition with frozen modules marked and no number in it, and the stages in which dropout stays on."""
    modules = {
        "/".join(map(str, path)): m for path, m in nnx.iter_modules(model) if isinstance(m, (BatchNorm, Dropout))
    }
    frozen, drop = frozen_modules(list(modules), groups), getattr(model.head, "drop", None)
    rate = drop.rate if drop is not None else 0.0
    for path, module in modules.items():
        module.frozen = path in frozen
    if rate:
        drop.rate = 0.5  # any: the step has the run's own among its numbers
    graphdef = params_lib.flatten_model(model).graphdef
    for module in modules.values():
        module.frozen = False
    if rate:
        drop.rate = rate
    drawing = {p.split("/")[0] for p, m in modules.items() if isinstance(m, Dropout) and m.rate > 0 and p not in frozen}
    return graphdef, sorted(drawing)
