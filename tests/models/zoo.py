"""Comparison of networks with golden values of reference implementations.

tests/golden/make_zoo.py writes the golden files and documents their contents; make_efficientnet.py writes the one of
EfficientNet-Lite.
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
from tljax.models.backbones import efficientnet
from tljax.models.layers import TORCH_BN, Dropout
from tljax.weights.assign import assign_weights, export_weights, match_tensors
from tljax.weights.detect import head_options
from tljax.weights.layouts import Layout, detect_layout, layouts
from tljax.weights.layouts.table import TRANSFORMS

GOLDEN = Path(__file__).parent.parent / "golden"
REFERENCES = ("torchvision", "timm", "efficientnet", "keras", "unet", "segmentation")
KERAS = {
    "VGG": "vgg{}",
    "ResNet": "resnet{}_v1",
    "DenseNet": "densenet{}_keras",
    "InceptionV": "inception_v{}_keras",
}
# The narrow networks of make_efficientnet.py.
SMALL = {
    "small": efficientnet.Variant(0.1, 0.5),
    "small_odd": efficientnet.Variant(0.1, 0.5),
    "small_torch": efficientnet.Variant(0.1, 0.5, same_padding=False, norm=TORCH_BN),
}
VGG_STAGES = [*(f"stage{k}" for k in range(1, 6)), "pool"]
AUX_WEIGHT = {"googlenet": 0.3, "inception_v3": 0.4}
# Compilation takes most of the time: programs run only once or twice.
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def cache_last(function):
    """Cache the last result, and free it before the next call: weights are large, so `lru_cache(1)` needs too much."""
    cache = {}

    @functools.wraps(function)
    def cached(argument):
        if argument not in cache:
            cache.clear()
            cache[argument] = function(argument)
        return cache[argument]

    return cached


class Case(NamedTuple):
    """A network of a reference implementation, by the reference's name for it."""

    reference: str
    variant: str

    @property
    def backbone(self) -> str | efficientnet.Variant:
        """Name of the backbone in tljax, or its variant."""
        if self.reference == "efficientnet":
            # timm's `efficientnet_lite0` pads as PyTorch.
            name = self.variant.removeprefix("tf_")
            return SMALL.get(name) or (name if self.variant.startswith("tf_") else f"{name}_torch")
        if self.reference == "keras":
            family = self.variant.rstrip("0123456789")
            return KERAS[family].format(self.variant.removeprefix(family))
        name = self.variant.removeprefix("fcn_").removeprefix("smp_")
        return name.replace("milesial", "unet")

    def golden(self, name: str) -> np.ndarray:
        """Return an array of the golden file."""
        return _golden(self.reference)[f"{self.variant}:{name}"]

    def has(self, name: str) -> bool:
        """Return whether the golden file has an array of this name."""
        return f"{self.variant}:{name}" in _golden(self.reference)

    @property
    def stages(self) -> dict[str, str]:
        """Stages with golden features, and the names of these in the golden file."""
        prefix = f"{self.variant}:map:"
        names = [key.removeprefix(prefix) for key in _golden(self.reference).files if key.startswith(prefix)]
        if not self.variant.startswith("smp_"):
            return {stage: f"map:{stage}" for stage in names}
        # segmentation_models_pytorch numbers its features, from the image for ResNet and from the first block for VGG.
        is_resnet = "resnet" in self.variant
        stages = ["stem", *(f"stage{k}" for k in range(1, 5))] if is_resnet else VGG_STAGES
        return dict(zip(stages, (f"map:encoder{k}" for k in range(is_resnet, 6)), strict=True))


@functools.cache
def _golden(reference: str):
    return np.load(GOLDEN / f"zoo_{reference}.npz")


def cases() -> list[Case]:
    """Return every network of every reference."""
    return [
        Case(reference, key.partition(":")[0])
        for reference in REFERENCES
        for key in _golden(reference).files
        if key.endswith(":tensors")
    ]


def checkpoint_shapes(case: Case) -> dict[str, np.ndarray]:
    """Return the reference's checkpoint as tensors of zeros that take no memory, for their names and shapes."""
    names_and_shapes = json.loads(_text(case.golden("tensors")))
    return {name: np.broadcast_to(np.float32(0), tuple(shape)) for name, shape in names_and_shapes}


