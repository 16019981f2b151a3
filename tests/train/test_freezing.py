"""Freezing is provable: for every preset, on networks with BatchNorm and dropout, what is frozen does not move."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from flax import nnx

from tljax import models
from tljax.config import Config, Phase, StrategyConfig, override
from tljax.models import resnet, vgg
from tljax.models import state as leaves_of
from tljax.strategies import PRESETS, resolve
from tljax.train.loop import optimizer_bytes
from tljax.train.phases import plan_phase
from tljax.train.step import init_state, make_train_step
from tljax.weights import PRESETS as PREPROCESS

NETS = {
    "resnet": (
        resnet.Variant((1, 1), (4, 6), bottleneck=False, small=True),
        {"norm": "batch", "hidden": (5,), "dropout": 0.5},
    ),
    "vgg": (vgg.Variant(((4,), (5, 5))), {"pool": "flatten", "dropout": 0.5}),
}
MOMENTS = {"sgd": 0, "momentum": 1, "nesterov": 1, "adam": 2, "adamw": 2, "rmsprop": 1}


def build(net):
    variant, head = NETS[net]
    return models.build(variant, num_classes=3, image_size=8, rngs=nnx.Rngs(1), **head)


def plans_of(net, preset, **optim):
    layers = ("stage2/.*",) if preset == "layers" else ()
    config = Config(strategy=StrategyConfig(name=preset, layers=layers))
    settings = {"train.batch_size": 4, **{f"optim.{k}": v for k, v in optim.items()}}
    config = override(dataclasses.replace(config, strategy=StrategyConfig(name="scratch")), settings)
    config = dataclasses.replace(config, strategy=StrategyConfig(name=preset, layers=layers))
    model = build(net)
    params = leaves_of.split(model).params
    stages = [s for s in model.stage_names if any(p.startswith(f"{s}/") for p in params)]
    phases = resolve(config, stages).phases
    return model, [plan_phase(config, p, model, 16, PREPROCESS["unit"]) for p in phases]


def run_phase(plan, leaves, steps=3):
    learned, moving, frozen = plan.take(leaves, {})
    state, step = init_state(plan.spec, learned, moving, plan.hyper), make_train_step(plan.spec)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        batch = {"image": rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8), "label": rng.integers(0, 3, 4)}
        state, _ = step(state, frozen, batch, plan.hyper | {"lr": 0.1, "progress": 0.0}, jax.random.key(0))
    return state, state.learned | state.moving | frozen


def copies(leaves):
    return {p: np.array(v) for p, v in leaves.items()}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("net", NETS)
def test_what_learns_moves_and_what_is_frozen_keeps_its_bits(net, preset):
    model, plans = plans_of(net, preset, name="adam", weight_decay=0.1, clip_norm=1.0)
    _, params, stats = leaves_of.split(model)
    leaves = params | stats
    for plan in plans:
        before = copies(leaves)
        state, leaves = run_phase(plan, {p: jax.numpy.array(v) for p, v in before.items()})
        after = copies(leaves)
        changed = {p for p in after if (after[p] != before[p]).any()}
        assert changed == set(plan.learned) | set(plan.moving)
        assert not changed & set(plan.frozen)
        assert set(state.learned) == set(plan.learned)


@pytest.mark.parametrize("optimizer", MOMENTS)
@pytest.mark.parametrize("preset", PRESETS)
def test_optimizer_state_is_what_the_learning_leaves_need_to_the_byte(preset, optimizer):
    model, plans = plans_of("resnet", preset, name=optimizer)
    _, params, stats = leaves_of.split(model)
    for plan in plans:
        learned, moving, _ = plan.take(params | stats, {})
        state = jax.eval_shape(lambda a, b, plan=plan: init_state(plan.spec, a, b, plan.hyper), learned, moving)
        numbers = sum(v.size for v in learned.values())
        assert optimizer_bytes(state.opt) == MOMENTS[optimizer] * 4 * numbers


def test_a_frozen_batch_norm_uses_its_running_statistics():
    model, (plan,) = plans_of("resnet", "feature_extraction")
    _, params, stats = leaves_of.split(model)
    rng = np.random.default_rng(2)
    leaves = params | {p: v + rng.uniform(0, 1, v.shape).astype(np.float32) for p, v in stats.items()}
    stats = {p: leaves[p] for p in stats}
    images = rng.normal(size=(4, 8, 8, 3)).astype(np.float32)
    in_phase = leaves_of.merge(plan.spec.graphdef, params | stats).features(images, train=True)
    inference = leaves_of.merge(leaves_of.split(model).graphdef, params | stats).features(images, train=False)
    for stage, maps in inference.items():
        np.testing.assert_array_equal(in_phase[stage], maps)
    by_batch = leaves_of.merge(leaves_of.split(model).graphdef, params | stats).features(images, train=True)
    assert np.abs(by_batch["stage2"] - inference["stage2"]).max() > 0.1


def test_the_step_never_pays_for_a_frozen_gradient():
    costs = {}
    for preset in ("feature_extraction", "full"):
        # Clipping reads every gradient there is: were there frozen ones, they would be computed.
        model, (plan,) = plans_of("vgg", preset, clip_norm=1.0)
        _, params, stats = leaves_of.split(model)
        learned, moving, frozen = plan.take(params | stats, {})
        state = init_state(plan.spec, learned, moving, plan.hyper)
        batch = {"image": np.zeros((4, 8, 8, 3), np.uint8), "label": np.zeros(4, int)}
        lowered = make_train_step(plan.spec).lower(
            state, frozen, batch, plan.hyper | {"lr": 0.1, "progress": 0.0}, jax.random.key(0)
        )
        costs[preset] = lowered.cost_analysis()["flops"]
        forward = jax.jit(lambda x, model=model: model(x)).lower(np.zeros((4, 8, 8, 3), np.float32))
        costs["forward"] = forward.cost_analysis()["flops"]
    # What the head's own gradient, loss, clipping and update cost; the trunk's backward pass is most of the rest.
    assert costs["feature_extraction"] < 1.15 * costs["forward"]
    assert costs["full"] > 2.2 * costs["forward"]


def test_clipping_sees_the_learning_leaves_alone():
    """With the head alone learning, the update is the clipped gradient of the head."""
    model, (plan,) = plans_of("vgg", "feature_extraction", name="sgd", clip_norm=0.01)
    _, params, _ = leaves_of.split(model)
    before = copies(params)
    state, _ = run_phase(plan, {p: jax.numpy.array(v) for p, v in before.items()}, steps=1)
    moved = np.sqrt(sum(((np.array(v) - before[p]) ** 2).sum() for p, v in state.learned.items()))
    assert moved == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_multipliers_scale_the_update_of_their_leaves():
    phase = Phase("p", (("head/.*", 1.0), ("stage2/.*", 0.25), (".*", 0.0)), epochs=1.0)
    model = build("vgg")
    settings = {"strategy.name": "scratch", "train.batch_size": 4, "optim.name": "sgd"}
    config = override(Config(), settings)
    slow = plan_phase(config, phase, model, 16, PREPROCESS["unit"])
    even = dataclasses.replace(phase, rules=tuple((p, float(m > 0)) for p, m in phase.rules))
    fast = plan_phase(config, even, model, 16, PREPROCESS["unit"])
    _, params, _ = leaves_of.split(model)
    before = copies(params)
    a = run_phase(slow, {p: jax.numpy.array(v) for p, v in before.items()}, steps=1)[0].learned
    b = run_phase(fast, {p: jax.numpy.array(v) for p, v in before.items()}, steps=1)[0].learned
    for path in a:
        factor = 0.25 if re.match("stage2", path) else 1.0
        np.testing.assert_allclose(a[path] - before[path], factor * (b[path] - before[path]), rtol=2e-3, atol=1e-7)
