"""What every preset honours, what its plan shows, and what is said where something is missing or wrong."""

import dataclasses
import json

import numpy as np
import pytest

from tests.strategies.case import NETS, TEACHER, Case, config_of, recipe
from tljax import config as schema
from tljax.errors import UserError
from tljax.run import plan as planning
from tljax.run.experiment import prepare
from tljax.strategies import PRESETS


def half_squares(leaves):
    return 0.5 * sum(float((np.asarray(x, np.float64) ** 2).sum()) for x in leaves)


# Every day, presets whose last phases differ in what is trainable or in their objectives' kind.
EVERYDAY = ("scratch", "feature_extraction", "micro_two_heads", "fixmatch")


@pytest.mark.parametrize("preset", [pytest.param(p, marks=[pytest.mark.deep] * (p not in EVERYDAY)) for p in PRESETS])
def test_penalties_smoothing_and_dropout_are_honoured(tmp_path, preset):
    settings = {"optim.l2": 0.3, "optim.l2_sp": 0.7, "optim.label_smoothing": 0.2, "model.dropout": 0.5}
    config = config_of(tmp_path, preset, "vgg", **settings | {"optim.name": "sgd", "optim.clip_norm": 0.1})
    case = Case.make(config)
    plan = case.plans[-1]
    assert plan.spec.augment == config.augment
    names = [name for name, _ in plan.phase.losses]
    assert names[-2:] == ["l2", "l2_sp"]
    assert plan.hparams["loss_weights"][-2:] == (0.3, 0.7)

    # From the source values themselves, the distance is 0 at first; then it is that of the step before.
    given = case.given(plan)
    start = case.start(plan, given)
    origin = case.prepared.source_params({p: case.leaves[p] for p in plan.trainable})
    origin = {p: start.params[p] for p in origin if p in start.params}
    own = dataclasses.replace(case)
    own.given = lambda plan: given._replace(source_params=origin)
    first, _ = own.run(plan, 1)
    _, (before, after) = own.run(plan, 2)
    new = [p for p in start.params if p not in origin]
    assert new or preset in ("freeze_last", "layers", "micro")
    for terms, leaves in ((before, start.params), (after, first.params)):
        terms = dict(zip(names, terms["terms"], strict=True))
        assert terms["l2"] == pytest.approx(half_squares(leaves[p] for p in new if leaves[p].ndim > 1), rel=1e-5)
        away = half_squares(np.asarray(leaves[p]) - np.asarray(origin[p]) for p in origin)
        assert terms["l2_sp"] == pytest.approx(away, rel=1e-3, abs=1e-12)
    assert bool(origin) == (preset not in ("scratch", "feature_extraction")) == (away > 0)
    moved = {p: np.asarray(first.params[p]) - np.asarray(start.params[p]) for p in start.params}
    assert np.sqrt(2 * half_squares(moved.values())) == pytest.approx(0.05 * 0.1, rel=1e-3)
    for metrics in (before, after):
        assert metrics["loss"] == pytest.approx(np.dot(plan.hparams["loss_weights"], metrics["terms"]), rel=1e-5)

    # A straight line in the share of the label that is spread, and another loss under another key where units drop.
    if "cross_entropy" in names:
        place = names.index("cross_entropy")
        at = [own.run(plan, label_smoothing=np.float32(s))[1][0]["terms"][place] for s in (0.0, 0.2, 0.4)]
        assert at[1] == before["terms"][place]
        assert at[2] - at[0] == pytest.approx(2 * (at[1] - at[0]), rel=1e-3)
        assert abs(at[1] - at[0]) > 1e-4
        _, (other,) = own.run(plan, key=1)
        drops = any(plan.groups[p].trainable for p in plan.groups if p.startswith("head/"))
        assert (other["terms"][place] != before["terms"][place]) == drops


# Every day, presets whose plans have different rows.
PLANNED = ("feature_extraction", "layers", "lp_ft", "micro", "micro_two_heads", "distillation", "fitnets", "fixmatch")


