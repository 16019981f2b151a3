"""Prepared runs of presets on small networks of three families, for tests of single steps.

The source network and the teachers are `recipe:` networks: everything is known about them except their weights, which
are random here.
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

# Shapes are repeated where possible, because operations are compiled once per shape.
NETS = {
    "vgg": ("vgg11", {"blocks": ((4, 4), (4,))}),
    "resnet": ("resnet8", {"depths": (1, 1), "widths": (4, 4)}),
    "densenet": ("densenet121", {"depths": (1, 1), "growth": 4, "initial": 4, "bottleneck": 1}),
}
TEACHER = ("resnet8", {"depths": (1, 1, 1, 1), "widths": (4, 4, 4, 4)})
# Images per step, including the views of unlabelled images.
NUM_IMAGES = 12
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
# Heads for masks and boxes, on images of 16 pixels with one or two digits.
SPATIAL_HEADS = {
    "unet": {"channels": (4,)},
    "fcn": {"variant": "16s", "channels": 4},
    "detector": {"channels": 4, "neck": "deconv"},
}
SCENES = {"train": 24, "valid": 4, "test": 4, "side": 16, "objects": (1, 2)}
SPATIAL_RECIPE = """
from tljax import config

def get_config():
    c = config.default()
    c.data.name, c.data.options = "scenes", {scenes}
    c.model.backbone, c.model.options = "{backbone}", {options}
    c.model.head, c.model.head_options = "{head}", {head_options}
    c.model.preprocess, c.strategy.name = "unit", "scratch"
    return c
