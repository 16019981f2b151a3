"""Freezing: for every preset and three network families, frozen variables do not change and cost no computation."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from tests.strategies.case import NETS, Case, make_config
from tljax.config import Phase
from tljax.features.frozen_network import FROZEN_STAGES
from tljax.models import params as params_lib
from tljax.models.partial_training import PartiallyTrainable
from tljax.run.plan import phase_cost
from tljax.strategies import PRESETS
from tljax.train.optimizer import OptimizerSpec, optimizer_bytes
from tljax.train.plan import SplitSizes, plan_phase
from tljax.train.state import init_state

# Arrays of optimizer state per parameter.
NUM_MOMENTS = {"sgd": 0, "momentum": 1, "nesterov": 1, "adam": 2, "adamw": 2, "rmsprop": 1}
# Layers with no trainable variable of their stage before them. (The stages of DenseNet begin with a norm.)
FIRST_LAYERS = {
    "vgg": "stem/.*|stage1/conv2|stage2/conv1",
    "resnet": ".*/block0/(unit1|shortcut)/conv|stem/.*",
    "densenet": "stem/.*",
}
SETTINGS = {"optim.weight_decay": 0.1, "optim.clip_norm": 1.0, "model.dropout": 0.2}
WIDE_NETS = {
    "vgg": ("vgg11", {"blocks": ((64, 64), (64, 64))}),
    "resnet": ("resnet8", {"depths": (1, 1), "widths": (64, 64)}),
    "densenet": ("densenet121", {"depths": (2, 2), "growth": 128, "initial": 128, "bottleneck": 2}),
}


@pytest.fixture
def make_case(tmp_path):
    return lambda preset, net, **settings: Case.make(make_config(tmp_path, preset, net, **settings))


def bits(x):
    return np.ascontiguousarray(x).view(np.uint32)


# Presets with different kinds of phases; the others repeat these kinds on the same network.
KINDS = ("feature_extraction", "freeze_last", "layers", "micro", "fitnets")
DAILY = {
    "resnet": (*KINDS, "scratch", "finetune", "micro_two_heads", "fixmatch"),
    "vgg": KINDS,
    "densenet": ("micro",),
}


def check_phases(make_case, net, presets, check):
    """Apply `check(case, plan, preset)` to every phase of the presets whose step is not checked yet."""
    # Equal specs are one program: training the head alone, for instance, is the first phase of five presets.
    checked_specs = set()
    for preset in presets:
        case = make_case(preset, net, **SETTINGS)
        for plan in case.plans:
            if plan.spec not in checked_specs:
                check(case, plan, preset)
                checked_specs.add(plan.spec)


@pytest.mark.parametrize(
    ("net", "presets"),
    [
        *(pytest.param(net, DAILY["resnet"] if net == "resnet" else KINDS, id=net) for net in NETS),
        *(pytest.param(net, PRESETS, id=f"{net}-all", marks=pytest.mark.deep) for net in NETS),
    ],
)
def test_step_has_no_gradient_of_frozen_params(make_case, net, presets):
    def check(case, plan, preset):
        # Clipping reads every gradient: if there were gradients of frozen parameters, they would be computed.
        assert count_products(case.trace_step(plan)) == expected_products(net, case, plan), preset

    check_phases(make_case, net, presets, check)


@pytest.mark.parametrize(
    ("net", "presets"),
    [
        *(pytest.param(net, presets, id=net) for net, presets in DAILY.items()),
        *(
            pytest.param(net, [p for p in PRESETS if p not in presets], id=f"{net}-others", marks=pytest.mark.deep)
            for net, presets in DAILY.items()
        ),
    ],
)
def test_only_trainable_variables_change(make_case, net, presets):
    check_phases(make_case, net, presets, check_changed_variables)


def check_changed_variables(case, plan, preset):
    """Take two steps of a phase and compare every variable with its initial value."""
    index = case.channel_index(plan)
    before = {p: np.array(v) for p, v in case.variables.items()}
    state, step_metrics = case.run(plan, 2)
    assert all(m["finite"] for m in step_metrics)
    # Optimizer state and averages exist only for trainable variables.
    assert set(state.params) == {p for p in plan.trainable if p in index or not plan.groups[p].partial}
    size = sum(before[p][..., index.get(p, slice(None))].size for p in state.params)
    assert optimizer_bytes(state.opt_state) == NUM_MOMENTS[plan.optim.name] * 4 * size
    assert set(state.ema) == (set(state.params) | set(plan.batch_stats) if plan.phase.ema_decay else set())
    frozen = plan.partition(case.variables, index)[2]
    after = plan.combine(state.params | state.batch_stats, frozen, index)
    assert after.keys() == before.keys()
    for path in before:
        changed = (bits(after[path]) != bits(before[path])).reshape(-1, before[path].shape[-1]).any(0)
        if path in index:
            assert set(np.flatnonzero(changed)) == set(index[path].tolist()), (preset, path)
        else:
            assert changed.any() == (path in (*plan.trainable, *plan.batch_stats)), (preset, path)
    # While single neurons train, running statistics stay those with which the neurons were selected.
    assert not (plan.layers and plan.batch_stats)


@pytest.mark.parametrize("preset", PRESETS)
def test_optimizer_state_covers_only_trainable_params(make_case, preset):
    case = make_case(preset, "resnet")
    for plan in case.plans:
        index = case.channel_index(plan)
        params, batch_stats, _ = jax.eval_shape(plan.partition, case.variables, index)
        sizes = {p: case.variables[p].size for p in plan.trainable if p not in index}
        sizes |= {p: case.variables[p].size // case.variables[p].shape[-1] * len(c) for p, c in index.items()}
        for name, num_moments in NUM_MOMENTS.items():
            # The spec decides about momentum, not the optimizer of the phase: "sgd" here has none.
            with_momentum = num_moments == 1 and name != "rmsprop"
            spec = dataclasses.replace(plan.spec, optimizer=OptimizerSpec(name, with_momentum, True, True))
            init = functools.partial(init_state, spec, hparams=plan.hparams)
            state = jax.eval_shape(init, params, batch_stats)
            assert optimizer_bytes(state.opt_state) == num_moments * 4 * sum(sizes.values())


def stage_order(case):
    return [*case.experiment.predictor.model.stage_names, "head"]


def layers_of(paths, order):
    """Return (stage index, path) of the layers in the stages of `order`."""
    layers = (path.removesuffix("/kernel") for path in paths if path.endswith("/kernel"))
    return [(order.index(layer.split("/")[0]), layer) for layer in layers if layer.split("/")[0] in order]


def layers_with_input_gradient(net, plan, order):
    """Return the layers whose inputs need a gradient: after a trainable parameter and before a loss."""
    trainable_stages = {order.index(path.split("/")[0]) for path in plan.trainable}
    first = min(trainable_stages)
    hint = hint_stage_of(plan)
    has_hidden = "head/hidden0/kernel" in plan.trainable

    def needs_gradient(stage_index, layer):
        if hint is not None and stage_index > order.index(hint):
            return "/hint_" in layer
        if order[stage_index] == "head":
            follows_trainable = layer == "head/dense" and has_hidden
        else:
            follows_trainable = not re.fullmatch(FIRST_LAYERS[net], layer)
        return first < stage_index or (stage_index in trainable_stages and follows_trainable)

    return [(i, layer) for i, layer in layers_of(used_paths(plan), order) if needs_gradient(i, layer)]


def hint_stage_of(plan):
    """Return the stage that a phase with only hint losses regresses; later stages have no gradient."""
    return next((p.split("/")[1][5:] for p in plan.trainable if "/hint_" in p and plan.phase.name == "hints"), None)


def used_paths(plan):
    """Return the paths of all variables except those of a frozen hint regressor."""
    return [path for path in plan.groups if "/hint_" not in path or path in plan.trainable]


def count_products(traced):
    """Return the number of convolutions and matrix products in a program."""
    text = traced.lower().as_text()
    return text.count("stablehlo.convolution") + text.count("stablehlo.dot_general")


def expected_products(net, case, plan):
    """Return the minimum number of products in a step.

    A layer has one, one more if its kernel trains, and one more if its input needs a gradient. In `micro_two_heads` the
    average before the second classifier is two products forward and two backward, if there are several locations.
    """
    order = stage_order(case)
    hint = hint_stage_of(plan)
    layers = layers_of(used_paths(plan), order)
    averages = any(p.startswith("head/source/") for p in plan.groups) and plan.layers and net != "densenet"
    count = 4 * bool(averages) + len(layers) * (1 + ("ema" in plan.spec.requires))
    count += sum(plan.groups[f"{layer}/kernel"].trainable for _, layer in layers)
    count += len(layers_with_input_gradient(net, plan, order))
    for network in plan.spec.networks:
        if network.name == FROZEN_STAGES:  # the layers of the model itself
            continue
        # A frozen network runs only up to the last stage whose features a loss needs.
        needed = [network_stage for student_stage, network_stage in network.maps if hint in (None, student_stage)]
        stages = case.experiment.networks[network.name].model.stage_names
        last = max((stages.index(stage) for stage in needed), default=0)
        stages = (*stages, "head") if network.logits else stages[: last + 1]
        count += len(layers_of(case.networks[network.name], stages))
    return count


@pytest.mark.parametrize("preset", ["distillation", "attention_transfer", "fitnets", "delta", "lwf"])
def test_frozen_network_runs_forward_up_to_last_needed_stage(make_case, preset):
    case = make_case(preset, "resnet", **{"augment.flip": True})
    for plan in case.plans:
        assert not plan.cache_plan.cached
        assert plan.spec.networks
        assert count_products(case.trace_step(plan)) == expected_products("resnet", case, plan)


@pytest.mark.parametrize("net", WIDE_NETS)
def test_step_flops_depend_on_trainable_layers(tmp_path, net, monkeypatch):
    """A gradient by kernel or input costs as many FLOPs as the layer itself, and a slice its fraction of them."""
    # Plain SGD and many images, so that the update costs little compared with the products.
    settings = {"optim.name": "sgd", "optim.clip_norm": 1.0, "train.batch_size": 36, "strategy.neurons.fraction": 0.1}
    presets = ("gradual_unfreeze", "freeze_last", "micro")
    first, *others = (Case.make(make_config(tmp_path, preset, WIDE_NETS[net], **settings)) for preset in presets)
    flops = flops_by_layer(first, monkeypatch)
    for case, plan in ((c, p) for c in (first, *others) for p in c.plans if c is first or p.phase.name != "head"):
        cost = phase_cost(case.experiment, plan)
        fractions = {layer: float(plan.groups[f"{layer}/kernel"].trainable) for layer in flops}
        fractions |= {
            layer: count / case.variables[f"{layer}/kernel"].shape[-1] for layer, count in plan.channel_counts.items()
        }
        kernel_gradients = sum(fraction * flops[layer] for layer, fraction in fractions.items())
        input_gradients = sum(flops[layer] for _, layer in layers_with_input_gradient(net, plan, stage_order(case)))
        # Not products: norms and their statistics, activations, pools, loss, clipping and the update.
        max_ratio = 1.01 if plan.phase.name == "head" else 1.06 if net == "densenet" else 1.02
        assert 1 <= cost.step_flops / (cost.forward_flops + kernel_gradients + input_gradients) < max_ratio


def flops_by_layer(case, monkeypatch):
    """Return the FLOPs of each layer's product on 36 images, as counted by the compiler."""
    input_shapes = {}
    call_layer = PartiallyTrainable.__call__
    model = case.experiment.predictor.model

    def record_shape(self, x):
        input_shapes[id(self)] = x.shape
        return call_layer(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(PartiallyTrainable, "__call__", record_shape)
        jax.eval_shape(model, np.zeros((36, 8, 8, 3), np.float32))
    flops = {}
    for _, layer in layers_of(case.variables, stage_order(case)):
        module = functools.reduce(getattr, layer.split("/"), model)
        x = jax.ShapeDtypeStruct(input_shapes[id(module)], np.float32)
        lowered = jax.jit(module.apply_kernel).lower(x, case.variables[f"{layer}/kernel"])
        flops[layer] = lowered.cost_analysis()["flops"]
    return flops


def test_frozen_batch_norm_uses_running_statistics(make_case):
    case = make_case("feature_extraction", "resnet")
    (plan,) = case.plans
    plain = params_lib.flatten_model(case.experiment.predictor.model).graphdef
    images = np.random.default_rng(2).normal(size=(4, 8, 8, 3)).astype(np.float32)

    def features(graphdef, train):
        return jax.jit(lambda x: params_lib.merge(graphdef, case.variables).features(x, train=train))(images)

    in_phase = features(plan.spec.graphdef, True)
    inference = features(plain, False)
    by_batch = features(plain, True)
    for stage, expected in inference.items():
        np.testing.assert_array_equal(in_phase[stage], expected)
    assert np.abs(by_batch["stage2"] - inference["stage2"]).max() > 0.1


def test_clipping_uses_only_trainable_gradients(make_case):
    """The first update of plain SGD is the clipped gradient of the trainable parameters."""

    def update_norm(preset, clip_norm):
        case = make_case(preset, "vgg", **{"optim.name": "sgd", "optim.clip_norm": clip_norm})
        plan = case.plans[-1]
        before = case.init_state(plan, case.step_inputs(plan))
        state, _ = case.run(plan)
        squares = sum(((np.array(v) - before.params[p]) ** 2).sum() for p, v in state.params.items())
        return float(np.sqrt(squares)) / 0.05

    for preset in ("feature_extraction", "micro"):
        norm = update_norm(preset, None)
        assert update_norm(preset, 1e-3) == pytest.approx(1e-3, rel=1e-2)
        # With the gradients of frozen parameters, the norm would be larger than this limit.
        assert update_norm(preset, 1.01 * norm) == pytest.approx(norm, rel=1e-4)


def test_lr_multipliers_scale_updates(make_case):
    case = make_case("full", "vgg", **{"optim.name": "sgd"})
    predictor = case.experiment.predictor
    rules = (("head/.*", 1.0), ("stage2/.*", 0.25), (".*", 0.0))
    updates = []
    for factor in (1.0, 4.0):
        phase = Phase("p", tuple((p, m * factor if p == "stage2/.*" else m) for p, m in rules), epochs=1.0)
        plan = plan_phase(phase, predictor, SplitSizes(16, 16, (8, 8, 3)))
        state, _ = case.run(plan)
        updates.append({p: np.array(v) - case.variables[p] for p, v in state.params.items()})
    slow, even = updates
    assert {p.split("/")[0] for p in slow} == {"stage2", "head"}
    for path in slow:
        factor = 0.25 if re.match("stage2", path) else 1.0
        np.testing.assert_allclose(slow[path], factor * even[path], rtol=2e-3, atol=1e-7)
