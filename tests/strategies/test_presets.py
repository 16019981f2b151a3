"""Presets: settings that apply to all of them, their plans, and errors for missing or invalid settings."""

import dataclasses
import json
import re

import numpy as np
import pytest

from tests.strategies.case import NETS, TEACHER, Case, make_config, write_recipe
from tljax import config as schema
from tljax.errors import UserError
from tljax.run import plan as run_plan
from tljax.run.experiment import prepare
from tljax.strategies import PRESETS


def half_sq_norm(arrays):
    return 0.5 * sum(float((np.asarray(x, np.float64) ** 2).sum()) for x in arrays)


# Tested daily: presets whose last phases differ in the trainable parameters or the kind of losses.
DAILY = ("scratch", "feature_extraction", "micro_two_heads", "fixmatch")


@pytest.mark.parametrize("preset", [pytest.param(p, marks=[pytest.mark.deep] * (p not in DAILY)) for p in PRESETS])
def test_preset_applies_penalties_smoothing_dropout(tmp_path, preset):
    settings = {"optim.l2": 0.3, "optim.l2_sp": 0.7, "optim.label_smoothing": 0.2, "model.dropout": 0.5}
    config = make_config(tmp_path, preset, "vgg", **settings | {"optim.name": "sgd", "optim.clip_norm": 0.1})
    case = Case.make(config)
    plan = case.plans[-1]
    assert plan.spec.augment == config.augment
    loss_names = [name for name, _ in plan.phase.losses]
    assert loss_names[-2:] == ["l2", "l2_sp"]
    assert plan.hparams["loss_weights"][-2:] == (0.3, 0.7)

    # If the initial values are the source values, the L2-SP distance is 0 first and then that of the previous step.
    inputs = case.step_inputs(plan)
    initial = case.init_state(plan, inputs)
    source_paths = case.experiment.source_params({p: case.variables[p] for p in plan.trainable})
    source_params = {p: initial.params[p] for p in source_paths if p in initial.params}
    from_source = dataclasses.replace(case)
    from_source.step_inputs = lambda plan: inputs._replace(source_params=source_params)
    state, _ = from_source.run(plan, 1)
    _, (first_metrics, second_metrics) = from_source.run(plan, 2)
    new_params = [p for p in initial.params if p not in source_params]
    assert new_params or preset in ("freeze_last", "layers", "micro")
    for metrics, params in ((first_metrics, initial.params), (second_metrics, state.params)):
        terms = dict(zip(loss_names, metrics["terms"], strict=True))
        new_kernels = [params[p] for p in new_params if params[p].ndim > 1]
        assert terms["l2"] == pytest.approx(half_sq_norm(new_kernels), rel=1e-5)
        distance = half_sq_norm(np.asarray(params[p]) - np.asarray(source_params[p]) for p in source_params)
        assert terms["l2_sp"] == pytest.approx(distance, rel=1e-3, abs=1e-12)
    assert bool(source_params) == (preset not in ("scratch", "feature_extraction")) == (distance > 0)
    updates = {p: np.asarray(state.params[p]) - np.asarray(initial.params[p]) for p in initial.params}
    assert np.sqrt(2 * half_sq_norm(updates.values())) == pytest.approx(0.05 * 0.1, rel=1e-3)
    for metrics in (first_metrics, second_metrics):
        assert metrics["loss"] == pytest.approx(np.dot(plan.hparams["loss_weights"], metrics["terms"]), rel=1e-5)
    if "cross_entropy" in loss_names:
        _check_smoothing_and_dropout(from_source, plan, first_metrics, loss_names.index("cross_entropy"))


def _check_smoothing_and_dropout(case, plan, first_metrics, index):
    """Check that a loss is linear in the label smoothing, and depends on the key if dropout is active."""
    by_smoothing = [case.run(plan, label_smoothing=np.float32(s))[1][0]["terms"][index] for s in (0.0, 0.2, 0.4)]
    assert by_smoothing[1] == first_metrics["terms"][index]
    assert by_smoothing[2] - by_smoothing[0] == pytest.approx(2 * (by_smoothing[1] - by_smoothing[0]), rel=1e-3)
    assert abs(by_smoothing[1] - by_smoothing[0]) > 1e-4
    _, (other_key,) = case.run(plan, key=1)
    has_dropout = any(plan.groups[p].trainable for p in plan.groups if p.startswith("head/"))
    assert (other_key["terms"][index] != first_metrics["terms"][index]) == has_dropout


