"""Assignment of parameter groups on small and on random trees, and its errors."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tljax.config import Config, NeuronsConfig, Phase, StrategyConfig, TrainConfig
from tljax.errors import UserError
from tljax.strategies import PRESETS, assign_param_groups, build_phases, frozen_modules, frozen_stages, neurons

PARAMS = {
    "stem/conv/kernel": np.zeros((3, 3, 3, 4)),
    "stem/bn/scale": np.zeros(4),
    "stage1/conv/kernel": np.zeros((3, 3, 4, 4)),
    "head/dense/kernel": np.zeros((4, 2)),
    "head/dense/bias": np.zeros(2),
}
STATS = {"stem/bn/mean": np.zeros(4), "stem/bn/var": np.zeros(4)}


def test_first_match_decides_and_kernels_decay():
    groups = assign_param_groups(PARAMS, STATS, Phase("p", (("head/.*", 1.0), ("stage1/.*", 0.5), (".*", 0.0))))
    assert {p: g.lr_multiplier for p, g in groups.items()} == {
        "stem/conv/kernel": 0,
        "stem/bn/scale": 0,
        "stage1/conv/kernel": 0.5,
        "head/dense/kernel": 1,
        "head/dense/bias": 1,
        "stem/bn/mean": 0,
        "stem/bn/var": 0,
    }
    assert [p for p, g in groups.items() if g.decay] == ["stage1/conv/kernel", "head/dense/kernel"]
    assert frozen_stages(["stem", "stage1"], groups) == ["stem"]
    assert frozen_stages(["stem", "stage1"], groups, random=["stem"]) == []


def test_layer_decay_counts_stages_from_head():
    groups = assign_param_groups(PARAMS, STATS, Phase("p", ((".*", 1.0),), layer_decay=0.5), ["stem", "stage1"])
    assert groups["head/dense/kernel"].lr_multiplier == 1
    assert groups["stage1/conv/kernel"].lr_multiplier == 0.5
    assert groups["stem/conv/kernel"].lr_multiplier == 0.25


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((("haed/.*", 1.0), (".*", 0.0)), 'rule "haed/.*" matches nothing; the layers are: stem/conv, stem/bn'),
        ((("head/.*", 1.0),), "no rule covers stem/conv/kernel"),
        (((".*", 0.0),), "no parameter is trainable"),
        (((".*bn/mean", 1.0), (".*", 0.0)), "no parameter is trainable"),
        (((".*", 1.0), ("head/.*", 0.0)), "never applies"),
        ((("head/.*", -1.0), (".*", 0.0)), "negative multiplier"),
    ],
)
def test_invalid_rules_fail(rules, message):
    with pytest.raises(UserError) as error:
        assign_param_groups(PARAMS, STATS, Phase("p", rules))
    assert message in str(error.value)


def test_frozen_modules_by_mean_and_by_parent():
    groups = assign_param_groups(PARAMS, STATS, Phase("p", (("head/.*", 1.0), (".*", 0.0))))
    modules = ["stem/bn", "stem/drop", "stage1/drop", "head/drop", "drop"]
    assert frozen_modules(modules, groups) == {"stem/bn", "stem/drop", "stage1/drop"}
    affine_only = assign_param_groups(PARAMS, STATS, Phase("p", ((".*/scale", 1.0), (".*", 0.0))))
    assert "stem/bn" in frozen_modules(modules, affine_only)


def assign_with_neurons(patterns, rules, **options):
    """Return the parameter groups of a phase in which neurons train."""
    phase = Phase("p", rules, neurons=NeuronsConfig(layers=patterns), **options)
    return assign_param_groups(PARAMS, STATS, phase, ["stem", "stage1"], neurons.find_layers(PARAMS, patterns))


def test_groups_of_neurons_include_norm_not_statistics():
    groups = assign_with_neurons(("st.*",), (("head/.*", 0.5), (".*", 0.0)), layer_decay=0.5)
    partial = {path: (g.rule, g.lr_multiplier, g.decay) for path, g in groups.items() if g.partial}
    assert partial == {
        "stem/conv/kernel": ("st.*", 0.25, True),
        "stem/bn/scale": ("st.*", 0.25, False),
        "stage1/conv/kernel": ("st.*", 0.5, True),
    }
    assert {p: g.lr_multiplier for p, g in groups.items() if not g.partial} == {
        "head/dense/kernel": 0.5,
        "head/dense/bias": 0.5,
        "stem/bn/mean": 0,
        "stem/bn/var": 0,
    }
    assert frozen_modules(["stem/bn", "stem/drop", "head/drop"], groups) == {"stem/bn"}
    assert frozen_stages(["stem", "stage1"], groups) == []
    assert frozen_stages(["stem", "stage1"], assign_with_neurons(("stage1/.*",), ((".*", 0.0),))) == ["stem"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            (("stem/bn/.*", 0.1), (".*", 0.0)),
            r'stem/bn/scale would train twice, by rule "stem/bn/\.\*" and by neurons',
        ),
        (((".*", 1.0),), "stem/conv/kernel would train twice"),
        ((("head/.*", 0.0),), "no rule covers stem/conv/kernel"),
    ],
)
def test_rules_must_freeze_layers_of_neurons(rules, message):
    with pytest.raises(UserError, match=message):
        assign_with_neurons(("stem/conv",), rules)


names = st.text("abc", min_size=1, max_size=2)
trees = st.lists(st.tuples(names, names, names).map("/".join), min_size=1, max_size=12, unique=True)
patterns = st.sampled_from(["a.*", ".*b.*", "[ab]/.*", ".*/c", "c+/.*", ".*"])
multipliers = st.sampled_from([0.0, 0.1, 1.0])


@given(trees, trees, st.lists(st.tuples(patterns, multipliers), min_size=1, max_size=4), st.lists(patterns, max_size=2))
def test_random_paths_have_one_group_or_an_error(params, stats, rules, neuron_patterns):
    matrices = {f"{p}/{name}": np.zeros((2, 2)) for p in params for name in ("kernel", "c")}
    vectors = {f"{p}/{name}": np.zeros(2) for p in params for name in ("bias", "bn/scale", "bn/bias")}
    params = matrices | vectors
    stats = {f"{p}/mean": np.zeros(2) for p in stats}
    phase = Phase("p", tuple(rules), neurons=NeuronsConfig(layers=tuple(neuron_patterns)))
    try:
        layers = neurons.find_layers(params, neuron_patterns, [("(.*)", r"\1/bn")])
    except UserError:
        kernels = [path for path in params if path.endswith("/kernel")]
        assert any(not [k for k in kernels if matches(pattern, k)] for pattern in neuron_patterns)
        return
    partial = {path for paths in layers.values() for path in paths}
    first_rules = {path: next((r for r in rules if re.fullmatch(r[0], path)), None) for path in [*params, *stats]}
    try:
        groups = assign_param_groups(params, stats, phase, layers=layers)
    except UserError:
        any_trainable = partial or any(first_rules[path][1] > 0 for path in params if first_rules[path])
        trained_twice = any(first_rules[path][1] > 0 for path in partial if first_rules[path])
        uncovered = None in first_rules.values()
        assert uncovered or set(first_rules.values()) != set(rules) or not any_trainable or trained_twice
        return
    assert set(groups) == set(first_rules)
    for path, group in groups.items():
        assert group.partial == (path in partial)
        if group.partial:
            assert group.rule in neuron_patterns
            assert (group.lr_multiplier, first_rules[path][1]) == (1.0, 0.0)
        else:
            assert (group.rule, group.lr_multiplier) == first_rules[path]
    assert {path for path in params if groups[path].trainable} >= partial
    assert not partial & set(stats)


def matches(pattern, kernel):
    return re.fullmatch(pattern, kernel) or re.fullmatch(pattern, kernel.removesuffix("/kernel"))


@pytest.mark.parametrize("name", PRESETS)
def test_build_phases_of_preset(name):
    config = Config(
        strategy=StrategyConfig(name=name, layers=("stage1/.*",) if name == "layers" else ()),
        train=TrainConfig(epochs=8.0),
    )
    strategy = build_phases(config, ["stem", "stage1"])
    assert sum(p.epochs for p in strategy.phases) == pytest.approx(8)
    hint = "head/hint_stem/conv/kernel"
    params = PARAMS | ({hint: np.zeros((1, 1, 4, 8))} if name == "fitnets" else {})
    trainable = []
    for phase in strategy.phases:
        layers = neurons.find_layers(params, phase.neurons.layers)
        groups = assign_param_groups(params, STATS, phase, ["stem", "stage1"], layers)
        trainable.append({p for p, g in groups.items() if g.trainable and p in params})
    head = {p for p in PARAMS if p.startswith("head")}
    stem = {p for p in PARAMS if p.startswith("stem")}
    everything = set(PARAMS)
    expected = {
        "scratch": [everything],
        "full": [everything],
        "feature_extraction": [head],
        "freeze_last": [everything - head],
        "layers": [{"stage1/conv/kernel"}],
        "lp_ft": [head, everything],
        "finetune": [head, head | {"stage1/conv/kernel"}],
        "gradual_unfreeze": [head, head | {"stage1/conv/kernel"}, everything],
        "micro": [head, everything - head],
        "micro_two_heads": [everything],
        "distillation": [everything],
        "attention_transfer": [everything],
        "fitnets": [stem | {hint}, everything],
        "delta": [everything],
        "lwf": [everything],
        "pseudo_label": [everything, everything],
        "fixmatch": [everything],
        "mean_teacher": [everything],
    }
    assert trainable == expected[name]


def test_build_phases_of_unknown_preset_fails():
    with pytest.raises(UserError, match=r'no strategy\.name "lpft"; did you mean "lp_ft"'):
        build_phases(Config(strategy=StrategyConfig(name="lpft")), ["stem"])


def test_build_phases_with_wrong_sum_of_epochs_fails():
    phases = (Phase("a", epochs=6.0), Phase("b", epochs=6.0))
    with pytest.raises(UserError, match=r"do not add up to train\.epochs"):
        build_phases(Config(strategy=StrategyConfig(name="custom", phases=phases)), ["stem"])
