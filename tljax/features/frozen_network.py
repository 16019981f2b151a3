"""Frozen networks of a phase: teachers, the source network, and the frozen first stages of the student.

If the images do not change from step to step, their outputs are computed once for a whole split
(`tljax.features.feature_cache`) and are part of the batches; otherwise every step computes them on augmented images.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tljax.models import Model
from tljax.models import params as params_lib
from tljax.models.layers import average_pool_to
from tljax.models.params import Variables
from tljax.weights import Preprocess, make_preprocess

# Name of the frozen network that consists of the first stages of the student.
FROZEN_STAGES = "frozen_stages"


@dataclasses.dataclass(frozen=True)
class FrozenNetwork:
    """A frozen network and the outputs that a phase needs, without the values of its variables.

    Attributes:
      name: "teacher0", "teacher1", ..., "source", or `FROZEN_STAGES`.
      graphdef: graph definition of the network.
      preprocess: preprocessing of the network, with its input size.
      dtype: data type of the computation.
      logits: whether the outputs of the head are needed.
      maps: pairs of student stage and stage of this network whose features are needed.
      pool_to: height and width to which features are averaged; None: not averaged.
      stages: stages of the student, for `FROZEN_STAGES`.
      output_bytes: size of the outputs for one image.
    """

    name: str
    graphdef: nnx.GraphDef
    preprocess: Preprocess
    dtype: str
    logits: bool
    maps: tuple[tuple[str, str], ...]
    pool_to: tuple[int, int] | None = None
    stages: tuple[str, ...] = ()
    output_bytes: int = dataclasses.field(default=0, compare=False, repr=False)

    def variables(self, networks: Mapping[str, Variables], student: Variables) -> Variables:
        """Return the variables of this network: an entry of `networks`, or a part of the student's variables."""
        if self.name != FROZEN_STAGES:
            return networks[self.name]
        prefixes = tuple(f"{stage}/" for stage in self.stages)
        return {path: value for path, value in student.items() if path.startswith(prefixes)}

    def with_output_bytes(self, variables: Mapping, image_shape: Sequence[int]) -> FrozenNetwork:
        """Return a copy with `output_bytes` set for images [H, W, C]; `variables` may be shapes."""
        return dataclasses.replace(self, output_bytes=_output_bytes(self, tuple(image_shape), _Unhashed(variables)))


def frozen_backbone(
    model: Model, stages: Sequence[str], matched: Iterable[str], all_maps: bool, preprocess: Preprocess, dtype: str
) -> FrozenNetwork:
    """Return the frozen first stages of a model as a network whose features the rest of the model reads.

    Args:
      model: the model of the run.
      stages: the first stages, all frozen.
      matched: stages whose features are compared with another network's.
      all_maps: whether a loss needs the features of all stages.
      preprocess: preprocessing of the pretrained weights.
      dtype: data type of the computation.
    """
    pool_sizes = dict(model.head.required_features)
    last = stages[-1]
    if len(stages) < len(model.stage_names):
        pool_sizes[last] = None  # the next stage needs the whole feature map
    needed = set(stages) if all_maps else {*pool_sizes, *matched} & set(stages)
    pooled = needed == {last} and not all_maps and last not in matched
    return FrozenNetwork(
        name=FROZEN_STAGES,
        graphdef=params_lib.flatten_model(model.first_stages(stages)).graphdef,
        preprocess=preprocess,
        dtype=dtype,
        logits=False,
        maps=tuple((stage, stage) for stage in stages if stage in needed),
        pool_to=pool_sizes[last] if pooled else None,
        stages=tuple(stages),
    )


def apply_frozen(network: FrozenNetwork, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
    """Return the outputs in inference mode by name, such as "teacher0/logits" or "teacher0/maps/stage2".

    Args:
      network: the frozen network.
      variables: variables of the network.
      images: uint8 [B, H, W, C].
    """
    prepared = make_preprocess(network.preprocess, network.preprocess.size, network.dtype)(images)
    model = params_lib.merge(network.graphdef, variables)
    features = model.features(prepared)
    outputs = {f"{network.name}/maps/{stage}": features[network_stage] for stage, network_stage in network.maps}
    if network.pool_to is not None:
        outputs = {name: average_pool_to(x, network.pool_to) for name, x in outputs.items()}
    if network.logits:
        head_outputs = model.head(features)
        outputs[f"{network.name}/logits"] = head_outputs["logits"] if isinstance(head_outputs, dict) else head_outputs
    return outputs


def group_outputs(outputs: Mapping[str, jax.Array]) -> dict:
    """Return outputs of `apply_frozen` as losses read them: dicts `source` and `FROZEN_STAGES`, a tuple `teachers`."""
    networks: dict[str, dict] = {}
    for name, value in outputs.items():
        network, kind, *stage = name.split("/", 2)
        entry = networks.setdefault(network, {"maps": {}})
        if stage:
            entry["maps"][stage[0]] = value
        else:
            entry[kind] = value
    grouped = {name: networks.pop(name) for name in ("source", FROZEN_STAGES) if name in networks}
    teachers = tuple(networks[name] for name in sorted(networks, key=lambda n: int(n.removeprefix("teacher"))))
    return ({"teachers": teachers} if teachers else {}) | grouped


def output_shapes(
    network: FrozenNetwork, variables: Mapping, image_shape: Sequence[int]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of the outputs for one image [H, W, C], without batch axis; `variables` may be shapes."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    shapes = jax.eval_shape(functools.partial(apply_frozen, network), variables, image)
    return {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in shapes.items()}


class _Unhashed:
    """Wrapper of variables that `lru_cache` ignores: their shapes follow from the graph definition."""

    def __init__(self, variables: Mapping):
        self.variables = variables

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unhashed)

    def __hash__(self) -> int:
        return 0


# Cached, because runs of a sweep use the same networks and tracing takes long.
@functools.lru_cache(maxsize=256)
def _output_bytes(network: FrozenNetwork, image_shape: tuple[int, ...], variables: _Unhashed) -> int:
    shapes = output_shapes(network, variables.variables, image_shape).values()
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in shapes)
