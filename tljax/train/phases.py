"""A phase made concrete for a model and a data set: who learns, the step's spec, and when things happen."""

from __future__ import annotations

import dataclasses

from flax import nnx

from tljax.config import Config, OptimConfig, Phase
from tljax.errors import UserError, nearest
from tljax.models import Model
from tljax.models import state as leaves_of
from tljax.models.layers import BatchNorm, Dropout
from tljax.models.state import Leaves
from tljax.objectives import OBJECTIVES
from tljax.strategies import Group, assign, frozen_modules, frozen_prefix
from tljax.train import optimizer
from tljax.train.step import Spec
from tljax.weights import Preprocess


@dataclasses.dataclass(frozen=True)
class PhasePlan:
    """All that is known of a phase before it starts.

    Attributes:
      phase: as the strategy gave it.
      optim: with the phase's own changes.
      groups: of every leaf.
      learned: paths of the parameters that learn.
      moving: paths of the BatchNorm statistics that follow the batches.
      frozen: all other paths.
      prefix: the stages before the first that learns, moves or draws at random.
      spec: of the compiled step.
      steps: length.
      steps_per_epoch: training pictures over batch size.
      evaluations: steps after which the model is validated, the last one among them.
      checkpoints: further steps after which the state is saved.
    """

    phase: Phase
    optim: OptimConfig
    groups: dict[str, Group]
    learned: tuple[str, ...]
    moving: tuple[str, ...]
    frozen: tuple[str, ...]
    prefix: tuple[str, ...]
    spec: Spec
    steps: int
    steps_per_epoch: float
    evaluations: frozenset[int]
    checkpoints: frozenset[int]

    def take(self, leaves: Leaves) -> tuple[Leaves, Leaves, Leaves]:
        """Divides a model's leaves into learned, moving and frozen ones."""
        return tuple({p: leaves[p] for p in paths} for paths in (self.learned, self.moving, self.frozen))


def plan_phase(config: Config, phase: Phase, model: Model, train_size: int, preprocess: Preprocess) -> PhasePlan:
    """Makes a phase concrete; `model` may be abstract, only shapes are read.

    Raises:
      UserError: rules that do not fit the model, an unknown objective, or fields of optim that do not go together.
    """
    for name, _ in phase.objectives:
        if name not in OBJECTIVES:
            raise UserError(f'Phase "{phase.name}": there is no objective "{name}"{nearest(name, OBJECTIVES)}')
    optim = dataclasses.replace(config.optim, **phase.optim)
    _, params, stats = leaves_of.split(model)
    stages = [s for s in model.stage_names if any(p.startswith(f"{s}/") for p in params)]
    groups = assign(params, stats, phase, stages)
    learned = tuple(p for p in params if groups[p].learns)
    moving = tuple(p for p in stats if groups[p].learns)
    graphdef, drawing = _with_frozen_modules(model, groups)
    spec = Spec(
        graphdef=graphdef,
        groups=tuple((p, groups[p]) for p in learned),
        optimizer=optimizer.static_of(optim),
        objectives=phase.objectives,
        preprocess=preprocess,
        dtype=config.train.precision,
        augment=config.augment,
    )
    per_epoch = train_size / config.train.batch_size
    steps = max(1, round(phase.epochs * per_epoch))
    every = config.train.checkpoint_epochs
    return PhasePlan(
        phase=phase,
        optim=optim,
        groups=groups,
        learned=learned,
        moving=moving,
        frozen=tuple(p for p in groups if not groups[p].learns),
        prefix=tuple(frozen_prefix(model.stage_names, groups, drawing)),
        spec=spec,
        steps=steps,
        steps_per_epoch=per_epoch,
        evaluations=_marks(config.train.eval_epochs, per_epoch, steps) | {steps},
        checkpoints=_marks(every, per_epoch, steps) if every else frozenset(),
    )


def _marks(every_epochs: float, steps_per_epoch: float, steps: int) -> frozenset[int]:
    count = int(steps / (every_epochs * steps_per_epoch)) + 1
    marks = (max(1, round(k * every_epochs * steps_per_epoch)) for k in range(1, count + 1))
    return frozenset(m for m in marks if m <= steps)


def _with_frozen_modules(model: Model, groups: dict[str, Group]) -> tuple[nnx.GraphDef, list[str]]:
    """The graph definition with the frozen modules marked, and the stages in which dropout stays on."""
    modules = {
        "/".join(map(str, path)): m for path, m in nnx.iter_modules(model) if isinstance(m, (BatchNorm, Dropout))
    }
    frozen = frozen_modules(list(modules), groups)
    for path, module in modules.items():
        module.frozen = path in frozen
    graphdef = leaves_of.split(model).graphdef
    for module in modules.values():
        module.frozen = False
    drawing = {p.split("/")[0] for p, m in modules.items() if isinstance(m, Dropout) and m.rate > 0 and p not in frozen}
    return graphdef, sorted(drawing)
