"""What other networks say of the pictures: teachers, the source, and the frozen first stages of the student itself.

None of them changes. Where the pictures do not change either, because nothing is augmented or each is drawn a few times
only, what they say is computed once for the whole split (`tljax.features.feature_cache`), and travels with the
batches; else inside the step, on the same augmented pictures.
"""

from __future__ import annotations

import dataclasses
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

# The student's own frozen first stages, as one of the networks that a phase looks at.
FROZEN_STAGES = "prefix"


@dataclasses.dataclass(frozen=True)
class FrozenNetwork:
    """A network that a phase looks at, without the values of its leaves.

    Attributes:
      name: "teacher0", "teacher1", ..., "source", or `PREFIX`.
      graphdef: of the network.
      preprocess: its own, at its own input size.
      dtype: of its computation.
      logits: whether its classifier's outputs are wanted.
      maps: pairs of the student's stage and its own, whose maps are wanted.
      grid: height and width that the maps are averaged to; None: they are taken whole.
      stages: of the student, which `PREFIX` is made of.
    """

    name: str
    graphdef: nnx.GraphDef
    preprocess: Preprocess
    dtype: str
    logits: bool
    maps: tuple[tuple[str, str], ...]
    pool_to: tuple[int, int] | None = None
    stages: tuple[str, ...] = ()

    def variables(self, networks: Mapping[str, Variables], student: Variables) -> Variables:
        """Its leaves, among those of the networks by name, or of the student."""
        if self.name != FROZEN_STAGES:
            return networks[self.name]
        ours = tuple(f"{stage}/" for stage in self.stages)
        return {path: leaf for path, leaf in student.items() if path.startswith(ours)}


def frozen_backbone(
    model: Model, stages: Sequence[str], paired: Iterable[str], whole: bool, preprocess: Preprocess, dtype: str
) -> FrozenNetwork:
    """The first stages of a model as a network of its own, which gives the maps that anything behind it looks at.

    Args:
      model: of the run.
      stages: the first ones, all frozen.
      paired: stages whose maps are held against another network's.
      whole: whether an objective wants all maps there are.
      preprocess: of the weights.
      dtype: of the computation.
    """
    reads, grid = dict(model.head.required_features), None
    if len(stages) < len(model.stage_names):
        reads[stages[-1]] = None  # the next stage goes on from it
    wanted = set(stages) if whole else {*reads, *paired} & set(stages)
    if wanted == {stages[-1]} and not whole and stages[-1] not in paired:
        grid = reads[stages[-1]]
    trunk = params_lib.flatten_model(model.first_stages(stages)).graphdef
    maps = tuple((stage, stage) for stage in stages if stage in wanted)
    return FrozenNetwork(FROZEN_STAGES, trunk, preprocess, dtype, False, maps, grid, tuple(stages))


def apply_frozen(network: FrozenNetwork, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
    """Outputs in inference mode on uint8 pictures, by name: "teacher0/logits", "teacher0/maps/stage2"."""
    prepared = make_preprocess(network.preprocess, network.preprocess.size, network.dtype)(images)
    model = params_lib.merge(network.graphdef, variables)
    maps = model.features(prepared)
    taken = {f"{network.name}/maps/{stage}": maps[theirs] for stage, theirs in network.maps}
    if network.pool_to is not None:
        taken = {name: average_pool_to(x, network.pool_to) for name, x in taken.items()}
    if network.logits:
        made = model.head(maps)
        taken[f"{network.name}/logits"] = made["logits"] if isinstance(made, dict) else made
    return taken


def group_outputs(outputs: Mapping[str, jax.Array]) -> dict:
    """The outputs as objectives take them: `teachers`, a tuple, `source`, and `PREFIX`, with `logits` and `maps`."""
    networks: dict[str, dict] = {}
    for name, value in outputs.items():
        network, kind, *stage = name.split("/", 2)
        outputs = networks.setdefault(network, {"maps": {}})
        if stage:
            outputs["maps"][stage[0]] = value
        else:
            outputs[kind] = value
    single = {name: networks.pop(name) for name in ("source", FROZEN_STAGES) if name in networks}
    teachers = tuple(networks[name] for name in sorted(networks, key=lambda n: int(n.removeprefix("teacher"))))
    return ({"teachers": teachers} if teachers else {}) | single


def output_shapes(
    network: FrozenNetwork, variables: Mapping, image_shape: Sequence[int]
) -> dict[str, jax.ShapeDtypeStruct]:
    """The outputs for one picture [H, W, C], without its axis; `leaves` may be shapes."""
    one = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    shapes = jax.eval_shape(lambda leaves, image: apply_frozen(network, leaves, image), variables, one)
    return {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in shapes.items()}


def output_bytes(network: FrozenNetwork, variables: Mapping, image_shape: Sequence[int]) -> int:
    """What the outputs for one picture take."""
    # The shapes of the leaves follow from the graph: runs of a sweep that observe alike ask once.
    if (key := (network, tuple(image_shape))) not in _bytes:
        shapes = output_shapes(network, variables, image_shape).values()
        _bytes[key] = sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in shapes)
    return _bytes[key]


_bytes: dict[tuple, int] = {}