"""


def write_recipe(folder, net, classes=CLASSES, pool="flatten") -> str:
    """Write the config file of a network (backbone, options); return its name as a value of `model.weights`."""
    backbone, options = net
    path = folder / f"{backbone}-{len(list(folder.iterdir()))}.py"
    path.write_text(RECIPE.format(backbone=backbone, options=options, classes=classes, pool=pool))
    return f"recipe:{path}"


def make_config(folder, preset, net="vgg", **settings):
    """Return the config of a preset on a small network, with everything that any preset needs."""
    backbone, options = net if isinstance(net, tuple) else NETS[net]
    c = schema.default()
    c.data.classes = CLASSES
    c.data.labels_per_class = 12
    c.data.unlabelled = -1
    c.model.backbone = backbone
    c.model.options = options
    c.model.pool = "flatten"
    c.model.weights = write_recipe(folder, (backbone, options), (4, 5, 6, 7))
    c.strategy.unlabelled_ratio = 1
    c.strategy.threshold = 0.34
    c.strategy.teachers = (write_recipe(folder, TEACHER),)
    c.strategy.neurons.criterion = "random"
    c.strategy.neurons.fraction = 0.4
    c.strategy.layers = ("stage2/.*",) if preset == "layers" else ()
    c.train.batch_size = 4
    c.augment.strong_magnitude = 0.0
    c.cache.storage = "none"
    return schema.override(schema.parse(c), {"strategy.name": preset} | settings)


def make_spatial_config(folder, preset, head, **settings):
    """Return the config of a preset for masks or boxes; the source is a classifier, teachers have the same task."""
    backbone, options = NETS["resnet"]
    teacher = folder / f"{head}.py"
    head_options = SPATIAL_HEADS[head]
    teacher.write_text(
        SPATIAL_RECIPE.format(scenes=SCENES, backbone=backbone, options=options, head=head, head_options=head_options)
    )
    c = make_config(folder, preset, "resnet")
    spatial_settings = {
        "data.name": "scenes",
        "data.options": SCENES,
        "data.classes": (),
        "data.labels_per_class": None,
        "data.num_train": 12,
        "data.image_size": 16,
        "model.weights": write_recipe(folder, NETS["resnet"], (4, 5, 6, 7), "avg"),
        "model.pool": "avg",
        "model.head": head,
        "model.head_options": head_options,
        "strategy.teachers": (f"recipe:{teacher}",),
    }
    return schema.override(c, spatial_settings | settings)


@dataclasses.dataclass(eq=False)
class Case:
    """A prepared run with values for all variables.

    Attributes:
      experiment: the experiment from `tljax.run.experiment.prepare`.
      variables: variables of the model.
      networks: variables of teachers and source network, by name.
    """

    experiment: Experiment
    variables: dict
    networks: dict

    @classmethod
    def make(cls, config) -> Case:
        """Prepare a config and draw all values; biases are positive, so that hardly any ReLU is always zero."""
        experiment = prepare(config)
        networks = {
            name: _random_variables(teacher.model, 7 + i)
            for i, (name, teacher) in enumerate(experiment.networks.items())
        }
        return cls(experiment, _random_variables(experiment.predictor.model, 1), networks)

    @property
    def plans(self) -> list[PhasePlan]:
        """The plans of the phases."""
        return self.experiment.plans

    def channel_index(self, plan: PhasePlan) -> dict[str, np.ndarray]:
        """Return the trainable channels, by parameter path, if single channels train."""
        if not plan.layers:
            return {}
        config = plan.phase.neurons
        scores = neuron_scores.score_channels(plan.spec, self.variables, plan.layers, (), config, jax.random.key(3))
        return neurons.channel_index(neurons.select_channels(scores, config), plan.layers)

    def step_inputs(self, plan: PhasePlan) -> StepInputs:
        """Return the inputs of the steps of a phase; the source values differ from the current ones."""
        index = self.channel_index(plan)
        source_values, _, _ = plan.partition({path: 0.9 * x for path, x in self.variables.items()}, index)
        needs_source = "source_params" in plan.spec.requires
        source_params = self.experiment.source_params(source_values) if needs_source else {}
        _, _, frozen = plan.partition(self.variables, index)
        networks = tuple(n.variables(self.networks, self.variables) for n in plan.spec.networks)
        return StepInputs(frozen, index, source_params, networks)

    def batch(self, plan: PhasePlan, seed: int = 0) -> dict:
        """Return a batch of images and targets, with the outputs of frozen networks that the plan caches."""
        data = self.experiment.data
        rng = np.random.default_rng(seed)
        size = NUM_IMAGES // (1 + len(plan.spec.views))
        rows = rng.choice(len(data.train), size, replace=False)
        batch = {name: x[rows] for name, x in data.train.targets(plan.spec.preprocess.size).items()}
        images = data.train.images[rows]
        for network in plan.cache_plan.cached:
            batch |= apply_frozen(network, network.variables(self.networks, self.variables), images)
        if plan.needs_images:
            batch["image"] = images
        if plan.spec.views:
            batch["unlabelled"] = data.unlabelled.images[rng.choice(len(data.unlabelled), size)]
        return batch

    def init_state(self, plan: PhasePlan, inputs: StepInputs) -> TrainState:
        """Return the state before the first step."""
        params, batch_stats, _ = plan.partition(self.variables, inputs.channel_index)
        params, batch_stats = jax.tree.map(jax.numpy.array, (params, batch_stats))
        return init_state(plan.spec, params, batch_stats, plan.hparams)

    def trace_step(self, plan: PhasePlan):
        """Return the traced step of a phase."""
        inputs = self.step_inputs(plan)
        state = self.init_state(plan, inputs)
        return make_train_step(plan.spec).trace(state, inputs, self.batch(plan), step_hparams(plan), jax.random.key(0))

    def run(self, plan: PhasePlan, steps: int = 1, key: int = 0, compiled: bool = False, **hparams):
        """Take steps and return the final state and the metrics of each step; `hparams` are changed values.

        Unless `compiled`, operations run one by one: this compiles each operation once for all phases, and compilation
        takes most of the time here. Other tests compile the same program as a whole.
        """
        inputs = self.step_inputs(plan)
        state = self.init_state(plan, inputs)
        step_metrics = []
        for i in range(steps):
            args = state, inputs, self.batch(plan, i), step_hparams(plan) | hparams, jax.random.key(key)
            if compiled:
                state, metrics = make_train_step(plan.spec)(*args)
            else:
                traced = make_train_step(plan.spec).trace(*args)
                outputs = jaxpr_as_fun(traced.jaxpr)(*jax.tree.leaves(args))
                state, metrics = jax.tree.unflatten(jax.tree.structure(traced.out_info), outputs)
            step_metrics.append(jax.device_get(metrics))
        return state, step_metrics


def step_hparams(plan: PhasePlan) -> dict:
    """Return the hyperparameters of a step."""
    return jax.tree.map(lambda x: jax.numpy.asarray(x, "float32"), plan.hparams | {"lr": 0.05, "progress": 0.5})


def _random_variables(model, seed):
    models.init_missing(model, nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    ranges = {"bias": (0.5, 1.0), "scale": (0.5, 1.0), "mean": (-0.2, 0.2), "var": (0.5, 2)}
    values = params_lib.variables(model)
    new = {p: rng.uniform(*ranges[p.split("/")[-1]], v.shape) for p, v in values.items() if p.split("/")[-1] in ranges}
    return {p: jax.numpy.asarray(new.get(p, v), v.dtype) for p, v in values.items()}
