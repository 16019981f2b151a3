"""Freezing is provable: for every preset, on three families, what is frozen does not move and costs nothing."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from tests.strategies.case import NETS, Case, config_of
from tljax.config import Phase
from tljax.features.frozen_network import FROZEN_STAGES
from tljax.models import params as params_lib
from tljax.models.partial_training import PartiallyTrainable
from tljax.run.plan import phase_cost
from tljax.strategies import PRESETS
from tljax.train.optimizer import OptimizerSpec, optimizer_bytes
from tljax.train.plan import SplitSizes, plan_phase
from tljax.train.state import init_state

MOMENTS = {"sgd": 0, "momentum": 1, "nesterov": 1, "adam": 2, "adamw": 2, "rmsprop": 1}
# The layers before which nothing of their stage learns. (A stage of DenseNet's begins with a norm.)
FIRST = {
    "vgg": "stem/.*|stage1/conv2|stage2/conv1",
    "resnet": ".*/block0/(unit1|shortcut)/conv|stem/.*",
    "densenet": "stem/.*",
}
SETTINGS = {"optim.weight_decay": 0.1, "optim.clip_norm": 1.0, "model.dropout": 0.2}
WIDE = {
    "vgg": ("vgg11", {"blocks": ((64, 64), (64, 64))}),
    "resnet": ("resnet8", {"depths": (1, 1), "widths": (64, 64)}),
    "densenet": ("densenet121", {"depths": (2, 2), "growth": 128, "initial": 128, "bottleneck": 2}),
}


@pytest.fixture
def make(tmp_path):
    return lambda preset, net, **settings: Case.make(config_of(tmp_path, preset, net, **settings))


def bits(x):
    return np.ascontiguousarray(x).view(np.uint32)


# What is no other kind of phase than these on the same network, repeats it on the others.
KINDS = ("feature_extraction", "freeze_last", "layers", "micro", "fitnets")
STEPPED = {
    "resnet": (*KINDS, "scratch", "finetune", "micro_two_heads", "fixmatch"),
    "vgg": KINDS,
    "densenet": ("micro",),
}


@pytest.mark.parametrize(
    ("net", "presets"),
    [
        *(pytest.param(net, STEPPED["resnet"] if net == "resnet" else KINDS, id=net) for net in NETS),
        *(pytest.param(net, PRESETS, id=f"{net}-all", marks=pytest.mark.deep) for net in NETS),
    ],
)
def test_a_step_computes_no_gradient_of_what_is_frozen(make, net, presets):
    proven = set()
    for preset in presets:
        case = make(preset, net, **SETTINGS)
        for plan in case.plans:
            if plan.spec not in proven:
                # Clipping reads every gradient that there is: were there frozen ones, they would be computed.
                assert products_in(case.traced(plan)) == products(net, case, plan), preset
                proven.add(plan.spec)


@pytest.mark.parametrize(
    ("net", "presets"),
    [
        *(pytest.param(net, presets, id=net) for net, presets in STEPPED.items()),
        *(
            pytest.param(net, [p for p in PRESETS if p not in presets], id=f"{net}-others", marks=pytest.mark.deep)
            for net, presets in STEPPED.items()
        ),
    ],
)
def test_what_learns_moves_and_what_is_frozen_keeps_its_bits(make, net, presets):
    # Equal specs are one program; the head alone, for instance, is the first phase of five presets.
    proven = set()
    for preset in presets:
        case = make(preset, net, **SETTINGS)
        for plan in case.plans:
            if plan.spec not in proven:
                prove(case, plan, preset)
                proven.add(plan.spec)


def prove(case, plan, preset):
    """Takes two steps of a phase and holds every parameter against what it was before."""
    index, before = case.index(plan), {p: np.array(v) for p, v in case.leaves.items()}
    state, metrics = case.run(plan, 2)
    assert all(m["finite"] for m in metrics)
    # Numbers exist for nothing but what learns.
    assert set(state.params) == {p for p in plan.trainable if p in index or not plan.groups[p].partial}
    numbers = sum(before[p][..., index.get(p, slice(None))].size for p in state.params)
    assert optimizer_bytes(state.opt_state) == MOMENTS[plan.optim.name] * 4 * numbers
    assert set(state.ema) == (set(state.params) | set(plan.batch_stats) if plan.phase.ema_decay else set())
    after = plan.combine(state.params | state.batch_stats, plan.partition(case.leaves, index)[2], index)
    assert after.keys() == before.keys()
    for path in before:
        changed = (bits(after[path]) != bits(before[path])).reshape(-1, before[path].shape[-1]).any(0)
        if path in index:
            assert set(np.flatnonzero(changed)) == set(index[path].tolist()), (preset, path)
        else:
            assert changed.any() == (path in (*plan.trainable, *plan.batch_stats)), (preset, path)
    # Single neurons learn under the statistics that they were chosen with.
    assert not (plan.layers and plan.batch_stats)


@pytest.mark.parametrize("preset", PRESETS)
def test_optimizer_state_is_what_the_learning_leaves_need_to_the_byte(make, preset):
    case = make(preset, "resnet")
    for plan in case.plans:
        index = case.index(plan)
        learned, moving, _ = jax.eval_shape(plan.partition, case.leaves, index)
        sizes = {p: case.leaves[p].size for p in plan.trainable if p not in index}
        sizes |= {p: case.leaves[p].size // case.leaves[p].shape[-1] * len(channels) for p, channels in index.items()}
        for name, moments in MOMENTS.items():
            # Nothing else is in the spec and the numbers: `sgd` here has no momentum, whatever the phase says.
            with_momentum = OptimizerSpec(name, moments == 1 and name != "rmsprop", True, True)
            spec = dataclasses.replace(plan.spec, optimizer=with_momentum)
            state = jax.eval_shape(lambda a, b, s=spec, h=plan.hparams: init_state(s, a, b, h), learned, moving)
            assert optimizer_bytes(state.opt_state) == moments * 4 * sum(sizes.values())


def order_of(case):
    return [*case.prepared.predictor.model.stage_names, "head"]


def layers_of(leaves, order):
    """(place in the order, path) of the layers of stages in `order`."""
    layers = (path.removesuffix("/kernel") for path in leaves if path.endswith("/kernel"))
    return [(order.index(layer.split("/")[0]), layer) for layer in layers if layer.split("/")[0] in order]


def between(net, plan, order):
    """The layers whose inputs need a gradient: a learning leaf stands before them, and a loss behind."""
    learning = {order.index(path.split("/")[0]) for path in plan.trainable}
    first, hint = min(learning), hint_of(plan)

    def needed(place, layer):
        if hint is not None and place > order.index(hint):
            return "/hint_" in layer
        own = not re.fullmatch(FIRST[net], layer) if order[place] != "head" else layer == "head/dense" and hidden
        return first < place or (place in learning and own)

    hidden = "head/hidden0/kernel" in plan.trainable
    return [(place, layer) for place, layer in layers_of(used(plan), order) if needed(place, layer)]


def hint_of(plan):
    """The stage that a phase of hints alone regresses, behind which nothing has a gradient."""
    return next((p.split("/")[1][5:] for p in plan.trainable if "/hint_" in p and plan.phase.name == "hints"), None)


def used(plan):
    """Paths of all leaves but those of a frozen regressor."""
    return [path for path in plan.groups if "/hint_" not in path or path in plan.trainable]


def products_in(traced):
    """How many convolutions and products of matrices there are in a program."""
    text = traced.lower().as_text()
    return text.count("stablehlo.convolution") + text.count("stablehlo.dot_general")


def products(net, case, plan):
    """How many of them a step needs at the least: a layer's one, one more if its kernel or the map before it learns.

    The second output of `micro_two_heads` averages a map of more than one place by two, and two lead back.
    """
    order, hint = order_of(case), hint_of(plan)
    layers = layers_of(used(plan), order)
    averages = any(p.startswith("head/source/") for p in plan.groups) and plan.layers and net != "densenet"
    count = 4 * bool(averages) + len(layers) * (1 + ("ema" in plan.spec.requires))
    count += sum(plan.groups[f"{layer}/kernel"].trainable for _, layer in layers) + len(between(net, plan, order))
    for network in plan.spec.networks:
        if network.name == FROZEN_STAGES:  # the model's own layers
            continue
        # A network that is looked at is run as far as the last map that an objective asks for.
        wanted = [theirs for ours, theirs in network.maps if hint in (None, ours)]
        stages = case.prepared.networks[network.name].model.stage_names
        deepest = max((stages.index(stage) for stage in wanted), default=0)
        stages = (*stages, "head") if network.logits else stages[: deepest + 1]
        count += len(layers_of(case.observed[network.name], stages))
    return count


@pytest.mark.parametrize("preset", ["distillation", "attention_transfer", "fitnets", "delta", "lwf"])
def test_a_network_that_is_looked_at_is_run_forward_once_and_no_further_than_wanted(make, preset):
    case = make(preset, "resnet", **{"augment.flip": True})
    for plan in case.plans:
        assert not plan.cache_plan.cached
        assert plan.spec.networks
        assert products_in(case.traced(plan)) == products("resnet", case, plan)


@pytest.mark.parametrize("net", WIDE)
def test_a_step_costs_what_learns(tmp_path, net, monkeypatch):
    """The compiler's count: a layer's gradient by kernel or map costs what the layer costs, a part of it a part."""
    # Plain descent and many pictures, beside whose products the update is nothing.
    settings = {"optim.name": "sgd", "optim.clip_norm": 1.0, "train.batch_size": 36, "strategy.neurons.fraction": 0.1}
    presets = ("gradual_unfreeze", "freeze_last", "micro")
    first, *others = (Case.make(config_of(tmp_path, preset, WIDE[net], **settings)) for preset in presets)
    costs = flops_of_layers(first, monkeypatch)
    for case, plan in ((c, p) for c in (first, *others) for p in c.plans if c is first or p.phase.name != "head"):
        found = phase_cost(case.prepared, plan)
        shares = {layer: float(plan.groups[f"{layer}/kernel"].trainable) for layer in costs}
        shares |= {
            layer: count / case.leaves[f"{layer}/kernel"].shape[-1] for layer, count in plan.channel_counts.items()
        }
        kernels = sum(share * costs[layer] for layer, share in shares.items())
        maps = sum(costs[layer] for _, layer in between(net, plan, order_of(case)))
        # What is not a product: norms and their statistics, activations, pools, loss, clipping and the update.
        most = 1.01 if plan.phase.name == "head" else 1.06 if net == "densenet" else 1.02
        assert 1 <= found.step_flops / (found.forward_flops + kernels + maps) < most


def flops_of_layers(case, monkeypatch):
    """What each layer's product on 36 pictures costs, by the compiler's count."""
    inputs, whole, model = {}, PartiallyTrainable.__call__, case.prepared.predictor.model
    with monkeypatch.context() as patch:
        patch.setattr(
            PartiallyTrainable, "__call__", lambda self, x: inputs.__setitem__(id(self), x.shape) or whole(self, x)
        )
        jax.eval_shape(model, np.zeros((36, 8, 8, 3), np.float32))
    costs = {}
    for _, layer in layers_of(case.leaves, order_of(case)):
        module = functools.reduce(getattr, layer.split("/"), model)
        x = jax.ShapeDtypeStruct(inputs[id(module)], np.float32)
        costs[layer] = jax.jit(module.apply_kernel).lower(x, case.leaves[f"{layer}/kernel"]).cost_analysis()["flops"]
    return costs


def test_a_frozen_batch_norm_uses_its_running_statistics(make):
    case = make("feature_extraction", "resnet")
    (plan,), model = case.plans, case.prepared.predictor.model
    plain, moving = params_lib.flatten_model(model).graphdef, case.leaves
    images = np.random.default_rng(2).normal(size=(4, 8, 8, 3)).astype(np.float32)

    def features(graphdef, train):
        return jax.jit(lambda x: params_lib.merge(graphdef, moving).features(x, train=train))(images)

    in_phase, inference, by_batch = features(plan.spec.graphdef, True), features(plain, False), features(plain, True)
    for stage, maps in inference.items():
        np.testing.assert_array_equal(in_phase[stage], maps)
    assert np.abs(by_batch["stage2"] - inference["stage2"]).max() > 0.1


def test_clipping_sees_the_learning_leaves_alone(make):
    """The first update of plain descent is the clipped gradient of what is trainable, and of nothing else."""

    def moved(preset, clip_norm):
        case = make(preset, "vgg", **{"optim.name": "sgd", "optim.clip_norm": clip_norm})
        plan = case.plans[-1]
        before = case.start(plan, case.given(plan))
        state, _ = case.run(plan)
        squares = sum(((np.array(v) - before.params[p]) ** 2).sum() for p, v in state.params.items())
        return float(np.sqrt(squares)) / 0.05

    for preset in ("feature_extraction", "micro"):
        whole = moved(preset, None)
        assert moved(preset, 1e-3) == pytest.approx(1e-3, rel=1e-2)
        # With the gradients of frozen parameters, the norm would be above this.
        assert moved(preset, 1.01 * whole) == pytest.approx(whole, rel=1e-4)


def test_multipliers_scale_the_update_of_their_leaves(make):
    case = make("full", "vgg", **{"optim.name": "sgd"})
    predictor = case.prepared.predictor
    rules = (("head/.*", 1.0), ("stage2/.*", 0.25), (".*", 0.0))
    moved = []
    for factor in (1.0, 4.0):
        phase = Phase("p", tuple((p, m * factor if p == "stage2/.*" else m) for p, m in rules), epochs=1.0)
        plan = plan_phase(phase, predictor, SplitSizes(16, 16, (8, 8, 3)))
        state, _ = case.run(plan)
        moved.append({p: np.array(v) - case.leaves[p] for p, v in state.params.items()})
    slow, even = moved
    assert {p.split("/")[0] for p in slow} == {"stage2", "head"}
    for path in slow:
        factor = 0.25 if re.match("stage2", path) else 1.0
        np.testing.assert_allclose(slow[path], factor * even[path], rtol=2e-3, atol=1e-7)
