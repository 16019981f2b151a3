"""Twenty training steps compared with PyTorch, from the same weights and on the same batches (tests/golden).

In float64, where rounding cannot switch a ReLU or a max-pool, losses agree to 1e-9, with the exceptions in TOLERANCES.
In float32, the recipes that are stable for all 20 steps agree to 1e-4. RMSprop is compared with Keras, the others with
torch.optim.
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from tljax import models
from tljax.config import Config, Phase, override
from tljax.inference.predictor import Predictor
from tljax.models import params as params_lib
from tljax.models.backbones import resnet, vgg
from tljax.train.optimizer import learning_rate
from tljax.train.plan import SplitSizes, plan_phase
from tljax.train.state import StepInputs, init_state
from tljax.train.step import make_train_step
from tljax.weights import Preprocess, assign_weights
from tljax.weights.layouts import layouts
from tljax.weights.layouts.table import Layout, torch_dense

GOLDEN = Path(__file__).parent.parent / "golden"
AS_IS = Preprocess("as is", 1.0, (0.0, 0.0, 0.0))
NETS = {
    "vgg": (vgg.Variant(((8,), (16, 16))), {"pool": "flatten"}),
    "resnet": (resnet.Variant((1, 1, 1), (8, 16, 32), bottleneck=False, small=True), {}),
}
MOMENTUM = {"name": "momentum", "lr": 0.05}
RECIPES = {
    "sgd": {"name": "sgd", "lr": 0.05},
    "momentum": MOMENTUM,
    "nesterov": {"name": "nesterov", "lr": 0.05},
    "adam": {"name": "adam", "lr": 1e-3},
    "adamw": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
    "rmsprop": {"name": "rmsprop", "lr": 1e-3},
    "momentum_clip": MOMENTUM | {"clip_norm": 0.5},
    "momentum_decay": MOMENTUM | {"weight_decay": 0.05},
    "adam_smooth": {"name": "adam", "lr": 1e-3, "label_smoothing": 0.1},
    "head_only": MOMENTUM | {"clip_norm": 0.5},
}
# torch clips by limit / (norm + 1e-6); Keras stores the learning rate and rho in float32.
TOLERANCES = {"momentum_clip": 1e-6, "head_only": 1e-6, "rmsprop": 1e-6}
STABLE = ["sgd", "momentum", "momentum_clip", "adam_smooth", "head_only"]
# Tested daily: the optimizers, which do not depend on the network, with the VGG in float64, and with the ResNet what
# BatchNorm could change. All others are marked deep.
DAILY = {
    ("vgg", "float64"): ("sgd", "nesterov", "adamw", "rmsprop", "momentum_clip"),
    ("vgg", "float32"): ("adam_smooth",),
    ("resnet", "float64"): ("head_only",),
    ("resnet", "float32"): ("momentum",),
}


def cases(recipes, precision):
    """Return pairs of network and recipe; those that are not tested daily are marked deep."""
    return [
        pytest.param(net, r, marks=[] if r in DAILY[net, precision] else pytest.mark.deep)
        for net in NETS
        for r in recipes
    ]


def batch(step):
    rng = np.random.default_rng([7, step])
    images = rng.standard_normal((16, 12, 12, 3)).astype(np.float32)
    return {"image": images, "label": rng.integers(0, 5, 16)}


@functools.cache
def train(net, recipe, dtype):
    variant, head = NETS[net]
    model = models.create_model(variant, num_classes=5, image_size=12, dtype=np.dtype(dtype), rngs=nnx.Rngs(0), **head)
    layout = layouts(net, variant)["torchvision"]
    layout = Layout((*layout.rules, *torch_dense("fc", "head/dense")), layout.ignore)
    assign_weights(load_file(GOLDEN / f"{net}_init.safetensors"), model, layout)
    settings = {f"optim.{k}": v for k, v in RECIPES[recipe].items()}
    config = override(Config(), {"strategy.name": "scratch", "train.batch_size": 16, **settings})
    rules = (("head/.*", 1.0), (".*", 0.0)) if recipe == "head_only" else ((".*", 1.0),)
    predictor = Predictor.of_model(config, model, "abcde", AS_IS)
    plan = plan_phase(Phase("p", rules, epochs=20.0), predictor, SplitSizes(16, 16, (12, 12, 3)))
    spec = dataclasses.replace(plan.spec, dtype=dtype)
    _, params, stats = params_lib.flatten_model(model)
    trainable, batch_stats, frozen = plan.partition({p: v.astype(dtype) for p, v in (params | stats).items()}, {})
    state = init_state(spec, trainable, batch_stats, plan.hparams)
    step = make_train_step(spec)
    losses = []
    inputs = StepInputs(frozen, {}, {}, ())
    for i in range(plan.steps):
        lr = learning_rate(plan.optim, i, plan.steps, 1.0)
        state, metrics = step(state, inputs, batch(i), plan.hparams | {"lr": lr, "progress": 0.0}, jax.random.key(0))
        losses.append(float(metrics["loss"]))
        assert metrics["finite"]
    return losses, state


@pytest.mark.parametrize(("net", "recipe"), cases(RECIPES, "float64"))
def test_losses_match_pytorch_in_float64(net, recipe):
    expected = json.loads((GOLDEN / "trajectories_float64.json").read_text())[net][recipe]
    with jax.enable_x64(True):
        losses, _ = train(net, recipe, "float64")
    np.testing.assert_allclose(losses, expected, rtol=0, atol=TOLERANCES.get(recipe, 1e-9))


@pytest.mark.parametrize(("net", "recipe"), cases(STABLE, "float32"))
def test_losses_match_pytorch_in_float32(net, recipe):
    expected = json.loads((GOLDEN / "trajectories.json").read_text())[net][recipe]
    np.testing.assert_allclose(train(net, recipe, "float32")[0], expected, rtol=0, atol=1e-4)


def test_running_statistics_match_pytorch():
    expected = json.loads((GOLDEN / "resnet_momentum_final_stats.json").read_text())
    _, state = train("resnet", "momentum", "float32")
    np.testing.assert_allclose(state.batch_stats["stem/unit/bn/mean"], expected["bn1.running_mean"], atol=1e-4)
    np.testing.assert_allclose(state.batch_stats["stem/unit/bn/var"], expected["bn1.running_var"], atol=1e-4)
