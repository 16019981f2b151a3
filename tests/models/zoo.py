"""Our networks beside the references' golden values: what they were asked, and by how much we differ.

The golden files, their making and their meaning: tests/golden/make_zoo.py.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tests.golden import zoo_rule
from tljax import models
from tljax.models import Model
from tljax.models import params as params_lib
from tljax.models.layers import Dropout
from tljax.weights.assign import assign_weights, export, match
from tljax.weights.detect import head_options
from tljax.weights.layouts import Layout, detect_layout, layouts
from tljax.weights.layouts.table import TRANSFORMS

GOLDEN = Path(__file__).parent.parent / "golden"
REFERENCES = ("torchvision", "timm", "keras", "unet", "segmentation")
KERAS = {
    "VGG": "vgg{}",
    "ResNet": "resnet{}_v1",
    "DenseNet": "densenet{}_keras",
    "InceptionV": "inception_v{}_keras",
}
VGG_STAGES = [*(f"stage{k}" for k in range(1, 6)), "pool"]
AUX_WEIGHT = {"googlenet": 0.3, "inception_v3": 0.4}
# Compiling is most of the work, and what is compiled runs once or twice.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def latest(function):
    """Keeps the answer to the latest question, and drops it before the next is worked out: weights are large."""
    kept = {}

    @functools.wraps(function)
    def answer(question):
        if question not in kept:
            kept.clear()
            kept[question] = function(question)
        return kept[question]

    return answer


class Case(NamedTuple):
    """A variant as a reference names it."""

    reference: str
    variant: str

    @property
    def backbone(self) -> str:
        """Our name for it."""
        if self.reference == "keras":
            family = self.variant.rstrip("0123456789")
            return KERAS[family].format(self.variant.removeprefix(family))
        name = self.variant.removeprefix("fcn_").removeprefix("smp_")
        return name.replace("milesial", "unet")

    def golden(self, what: str) -> np.ndarray:
        """An array of the golden file."""
        return _golden(self.reference)[f"{self.variant}:{what}"]

    def has(self, what: str) -> bool:
        """Whether the golden file has it."""
        return f"{self.variant}:{what}" in _golden(self.reference)

    @property
    def stages(self) -> dict[str, str]:
        """Our stages whose maps are known, and the maps' names."""
        start = f"{self.variant}:map:"
        maps = [key.removeprefix(start) for key in _golden(self.reference).files if key.startswith(start)]
        if not self.variant.startswith("smp_"):
            return {stage: f"map:{stage}" for stage in maps}
        # segmentation_models_pytorch counts maps: from the picture for ResNet, from the first block for VGG.
        ours = ["stem", *(f"stage{k}" for k in range(1, 5))] if "resnet" in self.variant else VGG_STAGES
        return dict(zip(ours, (f"map:encoder{k}" for k in range("resnet" in self.variant, 6)), strict=True))


@functools.cache
def _golden(reference: str):
    return np.load(GOLDEN / f"zoo_{reference}.npz")


def cases() -> list[Case]:
    """Every variant of every reference."""
    return [
        Case(reference, key.partition(":")[0])
        for reference in REFERENCES
        for key in _golden(reference).files
        if key.endswith(":tensors")
    ]


def shapes_of(case: Case) -> dict[str, np.ndarray]:
    """The names and shapes of the reference's checkpoint, in tensors that take no memory."""
    named = json.loads(_text(case.golden("tensors")))
    return {name: np.broadcast_to(np.float32(0), tuple(shape)) for name, shape in named}


def tensors_of(case: Case) -> dict[str, np.ndarray]:
    """The reference's checkpoint."""
    return {name: zoo_rule.draw(name, tensor.shape) for name, tensor in shapes_of(case).items()}


class Drawn(NamedTuple):
    """A tensor of the reference's checkpoint that is drawn when it is wanted: all of a VGG's are half a gigabyte."""

    name: str
    shape: tuple[int, ...]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return zoo_rule.draw(self.name, self.shape)


@latest
def built(case: Case) -> tuple[Model, Layout]:
    """Our model with the head that the reference has, and the layout of the reference's names.

    It is abstract until `ported` fills it.
    """
    shapes = shapes_of(case)
    family, config = models.get_variant(case.backbone)
    layout = layouts(family, config)[detect_layout(shapes, family, config)]
    options = head_options(shapes, layout)
    if case.variant.startswith("fcn_"):
        options["options"] = {"output_stride": 8}
    options["image_size"] = int(case.golden("size"))
    return models.create_model(case.backbone, rngs=None, **options), layout


@latest
def ported(case: Case) -> tuple[Model, Layout]:
    """The same with the reference's weights."""
    model, layout = built(case)
    assign_weights({name: Drawn(name, tensor.shape) for name, tensor in shapes_of(case).items()}, model, layout)
    return model, layout


def misplaced(case: Case) -> list[str]:
    """Tensors without a place, leaves without a tensor, and names that do not come back."""
    model, layout = built(case)
    found = match(shapes_of(case), model, layout)
    back = {rule.path: layout.origin(rule.path) for rule in found.plan.values()}
    lost = [rule.name for path, rule in found.plan.items() if back[path] is None or back[path].name != rule.name]
    return [*found.unused, *found.missing, *found.shape_mismatches, *lost]


def round_trip(case: Case) -> list[str]:
    """The tensors that do not come back to the bit when they are exported again; also those lost or invented."""
    model, layout = ported(case)
    theirs = {n: t.shape for n, t in shapes_of(case).items() if not layout.ignores(n)}
    back = export(model, layout)
    changed = [n for n in theirs.keys() & back if not np.array_equal(zoo_rule.draw(n, theirs[n]), back[n])]
    return sorted({*changed, *(theirs.keys() ^ back.keys())})


