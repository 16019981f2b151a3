"""The config schema: round trips, and one-line errors for invalid input."""

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tljax import config as schema
from tljax.config import Config, Phase, override, parse, to_dict
from tljax.errors import UserError
from tljax.run.workdir import config_hash, diff_configs

INVALID = [
    ({"optim.lrr": 1.0}, 'no field "optim.lrr"; did you mean "optim.lr"?'),
    ({"optim.lr": -1.0}, "optim.lr must be more than 0, got -1.0."),
    ({"optim.lr": float("inf")}, "optim.lr must be a finite number, got inf."),
    ({"optim.lr": "fast"}, "optim.lr must be of type float, got 'fast'."),
    ({"train.batch_size": 2.5}, "train.batch_size must be of type int, got 2.5."),
    ({"train.batch_size": True}, "train.batch_size must be of type int, got True."),
    ({"optim.name": "admaw"}, "optim.name cannot be 'admaw'; did you mean \"adamw\"?"),
    ({"data.classes": (1, 1)}, "two or more different classes"),
    ({"data.valid_fraction": 1.0}, "less than 1"),
    ({"optim.momentum": 0.9}, "optim.momentum has no effect with optim.name='adam'"),
    ({"optim.name": "nesterov", "optim.momentum": 0.0}, "needs optim.momentum above 0"),
    ({"optim.schedule": "step"}, "needs optim.step_epochs"),
    ({"optim.warmup_epochs": 99.0}, "must be shorter than train.epochs"),
    ({"data.split": "first_per_class"}, "needs data.labels_per_class"),
    ({"strategy.name": "lp_ft"}, "adapts a pretrained network, but model.weights is not set"),
    ({"strategy.name": "custom"}, "go together"),
    ({"strategy.name": "layers", "model.weights": "x"}, "needs strategy.layers"),
    ({"data.classes": (0, 1), "model.num_classes": 3}, "differs from the 2 data.classes"),
    ({"sweep": {"optim.lrr": [1]}}, 'sweep cannot vary "optim.lrr"; did you mean "optim.lr"?'),
    ({"sweep": {"optim.lr": []}}, "must be a list of one or more values"),
    ({"sweep": {"method": {"a": {"optim.lrr": 1}}}}, 'sweep cannot vary "optim.lrr"; did you mean "optim.lr"?'),
    ({"sweep": {"method": {"a": 1}}}, "must be {name: {dotted field: value}}"),
    ({"sweep": {"optim.lr": {"a": {"seed": 1}}}}, "because optim.lr is a field"),
]


@pytest.mark.parametrize(("settings", "message"), INVALID)
def test_invalid_setting_is_one_line_error(settings, message):
    with pytest.raises(UserError) as error:
        override(Config(), {"strategy.name": "scratch", **settings})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_default_of_every_field_is_valid():
    scratch = override(Config(), {"strategy.name": "scratch"})
    for name in schema.field_names():
        default = scratch
        for part in name.split("."):
            default = getattr(default, part)
        assert override(scratch, {name: default}) == scratch, name
        assert f"| `{name}` |" in schema.schema_table()


def test_stable_field_names():
    names = schema.field_names()
    stable = """
        seed workdir data.name data.path data.classes data.labels_per_class data.valid_fraction data.image_size
        model.backbone model.weights model.preprocess model.head model.num_classes strategy.name strategy.phases
        optim.name optim.lr optim.schedule optim.warmup_epochs optim.weight_decay optim.momentum optim.clip_norm
        optim.label_smoothing train.batch_size train.epochs train.patience_epochs train.compute_dtype sweep
    """
    for name in stable.split():
        assert name in names


def test_config_dict_round_trip():
    c = schema.default()
    c.strategy.name = "custom"
    c.strategy.phases = (Phase("a", (("head/.*", 1), (".*", 0)), epochs=2, optim={"lr": 0.5}),)
    c.sweep = {"optim.lr": [0.1, 0.2], "seed": range(3)}
    parsed = parse(c)
    assert parsed.strategy.phases[0].rules == (("head/.*", 1.0), (".*", 0.0))
    assert parsed.sweep == {"optim.lr": [0.1, 0.2], "seed": [0, 1, 2]}
    assert parse(to_dict(parsed)) == parsed


def test_misspelled_field_of_config_dict_names_nearest():
    with pytest.raises(AttributeError, match='Did you mean "weight_decay"'):
        schema.default().optim.weight_decy = 0.1


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"lrr": 1.0}, 'no field "strategy.phases[a].optim.lrr"; did you mean "lr"'),
        ({"lr": -1.0}, "strategy.phases[a].optim.lr must be more than 0"),
        ({"name": "adam"}, "strategy.phases[a].optim.momentum has no effect"),
    ],
)
def test_optim_of_phase_is_checked_with_optim_of_run(optim, message):
    phase = {"name": "a", "optim": optim}
    settings = {"optim.name": "momentum", "optim.momentum": 0.8}
    with pytest.raises(UserError, match=re.escape(message)):
        override(Config(), {"strategy.name": "custom", "strategy.phases": [phase], **settings})


@given(
    lr=st.floats(1e-8, 10),
    smoothing=st.floats(0, 0.99),
    epochs=st.floats(0.1, 1e4),
    seed=st.integers(0, 2**31),
    classes=st.lists(st.integers(0, 50), min_size=2, max_size=6, unique=True),
)
def test_random_config_round_trip_and_hash(lr, smoothing, epochs, seed, classes):
    settings = {
        "strategy.name": "scratch",
        "optim.lr": lr,
        "optim.label_smoothing": smoothing,
        "train.epochs": epochs,
        "seed": seed,
        "data.classes": classes,
    }
    config = override(Config(), settings)
    assert parse(to_dict(config)) == config
    assert config_hash(config) != config_hash(override(config, {"seed": seed + 1}))
    assert config_hash(config) == config_hash(override(config, {"workdir": "elsewhere", "report.figures": False}))


def test_diff_configs_names_changed_fields():
    changed = dataclasses.replace(Config(), seed=3)
    assert diff_configs(to_dict(Config()), to_dict(changed)) == ["seed: 0 → 3"]


def test_none_from_command_line():
    assert override(Config(), {"model.weights": "None", "strategy.name": "scratch"}).model.weights is None
