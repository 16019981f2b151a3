"""What a training step reads and writes, and what shapes its program."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from tljax.config import AugmentConfig
from tljax.features.frozen_network import FrozenNetwork
from tljax.losses import Loss
from tljax.models import params as params_lib
from tljax.models.params import Variables
from tljax.ops.convolution import inference_options
from tljax.strategies import ParamGroup, neurons
from tljax.tasks import Task
from tljax.train.optimizer import OptimizerSpec, make_optimizer
from tljax.weights import Preprocess


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
      params: trainable parameters; of layers whose single channels train, the slices of these channels.
      batch_stats: BatchNorm statistics that the step updates.
      opt_state: of the optimizer.
      step: steps taken within the phase.
      ema: running average of `params` and `batch_stats`; empty unless the phase averages weights.
    """

    params: Variables
    batch_stats: Variables
    opt_state: optax.OptState
    step: jax.Array
    ema: Variables


class StepInputs(NamedTuple):
    """Arrays that every step of a phase reads and none writes.

    Attributes:
      frozen: all other variables of the model, and the whole arrays of those of which slices train.
      channel_index: output channels that train, [k] by the path of a sliced parameter.
      source_params: pretrained values of the trainable parameters, used by L2-SP (Li et al. 2018).
      networks: variables of the networks in `StepSpec.networks`, in their order.
    """

    frozen: Variables
    channel_index: Mapping[str, jax.Array]
    source_params: Variables
    networks: tuple[Variables, ...]


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """Everything that shapes a step's program and is not a number; equal specs share one compiled program.

    Attributes:
      task: classification, segmentation or detection.
      graphdef: of the model, with frozen BatchNorms and Dropouts marked.
      param_groups: (path, group) of every trainable parameter.
      optimizer: what shapes the optimizer.
      losses: terms of the loss; their weights are hyperparameters.
      preprocess: of the pretrained weights, at the run's input size.
      dtype: of the computation.
      augment: of the training images.
      views: of the unlabelled images that the losses ask for, among "weak" and "strong".
      ema: whether a running average of the weights is kept.
      networks: frozen networks that run within the step.
      grad_accum_steps: parts of a batch whose gradients are computed one after another.
      dense: whether only dense layers of the head train: then there is no convolution to differentiate.
    """

    task: Task
    graphdef: nnx.GraphDef
    param_groups: tuple[tuple[str, ParamGroup], ...]
    optimizer: OptimizerSpec
    losses: tuple[Loss, ...]
    preprocess: Preprocess
    dtype: str
    augment: AugmentConfig
    views: tuple[str, ...] = ()
    ema: bool = False
    networks: tuple[FrozenNetwork, ...] = ()
    grad_accum_steps: int = 1
    dense: bool = False

    @property
    def compiler_options(self) -> dict[str, str]:
        """XLA options for programs of this step."""
        return inference_options() if self.dense else {}

    @property
    def requires(self) -> frozenset[str]:
        """Everything that the losses ask for, as names of `tljax.losses.REQUIREMENTS`."""
        return frozenset().union(*(loss.requires for loss in self.losses))


def init_state(spec: StepSpec, params: Variables, batch_stats: Variables, hparams: Mapping) -> TrainState:
    """Return the state before the first step; only trainable parameters have optimizer state."""
    optimizer = make_optimizer(spec.optimizer, {**hparams, "lr": 0.0}, dict(spec.param_groups))
    ema = jax.tree.map(jnp.copy, params | batch_stats) if spec.ema else {}
    return TrainState(params, batch_stats, optimizer.init(params), jnp.zeros((), jnp.int32), ema)


def merge_model(graphdef: nnx.GraphDef, changing: Variables, inputs: StepInputs) -> nnx.Module:
    """Return the model of a step.

    Args:
      graphdef: of the model.
      changing: trainable parameters and updated statistics; for the paths in `inputs.channel_index`, slices.
      inputs: the frozen variables, and which channels the slices are of.
    """
    index = inputs.channel_index
    slices = {path: changing[path] for path in index}
    whole = neurons.scatter({path: inputs.frozen[path] for path in index}, slices, index)
    model = params_lib.merge(graphdef, inputs.frozen | changing | whole)
    neurons.attach_channels(model, slices, index)
    return model
