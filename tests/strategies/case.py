"""Every preset on small networks of three families, by a run's own preparation, ready for single steps.

`recipe:` networks stand in for the source and the teachers: all of them is known but the values, which are drawn here.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from flax import nnx
from jax.extend.core import jaxpr_as_fun

from tljax import config as schema
from tljax import models
from tljax.features.frozen_network import apply_frozen
from tljax.models import params as params_lib
from tljax.run.experiment import Experiment, prepare
from tljax.strategies import neurons
from tljax.train import neuron_scores
from tljax.train.plan import PhasePlan
from tljax.train.state import StepInputs, TrainState, init_state
from tljax.train.step import make_train_step

# As many shapes alike as can be: operations are compiled by shape.
NETS = {
    "vgg": ("vgg11", {"blocks": ((4, 4), (4,))}),
    "resnet": ("resnet8", {"depths": (1, 1), "widths": (4, 4)}),
    "densenet": ("densenet121", {"depths": (1, 1), "growth": 4, "initial": 4, "bottleneck": 1}),
}
TEACHER = ("resnet8", {"depths": (1, 1, 1, 1), "widths": (4, 4, 4, 4)})
# Every step sees so many pictures, views of unlabelled ones among them.
PICTURES = 12
CLASSES = (1, 2, 3)
RECIPE = """
from tljax import config

def get_config():
    c = config.default()
    c.data.classes = {classes}
    c.model.backbone, c.model.options, c.model.pool = "{backbone}", {options}, "{pool}"
    c.model.preprocess, c.strategy.name = "unit", "scratch"
    return c
"""
# Heads that tell where something is, on pictures of 16 pixels with one or two digits.
LOCATED = {
    "unet": {"channels": (4,)},
    "fcn": {"variant": "16s", "channels": 4},
    "detector": {"channels": 4, "neck": "deconv"},
}
SCENES = {"train": 24, "valid": 4, "test": 4, "side": 16, "objects": (1, 2)}
LOCATED_RECIPE = """
from tljax import config

def get_config():
    c = config.default()
    c.data.name, c.data.options = "scenes", {scenes}
    c.model.backbone, c.model.options = "{backbone}", {options}
    c.model.head, c.model.head_options = "{head}", {head_options}
    c.model.preprocess, c.strategy.name = "unit", "scratch"
    return c
"""


def recipe(folder, net, classes=CLASSES, pool="flatten") -> str:
    """Writes a config file of a network, given as (backbone, options), and returns it as `model.weights` takes it."""
    path = folder / f"{net[0]}-{len(list(folder.iterdir()))}.py"
    path.write_text(RECIPE.format(backbone=net[0], options=net[1], classes=classes, pool=pool))
    return f"recipe:{path}"


def config_of(folder, preset, net="vgg", **settings):
    """The config of a preset on a small network, with all that any preset asks for."""
    backbone, options = net if isinstance(net, tuple) else NETS[net]
    c = schema.default()
    c.data.classes, c.data.labels_per_class, c.data.unlabelled = CLASSES, 12, -1
    c.model.backbone, c.model.options, c.model.pool = backbone, options, "flatten"
    c.model.weights = recipe(folder, (backbone, options), (4, 5, 6, 7))
    c.strategy.unlabelled_ratio, c.strategy.threshold = 1, 0.34
    c.strategy.teachers = (recipe(folder, TEACHER),)
    c.strategy.neurons.criterion, c.strategy.neurons.fraction = "random", 0.4
    c.strategy.layers = ("stage2/.*",) if preset == "layers" else ()
    c.train.batch_size = 4
    c.augment.strong_magnitude = 0.0
    c.cache.storage = "none"
    return schema.override(schema.parse(c), {"strategy.name": preset} | settings)


def located_config_of(folder, preset, head, **settings):
    """The config of a preset for masks or boxes; the source is a classifier, teachers have the student's own task."""
    backbone, options = NETS["resnet"]
    teacher = folder / f"{head}.py"
    teacher.write_text(
        LOCATED_RECIPE.format(scenes=SCENES, backbone=backbone, options=options, head=head, head_options=LOCATED[head])
    )
    c = config_of(folder, preset, "resnet")
    located = {
        "data.name": "scenes",
        "data.options": SCENES,
        "data.classes": (),
        "data.labels_per_class": None,
        "data.num_train": 12,
        "data.image_size": 16,
        "model.weights": recipe(folder, NETS["resnet"], (4, 5, 6, 7), "avg"),
        "model.pool": "avg",
        "model.head": head,
        "model.head_options": LOCATED[head],
        "strategy.teachers": (f"recipe:{teacher}",),
    }
    return schema.override(c, located | settings)