def checkpoint_tensors(case: Case) -> dict[str, np.ndarray]:
    """Return the reference's checkpoint."""
    return {name: zoo_rule.draw(name, tensor.shape) for name, tensor in checkpoint_shapes(case).items()}


class LazyTensor(NamedTuple):
    """A tensor of the reference's checkpoint, generated when it is read: all of a VGG's take half a gigabyte."""

    name: str
    shape: tuple[int, ...]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return zoo_rule.draw(self.name, self.shape)


@cache_last
def build_model(case: Case) -> tuple[Model, Layout]:
    """Create the abstract tljax model with the reference's head, and return it with the reference's layout."""
    shapes = checkpoint_shapes(case)
    family, config = models.get_variant(case.backbone)
    layout = layouts(family, config)[detect_layout(shapes, family, config)]
    options = head_options(shapes, layout)
    if case.variant.startswith("fcn_"):
        options["options"] = {"output_stride": 8}
    options["image_size"] = int(case.golden("size"))
    return models.create_model(case.backbone, rngs=None, **options), layout


@cache_last
def load_model(case: Case) -> tuple[Model, Layout]:
    """Create the tljax model with the reference's weights, and return it with the reference's layout."""
    model, layout = build_model(case)
    assign_weights(
        {name: LazyTensor(name, tensor.shape) for name, tensor in checkpoint_shapes(case).items()}, model, layout
    )
    return model, layout


def naming_errors(case: Case) -> list[str]:
    """Return unused tensors, missing variables, shape mismatches, and tensors whose exported name differs."""
    model, layout = build_model(case)
    matched = match_tensors(checkpoint_shapes(case), model, layout)
    exported = {rule.path: layout.rule_for_path(rule.path) for rule in matched.rules.values()}
    renamed = [
        rule.name for path, rule in matched.rules.items() if exported[path] is None or exported[path].name != rule.name
    ]
    return [*matched.unexpected, *matched.missing, *matched.shape_mismatches, *renamed]


def round_trip(case: Case) -> list[str]:
    """Return the tensors that differ in any bit, are missing, or are additional after import and export."""
    model, layout = load_model(case)
    shapes = {n: t.shape for n, t in checkpoint_shapes(case).items() if not layout.ignores(n)}
    exported = export_weights(model, layout)
    changed = [n for n in shapes.keys() & exported if not np.array_equal(zoo_rule.draw(n, shapes[n]), exported[n])]
    return sorted({*changed, *(shapes.keys() ^ exported.keys())})


def num_params(case: Case) -> int:
    """Return the number of trainable parameters of the tljax model."""
    return sum(x.size for x in params_lib.flatten_model(build_model(case)[0]).params.values())


def inference_errors(case: Case) -> dict[str, float]:
    """Return the largest differences from the reference in inference mode, relative to its largest value."""
    model, _ = load_model(case)
    graphdef, params, stats = params_lib.flatten_model(model)

    def run(variables, images):
        model = params_lib.merge(graphdef, variables)
        features = model.features(images)
        outputs = {"logits": model.head(features)}
        # For auxiliary classifiers of other references, the golden files have outputs of training mode only.
        if case.reference == "segmentation":
            outputs |= model.head.auxiliary(features)
        outputs |= {name: features[stage] for stage, name in case.stages.items()}
        return {name: value for name, value in outputs.items() if case.has(name)}

    outputs = fast_jit(run)(params | stats, zoo_rule.photos(int(case.golden("size"))))
    return {name: _error(case, name, value) for name, value in outputs.items()}


def training_errors(case: Case) -> dict[str, float]:
    """Return the same in training mode without dropout: of logits, auxiliary logits and updated running statistics."""
    model, layout = load_model(case)
    graphdef, params, stats = params_lib.flatten_model(model)

    def run(variables, images):
        model = _disable_dropout(params_lib.merge(graphdef, variables))
        outputs = _training_logits(model, images)
        return outputs, params_lib.batch_stats(model)

    outputs, new_stats = fast_jit(run)(params | stats, zoo_rule.photos(int(case.golden("size"))))
    golden_names = {"logits": "train_logits"}
    errors = {name: _error(case, golden_names.get(name, name), value) for name, value in outputs.items()}
    return errors | ({"stats": _stats_error(case, layout, new_stats)} if new_stats else {})


