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
from tljax.features.feature_cache import CachePlan, choose
from tljax.features.frozen_network import PREFIX, FrozenNetwork, bytes_of, frozen_stages
from tljax.losses import Loss
from tljax.models import Model
from tljax.models import params as params_lib
from tljax.models.layers import BatchNorm, Dropout
from tljax.models.params import Variables
from tljax.strategies import ParamGroup, assign, frozen_modules, leading_frozen_stages, neurons
from tljax.tasks import task_of
from tljax.train import optimizer
from tljax.train.step import StepSpec
from tljax.weights import Preprocess


class Pictures(NamedTuple):
    """What a phase sees: how many labelled pictures to train on, how many for validation, and [H, W, C] of one."""

    train: int
    valid: int
    shape: tuple[int, int, int]


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
    hyper: dict[str, Any]
    groups: dict[str, ParamGroup]
    learned: tuple[str, ...]
    moving: tuple[str, ...]
    frozen: tuple[str, ...]
    layers: dict[str, tuple[str, ...]]
    neurons: dict[str, int]
    prefix: tuple[str, ...]
    keeping: CachePlan
    spec: StepSpec
    steps: int
    steps_per_epoch: float
    evaluations: frozenset[int]
    checkpoints: frozenset[int]

    @property
    def once(self) -> tuple[FrozenNetwork, ...]:
        """Networks whose outputs for the training pictures are computed once."""
        return self.keeping.train

    @property
    def changing(self) -> tuple[str, ...]:
        """Paths of all leaves that the phase changes."""
        return self.learned + self.moving

    def next_mark(self, step: int) -> int:
        """The next step after which the host has something to do."""
        return min(mark for mark in self.evaluations | self.checkpoints if mark > step)

    @property
    def reads_pictures(self) -> bool:
        """Whether a step looks at the pictures themselves, or only at what is known of them."""
        return not any(network.name == PREFIX for network in self.keeping.train) or bool(self.keeping.in_step)

    def take(self, leaves: Variables, index: Mapping[str, jax.Array]) -> tuple[Variables, Variables, Variables]:
        """Divides a model's leaves into learned, moving and frozen ones; `index` says which channels are learned."""
        whole = [p for p in self.learned if not self.groups[p].single]
        learned, moving, frozen = ({p: leaves[p] for p in paths} for paths in (whole, self.moving, self.frozen))
        return learned | neurons.gather({p: leaves[p] for p in index}, index), moving, frozen

    def give(self, changing: Variables, frozen: Variables, index: Mapping[str, jax.Array]) -> Variables:
        """The model's leaves from learned and moving ones and the frozen ones: the reverse of `take`."""
        slices = {p: changing[p] for p in index}
        return frozen | changing | neurons.scatter({p: frozen[p] for p in index}, slices, index)