def parameters(case: Case) -> int:
    """How many numbers of ours can learn."""
    return sum(x.size for x in params_lib.flatten_model(built(case)[0]).params.values())


def inference_errors(case: Case) -> dict[str, float]:
    """Largest differences in inference mode from the reference, relative to its largest value."""
    model, _ = ported(case)
    graphdef, params, stats = params_lib.flatten_model(model)

    def run(leaves, images):
        model = params_lib.merge(graphdef, leaves)
        maps = model.features(images)
        # Of auxiliary classifiers, the references told what they say in training mode.
        made = {"logits": model.head(maps)} | (model.head.auxiliary(maps) if case.reference == "segmentation" else {})
        made |= {what: maps[stage] for stage, what in case.stages.items()}
        return {what: value for what, value in made.items() if case.has(what)}

    out = compiled(run)(params | stats, zoo_rule.photos(int(case.golden("size"))))
    return {what: _error(case, what, value) for what, value in out.items()}


def training_errors(case: Case) -> dict[str, float]:
    """The same in training mode with nothing dropped: logits, auxiliary ones too, and the statistics as they moved."""
    model, layout = ported(case)
    graphdef, params, stats = params_lib.flatten_model(model)

    def run(leaves, images):
        model = _without_dropout(params_lib.merge(graphdef, leaves))
        outputs = _classified(model, images)
        return outputs, params_lib.batch_stats(model)

    outputs, moved = compiled(run)(params | stats, zoo_rule.photos(int(case.golden("size"))))
    names = {"logits": "train_logits"}
    errors = {name: _error(case, names.get(name, name), value) for name, value in outputs.items()}
    return errors | ({"stats": _stats_error(case, layout, moved)} if moved else {})


def _classified(model: Model, images: jax.Array) -> dict[str, jax.Array]:
    """The logits in training mode, of auxiliary classifiers too."""
    return {name: x for name, x in model.forward_all(images, train=True).items() if name != "maps"}


def gradient_errors(case: Case, quick: bool = True) -> dict[str, float]:
    """The loss and its gradients with respect to the first convolution and the classifier, in float64.

    In float32 the references differ from themselves by up to 3 % at the first convolution, where one ReLU of millions
    tips over; in float64 none does.
    """
    model, layout = ported(case)
    graphdef, params, stats = params_lib.flatten_model(model)
    rules = {path: layout.origin(path) for path in params}
    watched = {path: rule for path, rule in rules.items() if case.has(f"grad:{rule.name}")}
    weight, labels = AUX_WEIGHT.get(case.backbone, 0.0), np.asarray(zoo_rule.LABELS)

    def loss_fn(learned, frozen, images):
        model = _without_dropout(params_lib.merge(graphdef, learned | frozen))
        outputs = _classified(model, images)
        losses = {k: optax.softmax_cross_entropy_with_integer_labels(v, labels).mean() for k, v in outputs.items()}
        return losses.pop("logits") + weight * sum(losses.values())

    with jax.enable_x64(True):
        leaves = {path: jnp.asarray(x, jnp.float64) for path, x in (params | stats).items()}
        learned = {path: leaves.pop(path) for path in watched}
        images = zoo_rule.photos(int(case.golden("size"))).astype(np.float64)
        loss, grads = compiled(jax.value_and_grad(loss_fn), quick)(learned, leaves, images)
    errors = {"loss": abs(float(loss) / float(case.golden("loss")) - 1)}
    for path, rule in watched.items():
        ours, theirs = TRANSFORMS[rule.transform].to_foreign(np.asarray(grads[path])), case.golden(f"grad:{rule.name}")
        errors[rule.name] = float(np.max(np.abs(zoo_rule.sample(ours) - theirs)) / np.max(np.abs(theirs)))
        norm = abs(float(np.linalg.norm(ours)) / float(case.golden(f"gradnorm:{rule.name}")) - 1)
        errors[rule.name] = max(errors[rule.name], norm)
    return errors


def _without_dropout(model: Model) -> Model:
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Dropout):
            module.rate = 0.0
    return model


def _stats_error(case: Case, layout: Layout, moved) -> float:
    ours, worst = {layout.origin(path).name: value for path, value in moved.items()}, 0.0
    expected = [(name, values) for name, values in json.loads(_text(case.golden("stats"))) if not layout.ignores(name)]
    assert {name for name, _ in expected} == set(ours)
    for name, values in expected:
        sampled = zoo_rule.sample(ours[name], 4)
        worst = max(worst, float(np.max(np.abs(sampled - values)) / np.max(np.abs(values))))
    return worst


def _error(case: Case, what: str, ours: jax.Array) -> float:
    theirs = case.golden(what)
    assert ours.shape == tuple(json.loads(_text(case.golden("shapes")))[what]), f"{case} {what}: {ours.shape}"
    norm = abs(float(np.linalg.norm(np.asarray(ours, np.float64)) / float(case.golden(f"norm:{what}"))) - 1)
    return max(norm, float(np.max(np.abs(zoo_rule.sample(ours) - theirs)) / np.max(np.abs(theirs))))


def _text(value: np.ndarray) -> str:
    return value.item().decode()


def compiled(function, quick: bool = True):
    """Compiled in the least time, or as runs compile."""
    options = QUICK if quick else {"xla_backend_optimization_level": 3}
    return jax.jit(function, compiler_options=options if jax.default_backend() == "cpu" else None)
