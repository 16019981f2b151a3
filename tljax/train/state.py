"""State, inputs and static configuration of a training step."""

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
from tljax.models import Model
from tljax.models import params as params_lib
from tljax.models.params import Variables
from tljax.ops.convolution import inference_options
from tljax.strategies import ParamGroup, neurons
from tljax.tasks import Task
from tljax.train.optimizer import OptimizerSpec, make_optimizer
from tljax.weights import Preprocess


class TrainState(NamedTuple):
    """Arrays that a step changes.

    Attributes:
      params: trainable parameters; if single channels of a layer train, only their slices.
      batch_stats: BatchNorm statistics that the step updates.
      opt_state: state of the optimizer.
      step: number of steps taken in the phase.
      ema: exponential moving average of `params` and `batch_stats`; empty unless the phase averages weights.
    """

    params: Variables
    batch_stats: Variables
    opt_state: optax.OptState
    step: jax.Array
    ema: Variables


class StepInputs(NamedTuple):
    """Arrays that every step of a phase reads and none writes.

    Attributes:
      frozen: all other variables of the model, and the whole arrays of parameters whose slices train.
      channel_index: trainable output channels [k] by the path of a sliced parameter.
      source_params: pretrained values of the trainable parameters, used by L2-SP (Li et al. 2018).
      networks: variables of the networks in `StepSpec.networks`, in their order.
    """

    frozen: Variables
    channel_index: Mapping[str, jax.Array]
    source_params: Variables
    networks: tuple[Variables, ...]


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """Static configuration of a step; equal specs share one compiled program.

    Attributes:
      task: classification, segmentation or detection.
      graphdef: graph definition of the model, with frozen BatchNorms and Dropouts marked.
      param_groups: (path, group) of every trainable parameter.
      optimizer: static structure of the optimizer.
      losses: terms of the loss; their weights are hyperparameters.
      preprocess: preprocessing of the pretrained weights, at the input size of the run.
      dtype: data type of the computation.
      augment: augmentation of the training images.
      views: views of unlabelled images that the losses need, among "weak" and "strong".
      ema: whether weights are averaged.
      networks: frozen networks that run within the step.
      grad_accum_steps: number of parts of a batch whose gradients are accumulated.
      dense: whether only dense layers of the head train, so that no convolution is differentiated.
      files: SHA-256 of the files of a custom optimizer and of custom augmentations.
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
    files: tuple[str, ...] = ()

    @property
    def compiler_options(self) -> dict[str, str]:
        """XLA options for programs of this step."""
        return inference_options() if self.dense else {}

    @property
    def requires(self) -> frozenset[str]:
        """Requirements of all losses, names of `tljax.losses.REQUIREMENTS`."""
        return frozenset().union(*(loss.requires for loss in self.losses))


def init_state(spec: StepSpec, params: Variables, batch_stats: Variables, hparams: Mapping) -> TrainState:
    """Return the state before the first step; only trainable parameters have optimizer state."""
    optimizer = make_optimizer(spec.optimizer, {**hparams, "lr": 0.0}, dict(spec.param_groups))
    ema = jax.tree.map(jnp.copy, params | batch_stats) if spec.ema else {}
    return TrainState(params, batch_stats, optimizer.init(params), jnp.zeros((), jnp.int32), ema)


def merge_model(graphdef: nnx.GraphDef, changing: Variables, inputs: StepInputs) -> Model:
    """Return the model of a step.

    Args:
      graphdef: graph definition of the model.
      changing: trainable parameters and updated statistics; slices for the paths in `inputs.channel_index`.
      inputs: the frozen variables and the channels of the slices.
    """
    index = inputs.channel_index
    slices = {path: changing[path] for path in index}
    whole = neurons.scatter_channels({path: inputs.frozen[path] for path in index}, slices, index)
    model = params_lib.merge(graphdef, inputs.frozen | changing | whole)
    neurons.attach_channels(model, slices, index)
    return model
