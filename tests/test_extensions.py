"""Objects of the form FILE.py:NAME in a config: where they are used, and one-line errors about them."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.run import small
from tljax import config as schema
from tljax import data, models
from tljax.augment.ops import OPS
from tljax.augment.pipeline import make_augment
from tljax.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimConfig, override
from tljax.config import validate as config_validate
from tljax.data import Split
from tljax.distributed.mesh import DeviceMesh
from tljax.errors import UserError
from tljax.features.cache_plan import has_augmentation
from tljax.features.feature_cache import FeatureCache
from tljax.features.frozen_network import frozen_backbone
from tljax.models import params as params_lib
from tljax.models.heads import HEADS
from tljax.run.evaluate import evaluate
from tljax.run.experiment import prepare
from tljax.run.train import train
from tljax.strategies import ParamGroup
from tljax.tasks import compute_metrics, metrics_of, task_of
from tljax.train.optimizer import OPTIMIZERS, make_optimizer, optimizer_hparams, optimizer_spec
from tljax.weights import PRESETS

EXAMPLES = Path(__file__).parent.parent / "examples"
CONVMIXER = f"{EXAMPLES / 'backbone.py'}:CONVMIXER"
LION = f"{EXAMPLES / 'optimizer.py'}:lion"

FILE = """
import dataclasses
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tljax.data import RawDataset, Split
from tljax.models.heads import Head
from tljax.models.layers import Conv, Linear
from tljax.tasks import Metric, Task
from tljax.tasks.classification import CLASSIFICATION

@dataclasses.dataclass(frozen=True)
class Variant:
    width: int = 4
    widths: object = ()

@dataclasses.dataclass
class Mutable:
    width: int = 4

def stages(variant, *, inputs, dtype, rngs):
    return {STAGES}

class Stem(nnx.Module):
    def __init__(self, inputs, width, **options):
        self.conv = Conv(inputs, width, 3, **options)

    def __call__(self, x, train=False, rngs=None):
        return self.conv(x)

class Pool(nnx.Module):
    def __call__(self, x, train=False, rngs=None):
        return x.mean((1, 2))

NET, CLASS, LIST, MUTABLE = Variant(), Variant, Variant(widths=[1]), Mutable()

class Plain(Head):
    def __init__(self, shapes, num_classes, *, width: int = 3, scale=1.0, dtype=None, rngs):
        self.stage = list(shapes)[-1]
        self.dense = Linear(shapes[self.stage][-1], num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, features, train=False, rngs=None):
        return self.dense(features[self.stage].mean((1, 2)))

    @property
    def main_features(self):
        return {self.stage: (1, 1)}

class Named(Plain):
    task = "classification"

class Misnamed(Plain):
    task = "clasification"

class WithoutFeatures(Plain):
    main_features = Head.main_features

class ReturnsNone(Plain):
    def __call__(self, features, train=False, rngs=None):
        return None

class NoOptions(Head):
    def __init__(self, shapes):
        pass

same_name = CLASSIFICATION
empty_metric = Metric("x")
accuracy = lambda predictions, split: 1.0
def one_argument(x):
    return x
def text(predictions, split):
    return "good"
def returns_list(hparams, masks):
    return []
def tags(config, task):
    split = Split(np.zeros((2, 4, 4, 1), np.uint8), np.zeros((2, 5), np.int32))
    return RawDataset(split, split, ("a", "b"))
def drops_image(key, batch, value):
    return {}
def floats(key, batch, value):
    return {**batch, "image": batch["image"] / 2}
def invert(key, batch, value):
    return {**batch, "image": 255 - batch["image"]}