# Tested daily: presets whose plans have different rows.
DAILY_PLANS = (
    "feature_extraction",
    "layers",
    "lp_ft",
    "micro",
    "micro_two_heads",
    "distillation",
    "fitnets",
    "fixmatch",
)


@pytest.mark.parametrize(
    "preset", [pytest.param(p, marks=[pytest.mark.deep] * (p not in DAILY_PLANS)) for p in PRESETS]
)
def test_plan_of_preset_writes_nothing(tmp_path, preset, console):
    settings = {"optim.l2_sp": 0.1, "workdir": str(tmp_path / "runs" / "run"), "strategy.neurons.scope": "global"}
    config = make_config(tmp_path, preset, "vgg", **settings)
    before = sorted(tmp_path.rglob("*"))
    run_plan.print_plan(config, console)
    text = console.export_text()
    for phase in prepare(config).strategy.phases:
        assert f"Phase: {phase.name}" in text
    assert "Nothing was trained or written." in text
    assert sorted(tmp_path.rglob("*")) == before
    if preset.startswith("micro"):
        assert "5 in 3 layers, the best of all layers together by random" in text
    if preset in ("distillation", "attention_transfer", "fitnets"):
        assert re.search(rf"teacher0 +{re.escape(config.strategy.teachers[0])}", text)


@pytest.mark.parametrize(
    ("preset", "settings", "message"),
    [
        ("distillation", {"strategy.teachers": ()}, r"'distillation' needs teachers: set strategy\.teachers"),
        ("fixmatch", {"data.unlabelled": 0}, r"'fixmatch' trains on unlabelled images: set data\.unlabelled"),
        (
            "attention_transfer",
            {"strategy.stage_pairs": (("stage9", "stage1"),)},
            'no stage "stage9"; did you mean "stage',
        ),
        (
            "attention_transfer",
            {"strategy.stage_pairs": (("stage1", "stag2"),)},
            'no stage "stag2"; did you mean "stage2"',
        ),
        (
            "fitnets",
            {"strategy.stage_pairs": (("stage9", "stage1"),)},
            'strategy.stage_pairs: the student has no stage "stage9" with parameters; did',
        ),
        ("fitnets", {"strategy.stage_pairs": (("stem", "stage4"), ("stage9", "stage1"))}, 'no stage "stage9"'),
        ("micro", {"strategy.neurons.layers": ("stage9/.*",)}, r'neurons\.layers: "stage9/\.\*" matches no'),
        ("micro", {"strategy.neurons.count": 9}, r"neurons\.count \(9\) is more than the 4 neurons of stage1/conv2"),
        ("lp_ft", {"strategy.losses": (("mean_teacher", 1.0),)}, r'Phase "linear probe".* but ema_decay is not set'),
        ("lp_ft", {"strategy.losses": (("cross_entrpy", 1.0),)}, 'Phase "linear probe": There is no loss'),
        ("full", {"strategy.hparams": {"lr": 1.0}}, 'strategy.hparams: "lr" is reserved'),
        ("full", {"strategy.hparams": {"rate": "high"}}, "strategy.hparams.rate must be a number, got 'high'"),
        (
            "lwf",
            {"model.out_stage": "stage1"},
            r"classifier of recipe:.* does not fit .* dense/kernel is \(16, 4\), not \(256",
        ),
        ("lwf", {"data.image_size": 16}, r"classifier of recipe:.* does not fit .* set model\.out_stage and data"),
        ("lightwash", {}, 'no strategy.name "lightwash"'),
    ],
)
def test_invalid_setting_is_one_line_error(tmp_path, preset, settings, message):
    settings = {"strategy.layers": ()} | settings
    with pytest.raises(UserError, match=message) as error:
        prepare(make_config(tmp_path, preset, "vgg", **settings))
    assert "\n" not in str(error.value)