@pytest.mark.parametrize("preset", [pytest.param(p, marks=[pytest.mark.deep] * (p not in PLANNED)) for p in PRESETS])
def test_plan_shows_and_costs_every_preset_and_writes_nothing(tmp_path, preset, console):
    settings = {"optim.l2_sp": 0.1, "workdir": str(tmp_path / "runs" / "run"), "strategy.neurons.scope": "global"}
    config = config_of(tmp_path, preset, "vgg", **settings)
    before = sorted(tmp_path.rglob("*"))
    planning.show(config, console)
    text = console.export_text()
    for phase in prepare(config).strategy.phases:
        assert f"Phase: {phase.name}" in text
    assert "Nothing was trained or written." in text
    assert sorted(tmp_path.rglob("*")) == before
    if preset.startswith("micro"):
        assert "5 in 3 layers, best of all layers together by random" in text
    if preset in ("distillation", "attention_transfer", "fitnets"):
        assert f"teacher0            {config.strategy.teachers[0]}" in text


@pytest.mark.parametrize(
    ("preset", "change", "words"),
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
            'strategy.stage_pairs: "stage9" is no stage that learns; did',
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
        ("lwf", {"data.image_size": 16}, r"classifier of recipe:.* does not fit .* leave model\.out_stage and data"),
        ("lightwash", {}, 'no strategy.name "lightwash"'),
    ],
)
def test_what_is_missing_or_wrong_is_one_sentence(tmp_path, preset, change, words):
    change = {"strategy.layers": ()} | change
    with pytest.raises(UserError, match=words) as error:
        prepare(config_of(tmp_path, preset, "vgg", **change))
    assert "\n" not in str(error.value)


def test_a_custom_phase_without_an_average_and_hints_of_two_teachers(tmp_path):
    phase = schema.Phase("tame", losses=(("mean_teacher", 1.0),))
    with pytest.raises(UserError, match=r'Phase "tame": .* average of the weights, but ema_decay is not set'):
        prepare(config_of(tmp_path, "custom", "vgg", **{"strategy.phases": (dataclasses.asdict(phase),)}))
    two = (recipe(tmp_path, TEACHER), recipe(tmp_path, NETS["vgg"]))
    with pytest.raises(UserError, match="Hints come from one teacher"):
        prepare(config_of(tmp_path, "fitnets", "vgg", **{"strategy.teachers": two}))


@pytest.mark.parametrize(
    ("classes", "words"),
    [((4, 5, 6, 7), "has 4 classes, but the data has 3"), ((1, 2, 4), "has the classes 1, 2, 4, but the data has")],
)
def test_a_teacher_of_other_classes(tmp_path, classes, words):
    teacher = {"strategy.teachers": (recipe(tmp_path, TEACHER, classes),)}
    with pytest.raises(UserError, match=words):
        prepare(config_of(tmp_path, "distillation", "vgg", **teacher))
    # Its maps are none the worse.
    assert prepare(config_of(tmp_path, "attention_transfer", "vgg", **teacher)).plans


def test_a_source_without_a_classifier_has_no_answers_to_keep(tmp_path):
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
        prepare(config_of(tmp_path, "lwf", ("resnet8", {}), **source))
    assert prepare(config_of(tmp_path, "delta", ("resnet8", {}), **source)).plans


STRATEGY = """
from tljax.config import Phase

def mine(config, stages, lr):
    return [Phase("mine", (("head/.*", 1.0), (".*", {rest})), layer_decay=0.5, optim={{"lr": lr / 2}})]

def none(config, stages, lr):
    return []

def slip(config, stages, lr):
    return [Phase("mine", optim={{"lrr": lr}})]

three = 3
"""


def test_a_strategy_of_the_users_own_and_its_slips(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(STRATEGY.format(rest=1.0))
    prepared = prepare(config_of(tmp_path, f"{path}:mine", "vgg", **{"strategy.layer_decay": 0.8, "optim.lr": 0.01}))
    (phase,) = prepared.strategy.phases
    assert (phase.optim, phase.layer_decay) == ({"lr": 0.005}, pytest.approx(0.4))
    assert list(prepared.inputs["files"]) == [f"{path}:mine"]
    for name, words in (
        ("mein", 'has no strategy "mein"; did you mean "mine"'),
        ("none", r"must return a list of tljax.config.Phase, got \[\]"),
        ("slip", r'no field "strategy.phases\[mine\].optim.lrr"; did you mean "lr"'),
        ("three", "must be a function, got int"),
    ):
        with pytest.raises(UserError, match=words) as error:
            prepare(config_of(tmp_path, f"{path}:{name}", "vgg"))
        assert "\n" not in str(error.value)
    json.dumps(prepared.inputs)
