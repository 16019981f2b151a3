"""Config fields of `model` that change the network, from config to result."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tljax import models, weights
from tljax.config import override, parse
from tljax.errors import UserError
from tljax.models import params as params_lib
from tljax.models.backbones import inception
from tljax.models.backbones.inception import Auxiliary, AverageTo, Conv, MaxPool
from tljax.run.config_files import load_config_file
from tljax.run.evaluate import evaluate
from tljax.run.experiment import prepare
from tljax.run.train import train
from tljax.weights.formats import write_safetensors
from tljax.weights.layouts import layouts

ROOT = Path(__file__).parent.parent.parent
SMALL = inception.Variant(
    1,
    ((Conv(4, 3),), (MaxPool(), Conv(5))),
    auxiliary=(Auxiliary("stage1", (AverageTo(2), Conv(3)), num_locations=4, hidden=6, dropout=0.5),),
)


def test_train_one_channel_drop_path_and_remat(tiny, console):
    tiny.model.backbone, tiny.model.in_channels = "resnet8", 1
    tiny.model.options = {"drop_path": 0.2, "depths": (2,), "widths": (8,)}
    tiny.model.remat = True
    tiny.train.compute_dtype, tiny.train.epochs = "bfloat16", 1
    tiny.strategy.name, tiny.strategy.phases = "scratch", ()
    config = parse(tiny)
    result = train(config, console)
    assert result["preprocess"]["channels"] == 1
    assert 0 <= result["test"]["accuracy"] <= 1
    recorded = json.loads((Path(config.workdir) / "config.json").read_text())["model"]
    assert recorded["options"] == {"drop_path": 0.2, "depths": [2], "widths": [8]}
    again = evaluate(config, console)
    assert again["parameters_digest"] == result["parameters_digest"]
    stage = prepare(config).predictor.model.stage1
    assert [stage.block0.drop.rate, stage.block1.drop.rate] == pytest.approx([0, 0.2])
    model = models.create_model("resnet8", num_classes=3, options={"drop_path": 0.2}, rngs=None)
    assert [getattr(model, f"stage{k}").block0.drop.rate for k in (1, 2, 3)] == pytest.approx([0, 0.1, 0.2])


def test_train_auxiliary_classifiers(tiny, console, monkeypatch):
    monkeypatch.setitem(inception.VARIANTS, "small", SMALL)
    tiny.model.backbone, tiny.model.options = "small", {}
    tiny.model.aux_weight = 0.3
    tiny.strategy.phases = ()
    tiny.strategy.name = "scratch"
    tiny.train.epochs = 1
    config = parse(tiny)
    (plan,) = prepare(config).plans
    assert plan.phase.losses == (("cross_entropy", 1.0), ("aux_cross_entropy", 0.3))
    assert {"head/aux1/dense/kernel", "head/aux1/chain/unit1/conv/kernel"} <= set(plan.trainable)
    assert train(config, console)["phases"]
    without = override(config, {"model.aux_weight": 0.0, "workdir": str(Path(config.workdir).parent / "without")})
    assert not any("aux" in path for path in prepare(without).predictor.flat.variables)


def test_remat_changes_no_gradient_or_statistic():
    def value_and_grad(remat):
        options = {"options": {"drop_path": 0.5, "depths": (1, 1), "widths": (4, 6)}, "image_size": 16}
        model = models.create_model("resnet8", num_classes=3, remat=remat, rngs=nnx.Rngs(0), **options)
        graphdef, params, stats = params_lib.flatten_model(model)
        images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)

        def loss(params):
            model = params_lib.merge(graphdef, params | stats)
            logits = model(images, train=True, rngs=nnx.Rngs(dropout=1))
            return (logits**2).sum(), params_lib.batch_stats(model)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (loss, batch_stats), grads = value_and_grad(remat=False)
    (remat_loss, remat_batch_stats), remat_grads = value_and_grad(remat=True)
    np.testing.assert_allclose(loss, remat_loss, rtol=1e-6)
    for expected, actual in ((batch_stats, remat_batch_stats), (grads, remat_grads)):
        for path in expected:
            np.testing.assert_allclose(expected[path], actual[path], rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model.options": {"drop_pth": 0.1}}, 'resnet has no "drop_pth"; did you mean "drop_path"'),
        ({"model.options": {"drop_path": "much"}}, "model.options.drop_path must be of type float"),
        ({"model.aux_weight": 0.3}, "resnet8 has no auxiliary classifiers"),
        ({"model.in_channels": 5}, None),
        ({"data.image_size": 1, "model.backbone": "vgg11"}, "too small for vgg11"),
    ],
)
def test_prepare_checks_options_before_writing(tiny, settings, message):
    resnet = {"model.backbone": "resnet8", "model.options": {}, "strategy.name": "scratch", "strategy.phases": ()}
    config = override(parse(tiny), resnet | settings)
    if message is None:
        assert prepare(config).predictor.flat.variables["stem/unit/conv/kernel"].shape[2] == 5
        return
    with pytest.raises(UserError, match=message):
        prepare(config)
    assert not Path(config.workdir).exists()


TRANSFER = ("resnet50", "convnext_tiny", "densenet121", "inception_v3")


@pytest.mark.parametrize("name", TRANSFER)
def test_transfer_configs_name_matching_weights(name):
    config = load_config_file(ROOT / "configs" / f"{name}_transfer.py")
    entry = weights.CATALOG[config.model.weights]
    assert entry.backbone == config.model.backbone == name
    # Where the published network has an auxiliary classifier, the config trains a new one for its own classes.
    assert (config.model.aux_weight > 0) == bool(getattr(models.get_variant(name)[1], "auxiliary", ()))


@pytest.mark.parametrize(
    "name", [*TRANSFER[:2], *(pytest.param(name, marks=pytest.mark.deep) for name in TRANSFER[2:])]
)
def test_transfer_configs_load_published_weights(name, tmp_path):
    config = load_config_file(ROOT / "configs" / f"{name}_transfer.py")
    entry = weights.CATALOG[config.model.weights]
    assert entry.backbone == config.model.backbone
    # Zeros with the names and shapes of the reference implementation replace the published file.
    auxiliary = config.model.aux_weight > 0
    published = models.create_model(name, num_classes=entry.num_classes, image_size=299, auxiliary=auxiliary, rngs=None)
    family, variant = models.get_variant(name)
    tensors = {
        rule.name: np.zeros(_foreign_shape(rule, value.shape), np.float32)
        for path, value in {
            **params_lib.flatten_model(published).params,
            **params_lib.flatten_model(published).batch_stats,
        }.items()
        if (rule := layouts(family, variant)["torchvision"].rule_for_path(path))
    }
    write_safetensors(tmp_path / "published.safetensors", tensors)
    settings = {
        "data.image_size": config.data.image_size or entry.image_size,
        "model.weights": str(tmp_path / "published.safetensors"), "model.preprocess": "torch", "data.name": "digits",
        "workdir": str(tmp_path / "run"),
    }  # fmt: skip
    experiment = prepare(override(config, settings))
    variables = experiment.load_variables()
    trainable = {path for plan in experiment.plans for path in plan.trainable}
    assert set(params_lib.flatten_model(experiment.predictor.model).params) == trainable
    assert not variables["stem/conv/kernel" if name == "convnext_tiny" else _first_kernel(variables)].any()  # loaded
    assert variables["head/dense/kernel"].any()  # initialized: the data have other classes
    assert variables["head/dense/kernel"].shape[-1] == 10


def _first_kernel(variables):
    return min(path for path in variables if path.startswith("stem/") and path.endswith("/kernel"))


def _foreign_shape(rule, shape):
    from tljax.weights.layouts.table import TRANSFORMS

    return TRANSFORMS[rule.transform].to_foreign(np.broadcast_to(np.float32(0), shape)).shape