def test_custom_phase_without_ema_decay_fails(tmp_path):
    phase = schema.Phase("custom phase", losses=(("mean_teacher", 1.0),))
    with pytest.raises(UserError, match=r'Phase "custom phase": .* average of the weights, but ema_decay is not set'):
        prepare(make_config(tmp_path, "custom", "vgg", **{"strategy.phases": (dataclasses.asdict(phase),)}))


def test_fitnets_with_two_teachers_fails(tmp_path):
    teachers = (write_recipe(tmp_path, TEACHER), write_recipe(tmp_path, NETS["vgg"]))
    with pytest.raises(UserError, match="Hints come from one teacher"):
        prepare(make_config(tmp_path, "fitnets", "vgg", **{"strategy.teachers": teachers}))


@pytest.mark.parametrize(
    ("classes", "message"),
    [((4, 5, 6, 7), "has 4 classes, but the data has 3"), ((1, 2, 4), "has the classes 1, 2, 4, but the data has")],
)
def test_teacher_with_other_classes_fails(tmp_path, classes, message):
    teacher = {"strategy.teachers": (write_recipe(tmp_path, TEACHER, classes),)}
    with pytest.raises(UserError, match=message):
        prepare(make_config(tmp_path, "distillation", "vgg", **teacher))
    # Its features do not depend on the classes.
    assert prepare(make_config(tmp_path, "attention_transfer", "vgg", **teacher)).plans


def test_lwf_source_without_classifier_fails(tmp_path):
    from flax import nnx

    from tljax import models
    from tljax.weights import export_weights
    from tljax.weights.formats import write_safetensors
    from tljax.weights.layouts import layouts

    model = models.create_model("resnet8", num_classes=0, rngs=nnx.Rngs(5))
    layout = layouts(model.family, model.config)["torchvision"]
    write_safetensors(tmp_path / "trunk.safetensors", export_weights(model, layout))
    source = {"model.weights": str(tmp_path / "trunk.safetensors"), "model.preprocess": "unit"}
    with pytest.raises(UserError, match=r"trunk\.safetensors has no classifier, and strategy\.name='lwf' needs"):
        prepare(make_config(tmp_path, "lwf", ("resnet8", {}), **source))
    assert prepare(make_config(tmp_path, "delta", ("resnet8", {}), **source)).plans


STRATEGY = """
from tljax.config import Phase

def slow(config, stages, lr):
    return [Phase("slow", (("head/.*", 1.0), (".*", {rest})), layer_decay=0.5, optim={{"lr": lr / 2}})]

def no_phases(config, stages, lr):
    return []

def misspelled(config, stages, lr):
    return [Phase("slow", optim={{"lrr": lr}})]

number = 3
"""


def test_custom_strategy_and_its_errors(tmp_path):
    path = tmp_path / "strategies.py"
    path.write_text(STRATEGY.format(rest=1.0))
    settings = {"strategy.layer_decay": 0.8, "optim.lr": 0.01}
    experiment = prepare(make_config(tmp_path, f"{path}:slow", "vgg", **settings))
    (phase,) = experiment.strategy.phases
    assert (phase.optim, phase.layer_decay) == ({"lr": 0.005}, pytest.approx(0.4))
    assert list(experiment.inputs["files"]) == [f"{path}:slow"]
    for name, message in (
        ("solw", 'has no strategy "solw"; did you mean "slow"'),
        ("no_phases", r"must return a list of tljax.config.Phase, got \[\]"),
        ("misspelled", r'no field "strategy.phases\[slow\].optim.lrr"; did you mean "lr"'),
        ("number", "must be a function, got int"),
    ):
        with pytest.raises(UserError, match=message) as error:
            prepare(make_config(tmp_path, f"{path}:{name}", "vgg"))
        assert "\n" not in str(error.value)
    json.dumps(experiment.inputs)