def plan_phase(
    config: Config,
    phase: Phase,
    model: Model,
    pictures: Pictures,
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
    terms = terms_of(phase)
    needs = frozenset().union(*(term.needs for term in terms))
    if "average" in needs and phase.average is None:
        raise UserError(f'Phase "{phase.name}": an objective looks at the averaged weights, but average is not set.')
    task = task_of(config)
    for need, wanted in (("masks", "segmentation"), ("boxes", "detection")):
        if need in needs and task.name != wanted:
            term = next(term.name for term in terms if need in term.needs)
            raise UserError(
                f'Phase "{phase.name}": {term} learns from {need}, but model.head={config.model.head!r} is for '
                f"{task.name}."
            )
    optim = dataclasses.replace(config.optim, **phase.optim)
    _, params, stats = params_lib.split(model)
    stages = [s for s in model.stage_names if any(p.startswith(f"{s}/") for p in params)]
    layers = neurons.layers_of(params, phase.neurons.layers, model.norm_after) if phase.neurons.layers else {}
    groups = assign(params, stats, phase, stages, layers)
    graphdef, drawing = _with_frozen_modules(model, groups)
    views = tuple(view for view in ("weak", "strong") if view in needs)
    first, prefix = tuple(leading_frozen_stages(model.stage_names, groups, drawing)), None
    if first:
        paired = [ours for network in observed for ours, _ in network.maps]
        prefix = frozen_stages(model, first, paired, "maps" in needs, preprocess, config.train.precision)
    networks = [*([prefix] if prefix else []), *observed]
    sizes = {n.name: bytes_of(n, n.leaves(theirs, params_lib.values(model)), pictures.shape) for n in networks}
    counts = pictures.train, pictures.valid
    keeping = choose(config, phase.name, prefix, observed, sizes, counts, unlabelled=bool(views))
    spec = StepSpec(
        task=task,
        graphdef=graphdef,
        groups=tuple((p, groups[p]) for p in params if groups[p].learns),
        optimizer=optimizer.static_of(optim),
        objectives=terms,
        preprocess=preprocess,
        dtype=config.train.precision,
        augment=config.augment,
        views=views,
        averaged=phase.average is not None,
        observed=keeping.in_step,
        accumulate=config.train.accumulate,
        dense=all(p.startswith("head/") and len(params[p].shape) <= 2 for p in params if groups[p].learns),
    )
    per_epoch = pictures.train / config.train.batch_size
    steps = max(1, round(phase.epochs * per_epoch))
    every = config.train.checkpoint_epochs
    return PhasePlan(
        phase=phase,
        optim=optim,
        hyper=optimizer.hyper_of(optim) | _numbers(config, phase, model, prior),
        groups=groups,
        learned=tuple(p for p in params if groups[p].learns),
        moving=tuple(p for p in stats if groups[p].learns),
        frozen=tuple(p for p in groups if not groups[p].learns or groups[p].single),
        layers=layers,
        neurons=neurons.counts(layers, params, phase.neurons) if layers else {},
        prefix=first,
        keeping=keeping,
        spec=spec,
        steps=steps,
        steps_per_epoch=per_epoch,
        evaluations=_marks(config.train.eval_epochs, per_epoch, steps) | {steps},
        checkpoints=_marks(every, per_epoch, steps) if every else frozenset(),
    )


def terms_of(phase: Phase) -> tuple[Loss, ...]:
    """The objectives of a phase; raises UserError, with the phase's name, where there is no such objective."""
    try:
        return tuple(losses.find(name) for name, _ in phase.objectives)
    except UserError as error:
        raise UserError(f'Phase "{phase.name}": {error}') from error


def _numbers(config: Config, phase: Phase, model: Model, prior: np.ndarray | None) -> dict[str, Any]:
    """What objectives find in `hyper`, besides the optimizer's numbers and those of a step."""
    strategy = config.strategy
    own = {
        "weights": tuple(weight for _, weight in phase.objectives),
        "temperature": strategy.temperature,
        "threshold": strategy.threshold,
        "balance": float(strategy.balance),
        "ramp": strategy.ramp,
        "prior": np.ones(1, np.float32) if prior is None else prior.astype(np.float32),
        "class_weights": _class_weights(config.optim.class_weights, prior),
        "average": phase.average or 0.0,
        # As the head has it where the config asks for nothing.
        "dropout": config.model.dropout or getattr(getattr(model.head, "drop", None), "rate", 0.0),
    }
    taken = {*own, *optimizer.hyper_of(config.optim), "lr", "progress"}
    for name, number in strategy.numbers.items():
        if name in taken:
            raise UserError(f'strategy.numbers: "{name}" means something else already; take another name.')
        if not isinstance(number, (int, float)):
            raise UserError(f"strategy.numbers.{name} must be a number, got {number!r}.")
    return own | dict(strategy.numbers)


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
    graphdef = params_lib.split(model).graphdef
    for module in modules.values():
        module.frozen = False
    if rate:
        drop.rate = rate
    drawing = {p.split("/")[0] for p, m in modules.items() if isinstance(m, Dropout) and m.rate > 0 and p not in frozen}
    return graphdef, sorted(drawing)