@dataclasses.dataclass(eq=False)
class Case:
    """A prepared run with values: of its own leaves, of those of its source, and of the networks it looks at.

    Attributes:
      prepared: as `tljax.run.experiment` made it.
      leaves: of the model.
      observed: of the other networks, by name.
    """

    prepared: Experiment
    leaves: dict
    observed: dict

    @classmethod
    def make(cls, config) -> Case:
        """Prepares a config and draws all values; biases are above zero, so that hardly a neuron is dead."""
        prepared = prepare(config)
        found = {name: _drawn(teacher.model, 7 + i) for i, (name, teacher) in enumerate(prepared.networks.items())}
        return cls(prepared, _drawn(prepared.predictor.model, 1), found)

    @property
    def plans(self) -> list[PhasePlan]:
        """The phases."""
        return self.prepared.plans

    def index(self, plan: PhasePlan) -> dict[str, np.ndarray]:
        """Which channels learn, by the path of a leaf."""
        if not plan.layers:
            return {}
        asked = plan.phase.neurons
        scores = neuron_scores.score_channels(plan.spec, self.leaves, plan.layers, (), asked, jax.random.key(3))
        return neurons.channel_index(neurons.select_channels(scores, asked), plan.layers)

    def given(self, plan: PhasePlan) -> StepInputs:
        """What the phase's steps are given; the source had other values than the model has now."""
        index = self.index(plan)
        learned, _, _ = plan.partition({path: 0.9 * leaf for path, leaf in self.leaves.items()}, index)
        origin = self.prepared.source_params(learned) if "source_params" in plan.spec.requires else {}
        _, _, frozen = plan.partition(self.leaves, index)
        networks = tuple(n.variables(self.observed, self.leaves) for n in plan.spec.networks)
        return StepInputs(frozen, index, origin, networks)

    def batch(self, plan: PhasePlan, seed: int = 0) -> dict:
        """A batch of the data's pictures, with what other networks say of them where that is computed once."""
        data, rng = self.prepared.data, np.random.default_rng(seed)
        size = PICTURES // (1 + len(plan.spec.views))
        rows = rng.choice(len(data.train), size, replace=False)
        targets = data.train.targets(plan.spec.preprocess.size)
        batch, images = {name: x[rows] for name, x in targets.items()}, data.train.images[rows]
        for network in plan.cache_plan.cached:
            batch |= apply_frozen(network, network.variables(self.observed, self.leaves), images)
        if plan.needs_images:
            batch["image"] = images
        if plan.spec.views:
            batch["unlabelled"] = data.unlabelled.images[rng.choice(len(data.unlabelled), size)]
        return batch

    def start(self, plan: PhasePlan, given: StepInputs) -> TrainState:
        """The state before the first step."""
        params, batch_stats, _ = plan.partition(self.leaves, given.channel_index)
        copies = jax.tree.map(jax.numpy.array, (params, batch_stats))
        return init_state(plan.spec, *copies, plan.hparams)

    def traced(self, plan: PhasePlan):
        """The phase's step as JAX has traced it."""
        given = self.given(plan)
        state = self.start(plan, given)
        return make_train_step(plan.spec).trace(state, given, self.batch(plan), numbers(plan), jax.random.key(0))

    def run(self, plan: PhasePlan, steps: int = 1, key: int = 0, compiled: bool = False, **changed):
        """Takes steps and returns the state and each step's metrics; `changed` are numbers.

        Operation after operation, unless `compiled`: what many phases have in common is compiled once for all, and that
        is what takes the time here. Runs compile the same program as a whole.
        """
        given, seen = self.given(plan), []
        state = self.start(plan, given)
        for i in range(steps):
            arguments = state, given, self.batch(plan, i), numbers(plan) | changed, jax.random.key(key)
            if compiled:
                state, metrics = make_train_step(plan.spec)(*arguments)
            else:
                traced = make_train_step(plan.spec).trace(*arguments)
                found = jaxpr_as_fun(traced.jaxpr)(*jax.tree.leaves(arguments))
                state, metrics = jax.tree.unflatten(jax.tree.structure(traced.out_info), found)
            seen.append(jax.device_get(metrics))
        return state, seen


def numbers(plan: PhasePlan) -> dict:
    """What a step takes as numbers."""
    return jax.tree.map(lambda x: jax.numpy.asarray(x, "float32"), plan.hparams | {"lr": 0.05, "progress": 0.5})


def _drawn(model, seed):
    models.init_missing(model, nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    ends = {"bias": (0.5, 1.0), "scale": (0.5, 1.0), "mean": (-0.2, 0.2), "var": (0.5, 2)}
    values = params_lib.variables(model)
    new = {p: rng.uniform(*ends[p.split("/")[-1]], v.shape) for p, v in values.items() if p.split("/")[-1] in ends}
    return {p: jax.numpy.asarray(new.get(p, v), v.dtype) for p, v in values.items()}
