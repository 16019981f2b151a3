"""Everything that a run needs, read and checked; nothing is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import nnx

from tljax import data as data_of
from tljax import models, weights
from tljax.config import Config
from tljax.data import Data, Split
from tljax.errors import UserError
from tljax.models import Model
from tljax.models import state as leaves_of
from tljax.models.state import Leaves
from tljax.strategies import Strategy, resolve
from tljax.tasks import classification
from tljax.train.evaluate import predict_split
from tljax.train.phases import PhasePlan, plan_phase
from tljax.train.sharding import Mesh
from tljax.train.step import make_predict
from tljax.weights import PRESETS, Preprocess, Weights


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A model with what it is fed and where it runs; all that is needed to predict but the values of its leaves.

    Attributes:
      config: of the run.
      model: of the config.
      classes: names of the outputs.
      preprocess: of the weights, at the run's own input size.
      mesh: the devices.
    """

    config: Config
    model: Model
    classes: tuple[str, ...]
    preprocess: Preprocess
    mesh: Mesh

    @classmethod
    def build(cls, config: Config, classes: Sequence[str], preprocess: Preprocess) -> Network:
        """Builds the config's model, abstract: its leaves are shapes; `preprocess.size` is the side of its input."""
        model, published = config.model, {} if config.model.norm is None else {"norm": config.model.norm}
        model = models.build(
            model.backbone,
            num_classes=len(classes),
            head=model.head,
            tap=model.tap,
            image_size=preprocess.size,
            in_channels=preprocess.channels,
            options=model.options,
            auxiliary=model.aux_weight > 0,
            remat=model.remat,
            dtype=jax.numpy.dtype(config.train.precision),
            pool=model.pool,
            pool_size=model.pool_size,
            hidden=model.hidden,
            dropout=model.dropout,
            rngs=None,
            **published,
        )
        return cls(config, model, tuple(classes), preprocess, Mesh(config.train.batch_size))

    def leaves(self) -> Leaves:
        """The leaves of the model as it is now, shapes where they have no value yet."""
        _, params, stats = leaves_of.split(self.model)
        return params | stats

    def predictor(self) -> Callable:
        """The compiled forward pass, uint8 pictures to probabilities."""
        graphdef = leaves_of.split(self.model).graphdef
        return make_predict(graphdef, self.preprocess, self.config.train.precision)

    def predict(self, leaves: Leaves, split: Split) -> np.ndarray:
        """Probabilities [N, classes] of a split's pictures."""
        return predict_split(self.predictor(), leaves, split, self.config.train.batch_size, self.mesh)

    def judge(self, leaves: Leaves, split: Split) -> tuple[dict, np.ndarray]:
        """All metrics of a model on a split, and its probabilities [N, classes]."""
        probabilities = self.predict(leaves, split)
        scores = classification.scores(split.labels, probabilities)
        return scores | classification.details(split.labels, probabilities, self.classes), probabilities


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A run that is checked and ready; nothing is written yet.

    Attributes:
      config: of the run.
      data: the splits.
      network: without values; neither are the source weights read nor random ones drawn yet.
      source: where the weights come from, or None.
      strategy: whether weights are loaded, and the phases.
      plans: the phases made concrete.
    """

    config: Config
    data: Data
    network: Network
    source: Weights | None
    strategy: Strategy
    plans: list[PhasePlan]

    @property
    def inputs(self) -> dict:
        """What the run is made of besides its config."""
        source = self.source.describe() if self.source else None
        return {"data": self.data.describe(), "weights": source}

    def load_weights(self) -> Leaves:
        """The leaves that training starts from."""
        if self.strategy.pretrained:
            # A published norm in front of the classifier is worth having; the classifier itself is for other classes.
            weights.load(self.network.model, self.source, keep="head/(?!norm/).*", optional="head/norm/.*")
        models.initialise(self.network.model, nnx.Rngs(self.config.seed))
        return self.network.leaves()


def prepare(config: Config) -> Prepared:
    """Reads and checks everything that a run needs, and writes nothing.

    Raises:
      UserError: anything that would go wrong later for a reason that can be known now.
    """
    data = data_of.load(config.data, config.seed)
    if config.model.num_classes not in (None, len(data.classes)):
        raise UserError(f"model.num_classes={config.model.num_classes}, but the data has {len(data.classes)} classes.")
    if not all(map(len, (data.train, data.valid))) or not data.test.size:
        raise UserError(f"data.name={config.data.name!r} leaves a split empty: {data.describe()}.")
    source = None
    if config.model.weights is not None:
        source = weights.find(config.model.weights, config.model.preprocess)
        if source.backbone not in (None, config.model.backbone):
            raise UserError(f"{source.name} fits model.backbone={source.backbone!r}, not {config.model.backbone!r}.")
        if source.preprocess is None:
            raise UserError(
                f"Nobody knows what {config.model.weights} was trained on: set model.preprocess to one of "
                f"{', '.join(PRESETS)}."
            )
    preprocess = source.preprocess if source else PRESETS[config.model.preprocess or "symmetric"]
    size = config.data.image_size or preprocess.size or data.train.images.shape[1]
    channels, here = config.model.in_channels, data.train.images.shape[-1]
    if here not in (1, channels) and (here, channels) != (3, 1):
        raise UserError(f"model.in_channels={channels}, but the pictures have {here}.")
    network = Network.build(config, data.classes, dataclasses.replace(preprocess, size=size, channels=channels))
    params = leaves_of.split(network.model).params
    stages = [s for s in network.model.stage_names if any(p.startswith(f"{s}/") for p in params)]
    strategy = resolve(config, stages)
    plans = [plan_phase(config, p, network.model, len(data.train), network.preprocess) for p in strategy.phases]
    return Prepared(config, data, network, source, strategy, plans)