number = 3
"""


@pytest.fixture
def custom(tmp_path):
    """Return a function that writes a file of extensions and returns the spec of a name in it."""

    def write(name, stages='"stem": Stem(inputs, variant.width, dtype=dtype, rngs=rngs)'):
        path = tmp_path / "custom.py"
        path.write_text(FILE.replace("{STAGES}", "{" + stages + "}"))
        return f"{path}:{name}"

    return write


def error_message(function, *args, **options):
    with pytest.raises(UserError) as error:
        function(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def create(backbone="resnet8", head="classifier", **options):
    return models.create_model(backbone, num_classes=3, head=head, image_size=8, rngs=None, **options)


def test_names_in_validate_are_those_of_the_tables():
    assert tuple(OPTIMIZERS) == config_validate.OPTIMIZERS
    assert tuple(HEADS) == config_validate.HEADS


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NETT", 'custom.py has no backbone "NETT"; did you mean "NET"?'),
        ("CLASS", "must be an instance of a frozen dataclass, got the class Variant."),
        ("MUTABLE", "must be an instance of a frozen dataclass, got Mutable."),
        ("number", "must be an instance of a frozen dataclass, got int."),
        ("LIST", "all fields must be hashable"),
    ],
)
def test_backbone_of_a_wrong_type_is_an_error(custom, name, message):
    assert message in error_message(create, custom(name))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("", "stages must return a dict of nnx.Module by stage name, got an empty dict."),
        ('"stem": 3', 'the stage "stem" must be an nnx.Module, got int.'),
        ('"head": Pool()', "a stage cannot be named 'head'"),
        ('"stage/1": Pool()', "a stage cannot be named 'stage/1'"),
        ('"pool": Pool()', 'the stage "pool" must return features [B, H, W, C], got [2, 3].'),
        ('"stem": nnx.Dropout(0.5, rngs=rngs)', "nnx.Dropout"),
    ],
)
def test_stages_of_a_wrong_type_are_an_error(custom, stages, message):
    if "Dropout" in stages:
        stages = '"stem": type("S", (nnx.Module,), {"__init__": lambda s: setattr(s, "d", nnx.Dropout(0.5)), '
        stages += '"__call__": lambda s, x, train, rngs: x})()'
    assert message in error_message(create, custom("NET", stages))


def test_backbone_file_without_stages_is_an_error(tmp_path):
    path = tmp_path / "custom.py"
    path.write_text("import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass V:\n  pass\nNET = V()\n")
    assert "must define the function stages(variant, *, inputs, dtype, rngs)" in error_message(create, f"{path}:NET")
    assert "there is no file" in error_message(create, f"{tmp_path}/customs.py:NET")
    path.write_text("from tljax.models.backbones.vgg import Variant\nNET = Variant(blocks=((4,), (8,)))\n")
    os.utime(path, ns=(1, 1))
    assert models.get_variant(f"{path}:NET")[0] == "vgg"


def test_backbone_without_initializer_is_an_error(custom):
    stages = '"stem": type("S", (nnx.Module,), {"__init__": lambda s: setattr(s, "token", nnx.Param(jnp.ones(3))), '
    stages += '"__call__": lambda s, x, train, rngs: x + s.token})()'
    model = create(custom("NET", stages))
    message = error_message(models.init_missing, model, nnx.Rngs(0))
    assert message.startswith('There is no initializer for stem/token [3]: add ("token", 1) to INITIALIZERS')


def test_backbone_options_and_out_stage():
    model = create(CONVMIXER, options={"width": 8, "depths": [1, 2]}, out_stage="stage1")
    assert model.stage_names == ("stem", "stage1")
    assert model.unused_stages == ("stage2",)
    assert model.feature_info()["stage1"].channels == 8
    assert 'has no "widht"; did you mean "width"?' in error_message(create, CONVMIXER, options={"widht": 8})
    assert 'there is no stage "stage9"' in error_message(create, CONVMIXER, out_stage="stage9")
    # The default table of a BatchNorm behind each convolution, for single neurons.
    paths = set(params_lib.flatten_model(model).params)
    assert {"stage1/spatial/0/conv/kernel", "stage1/spatial/0/bn/scale"} <= paths


def test_run_with_a_custom_backbone_is_a_source(tmp_path, console):
    c = small.config(tmp_path / "source")
    c.model.backbone, c.model.options = CONVMIXER, {"width": 8, "depths": (1, 1)}
    c.cache.storage, c.augment.crop_padding = "memory", 0
    c.train.epochs = 2
    rules = (("stage2/.*", 0.5), ("head/.*", 1.0), (".*", 0.0))
    c.strategy.phases = (
        schema.Phase("head", (("head/.*", 1.0), (".*", 0.0))),
        schema.Phase("top", rules, optim={"name": LION, "lr": 1e-3}),
    )
    result = train(schema.parse(c), console)
    assert all(phase["frozen_unchanged"] for phase in result["phases"])
    assert "training computed once" in result["phases"][0]["features"]
    assert list(result["files"]) == [LION, CONVMIXER]
    assert evaluate(schema.parse(c), console)["valid"] == result["valid"]

    recorded = json.loads((tmp_path / "source" / "result.json").read_text())
    recorded["files"][LION] = "0" * 64
    (tmp_path / "source" / "result.json").write_text(json.dumps(recorded))
    evaluate(schema.parse(c), console)
    assert f"Warning: changed since the run: {LION}" in console.export_text()

    c.workdir = str(tmp_path / "target")
    c.model.weights = f"workdir:{tmp_path / 'source'}"
    c.data.classes, c.model.out_stage = (4, 5), "stage1"
    c.strategy.name, c.strategy.phases = "feature_extraction", ()
    experiment = prepare(schema.parse(c))
    loaded = experiment.load_variables()
    assert experiment.source_params(loaded)
    assert train(schema.parse(c), console)["parameters_digest"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Plane", 'custom.py has no head "Plane"; did you mean "Plain"?'),
        ("number", "must be a subclass of tljax.models.heads.Head, got int."),
        ("Pool", "must be a subclass of tljax.models.heads.Head, got the class Pool."),
        ("NoOptions", "the constructor must take (shapes, num_classes, *, ..., dtype, rngs)."),
        ("WithoutFeatures", "main_features must return {stage: None or (height, width)}."),
        ("ReturnsNone", "must return logits or a dict of outputs, got NoneType."),
    ],
)
def test_head_of_a_wrong_type_is_an_error(custom, name, message):
    assert message in error_message(create, head=custom(name))


def test_head_options_are_checked(custom):
    head = custom("Plain")
    create(head=head, width=5, scale=2)
    assert 'has no "widht"; did you mean "width"?' in error_message(create, head=head, widht=5)
    assert "must be of type int" in error_message(create, head=head, width="x")


@pytest.mark.parametrize(
    ("head", "task", "message"),
    [
        ("Plain", None, "does not name its task: set task in the config, or the attribute task of the head."),
        ("Misnamed", None, 'there is no task "clasification"; did you mean "classification"?'),
        ("Plain", "number", "is not a task: it must be a tljax.tasks.Task, got int."),
        ("Plain", "same_nam", 'custom.py has no task "same_nam"; did you mean "same_name"?'),
        ("Plain", "same_name", '"classification" is the name of a built-in task: choose another name.'),
    ],
)
def test_task_errors(custom, head, task, message):
    config = Config(task=task and custom(task), model=ModelConfig(head=custom(head)))
    assert message in error_message(task_of, config)


def test_head_names_its_task(custom):
    assert task_of(Config(model=ModelConfig(head=custom("Named")))).name == "classification"
    assert task_of(Config(task="segmentation", model=ModelConfig(head=custom("Named")))).name == "segmentation"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("txt", 'custom.py has no metric "txt"; did you mean "text"?'),
        ("number", "must be a Metric or a function (predictions, split), got int."),
        ("one_argument", "must be a Metric or a function (predictions, split), got a function of other arguments."),
        ("empty_metric", "is a metric without a function"),
        ("accuracy", '"accuracy" is the name of another metric'),
    ],
)
def test_metric_errors(custom, name, message):
    assert message in error_message(metrics_of, Config(metrics=(custom(name),)))
    assert 'given as FILE.py:NAME, got "kappa"' in error_message(metrics_of, Config(metrics=("kappa",)))


def test_metric_that_returns_text_is_an_error(custom):
    metric = metrics_of(Config(metrics=(custom("text"),)))[-1]
    task = task_of(Config())
    probabilities = {"probabilities": np.eye(3, dtype=np.float32)}
    split = Split(np.zeros((3, 4, 4, 1), np.uint8), np.arange(3, dtype=np.int32))
    message = error_message(compute_metrics, task, [metric], probabilities, split, 4)
    assert message == "The metric text must return a number or None, got str."
    nan = dataclasses.replace(metric, compute=lambda predictions, split: np.float32("nan"))
    assert compute_metrics(task, [nan], probabilities, split, 4)["text"] is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lion", 'custom.py has no optimizer "lion"'),
        ("number", "must be a function (hparams, masks), got int."),
        ("one_argument", "must be a function (hparams, masks), got a function of other arguments."),
        ("returns_list", "must return an optax.GradientTransformation, got list."),
    ],
)
def test_optimizer_errors(custom, name, message):
    optim = OptimConfig(name=custom(name))
    spec, hparams = optimizer_spec(optim), optimizer_hparams(optim) | {"lr": 0.1}
    assert message in error_message(make_optimizer, spec, hparams, {"w": ParamGroup(".*", 1.0, True)})


def test_optimizer_uses_masks():
    optim = OptimConfig(name=LION, lr=0.1, weight_decay=0.5)
    groups = {"kernel": ParamGroup(".*", 1.0, True), "bias": ParamGroup(".*", 0.5, False)}
    optimizer = make_optimizer(optimizer_spec(optim), optimizer_hparams(optim) | {"lr": 0.1}, groups)
    params = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)}
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * (1 + 0.5 * 2.0), rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], -0.05, rtol=1e-6)


def test_optimizer_of_a_phase_may_be_custom():
    phase = {"name": "a", "optim": {"name": LION}}
    settings = {"strategy.name": "custom", "strategy.phases": [phase]}
    assert override(Config(), settings).strategy.phases[0].optim["name"] == LION
    phase["optim"]["name"] = "adm"
    message = error_message(override, Config(), settings)
    assert message == "strategy.phases[a].optim.name cannot be 'adm'; did you mean \"adam\"?"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "is not a data source: it must be a function, got int."),
        ("one_argument", "the function must take (config, task)."),
        ("returns_list", "must return a tljax.data.RawDataset, got list."),
        ("tags", "must return labels for the task classification, got int32[2, 5] without boxes."),
    ],
)
def test_data_source_errors(custom, name, message):
    assert message in error_message(data.load, DataConfig(name=custom(name)), 0)


def test_split_of_targets_of_a_custom_task():
    images = np.zeros((6, 4, 4, 1), np.uint8)
    targets = np.arange(12, dtype=np.float64).reshape(6, 2) / 4
    split = Split(images, targets).select(np.array([3, 1]))
    np.testing.assert_array_equal(split.labels, targets[[3, 1]])
    assert split.labels.dtype == np.float32
    assert Split(images, (targets > 1).astype(np.int64)).select(np.arange(2)).labels.dtype == np.int32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("colour", 'augment.ops: there is no "colour"; did you mean "color"?'),
        ("FILE:number", "must be a function (key, batch, value), got int."),
        ("FILE:one_argument", "must be a function (key, batch, value), got a function of other arguments."),
        ("FILE:drops_image", "must return a batch with the entries image, got []."),
        ("FILE:floats", "must return images uint8[4, 8, 8, 3], got float32[4, 8, 8, 3]."),
    ],
)
def test_augmentation_errors(custom, name, message):
    name = custom(name.removeprefix("FILE:")) if name.startswith("FILE:") else name
    weak = make_augment(AugmentConfig(ops=((name, 1.0),)), None)["weak"]
    batch = {"image": jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.uint8)}
    assert message in error_message(jax.eval_shape, weak, jax.random.key(0), batch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment.ops": (("FILE:floats", 1.0),)}, "must return images uint8[2, 8, 8, 1]"),
        ({"optim.name": "FILE:returns_list"}, "must return an optax.GradientTransformation, got list."),
        ({"metrics": ("FILE:number",)}, "must be a Metric or a function"),
        ({"model.head": "FILE:Plain"}, "does not name its task"),
        ({"model.backbone": "FILE:number", "model.options": {}}, "is not a backbone"),
        ({"data.name": "FILE:number"}, "is not a data source"),
    ],
)
def test_errors_come_before_anything_is_written(custom, tmp_path, console, settings, message):
    file = custom("")
    config = schema.parse(small.config(tmp_path / "run"))
    settings = json.loads(json.dumps(settings).replace("FILE:", file))
    assert message in error_message(train, override(config, settings), console)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("side", [None, 16])
def test_ops_are_applied_last_and_in_order(custom, side):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    key, batch = jax.random.key(1), {"image": jnp.asarray(images)}
    plain = make_augment(AugmentConfig(crop_padding=2), side)
    with_ops = make_augment(AugmentConfig(crop_padding=2, ops=((custom("invert"), 1.0),)), side)
    for view in ("weak", "strong"):
        expected = 255 - np.asarray(plain[view](key, batch)["image"])
        np.testing.assert_array_equal(with_ops[view](key, batch)["image"], expected)
    gray = make_augment(AugmentConfig(ops=(("grayscale", 1.0), (custom("invert"), 1.0))), side)["weak"](key, batch)
    mean = np.round(images.astype(np.float32).mean(-1, keepdims=True))
    np.testing.assert_array_equal(gray["image"], np.broadcast_to(255 - mean, images.shape))


@pytest.mark.parametrize("name", list(OPS))
def test_built_in_ops_differ_between_keys_and_vanish_at_zero(name):
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8))
    results = [OPS[name](jax.random.key(seed), {"image": images}, 0.7)["image"] for seed in (0, 1)]
    assert (results[0] != results[1]).any()
    assert (results[0] != images).any()
    np.testing.assert_array_equal(OPS[name](jax.random.key(0), {"image": images}, 0.0)["image"], images)


@pytest.mark.parametrize(("op", "backbone"), [("invert", None), (None, "NET")])
def test_cached_views_depend_on_custom_files(custom, tmp_path, monkeypatch, op, backbone):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    config = Config(augment=AugmentConfig(ops=((custom(op), 1.0),) if op else (("cutout", 1.0),)))
    assert has_augmentation(config.augment)
    split = Split(np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int32))

    def cache_key():
        model = create(custom(backbone) if backbone else "resnet8")
        custom("NET")
        preprocess = dataclasses.replace(PRESETS["symmetric"], size=8)
        network = frozen_backbone(model, ["stem"], [], False, preprocess, "float32")
        cache = FeatureCache(config, DeviceMesh(4, "none"), None)
        return json.dumps(cache._key(network, {}, split, 2), sort_keys=True)

    first = cache_key()
    assert cache_key() == first
    monkeypatch.setattr("tests.test_extensions.FILE", FILE.replace("255 -", "254 -"))
    assert cache_key() != first