def _training_logits(model: Model, images: jax.Array) -> dict[str, jax.Array]:
    """Return the logits in training mode, including those of auxiliary classifiers."""
    return {name: x for name, x in model.forward_all(images, train=True).items() if name != "maps"}


def gradient_errors(case: Case, fast_compile: bool = True) -> dict[str, float]:
    """Return the errors of the loss and of its gradients at the first convolution and the classifier, in float64.

    In float32 two runs of a reference differ by up to 3 % at the first convolution, if rounding changes the sign at one
    of millions of ReLUs; in float64 no sign changes.
    """
    model, layout = load_model(case)
    graphdef, params, stats = params_lib.flatten_model(model)
    rules = {path: layout.rule_for_path(path) for path in params}
    compared = {path: rule for path, rule in rules.items() if case.has(f"grad:{rule.name}")}
    aux_weight = AUX_WEIGHT.get(case.backbone, 0.0)
    labels = np.asarray(zoo_rule.LABELS)

    def loss_fn(trainable, frozen, images):
        model = _disable_dropout(params_lib.merge(graphdef, trainable | frozen))
        outputs = _training_logits(model, images)
        losses = {k: optax.softmax_cross_entropy_with_integer_labels(v, labels).mean() for k, v in outputs.items()}
        return losses.pop("logits") + aux_weight * sum(losses.values())

    with jax.enable_x64(True):
        frozen = {path: jnp.asarray(x, jnp.float64) for path, x in (params | stats).items()}
        trainable = {path: frozen.pop(path) for path in compared}
        images = zoo_rule.photos(int(case.golden("size"))).astype(np.float64)
        loss, grads = fast_jit(jax.value_and_grad(loss_fn), fast_compile)(trainable, frozen, images)
    errors = {"loss": abs(float(loss) / float(case.golden("loss")) - 1)}
    for path, rule in compared.items():
        actual = TRANSFORMS[rule.transform].to_foreign(np.asarray(grads[path]))
        expected = case.golden(f"grad:{rule.name}")
        max_error = float(np.max(np.abs(zoo_rule.sample(actual) - expected)) / np.max(np.abs(expected)))
        norm_error = abs(float(np.linalg.norm(actual)) / float(case.golden(f"gradnorm:{rule.name}")) - 1)
        errors[rule.name] = max(max_error, norm_error)
    return errors


def _disable_dropout(model: Model) -> Model:
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Dropout):
            module.rate = 0.0
    return model


def _stats_error(case: Case, layout: Layout, stats) -> float:
    actual = {layout.rule_for_path(path).name: value for path, value in stats.items()}
    expected = {name: values for name, values in json.loads(_text(case.golden("stats"))) if not layout.ignores(name)}
    assert expected.keys() == actual.keys()
    max_error = 0.0
    for name, values in expected.items():
        sampled = zoo_rule.sample(actual[name], 4)
        max_error = max(max_error, float(np.max(np.abs(sampled - values)) / np.max(np.abs(values))))
    return max_error


def _error(case: Case, name: str, actual: jax.Array) -> float:
    expected = case.golden(name)
    assert actual.shape == tuple(json.loads(_text(case.golden("shapes")))[name]), f"{case} {name}: {actual.shape}"
    norm_error = abs(float(np.linalg.norm(np.asarray(actual, np.float64)) / float(case.golden(f"norm:{name}"))) - 1)
    return max(norm_error, float(np.max(np.abs(zoo_rule.sample(actual) - expected)) / np.max(np.abs(expected))))


def _text(value: np.ndarray) -> str:
    return value.item().decode()


def fast_jit(function, fast_compile: bool = True):
    """Jit a function for minimum compilation time, or with the optimization level of training runs."""
    options = FAST_COMPILE if fast_compile else {"xla_backend_optimization_level": 3}
    return jax.jit(function, compiler_options=options if jax.default_backend() == "cpu" else None)
