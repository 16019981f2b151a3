"""One path, one group: on tiny trees, on random ones, and its errors."""

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


def test_first_match_decides_and_decay_spares_biases_and_norms():
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


def test_layer_decay_counts_stages_from_the_head():
    groups = assign_param_groups(PARAMS, STATS, Phase("p", ((".*", 1.0),), layer_decay=0.5), ["stem", "stage1"])
    assert groups["head/dense/kernel"].lr_multiplier == 1
    assert groups["stage1/conv/kernel"].lr_multiplier == 0.5
    assert groups["stem/conv/kernel"].lr_multiplier == 0.25


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ((("haed/.*", 1.0), (".*", 0.0)), 'rule "haed/.*" matches nothing; there is: stem/conv, stem/bn'),
        ((("head/.*", 1.0),), "no rule covers stem/conv/kernel"),
        (((".*", 0.0),), "nothing learns"),
        (((".*bn/mean", 1.0), (".*", 0.0)), "nothing learns"),
        (((".*", 1.0), ("head/.*", 0.0)), "never reached"),
        ((("head/.*", -1.0), (".*", 0.0)), "negative multiplier"),
    ],
)
def test_errors_name_what_was_looked_for(rules, words):
    with pytest.raises(UserError) as caught:
        assign_param_groups(PARAMS, STATS, Phase("p", rules))
    assert words in str(caught.value)


def test_batch_norm_follows_its_mean_and_dropout_its_surroundings():
    groups = assign_param_groups(PARAMS, STATS, Phase("p", (("head/.*", 1.0), (".*", 0.0))))
    modules = ["stem/bn", "stem/drop", "stage1/drop", "head/drop", "drop"]
    assert frozen_modules(modules, groups) == {"stem/bn", "stem/drop", "stage1/drop"}
    affine_only = assign_param_groups(PARAMS, STATS, Phase("p", ((".*/scale", 1.0), (".*", 0.0))))
    assert "stem/bn" in frozen_modules(modules, affine_only)


def with_neurons(patterns, rules, **options):
    """A phase in which neurons learn, and the groups of its leaves."""
    phase = Phase("p", rules, neurons=NeuronsConfig(layers=patterns), **options)
    return assign_param_groups(PARAMS, STATS, phase, ["stem", "stage1"], neurons.find_layers(PARAMS, patterns))


def test_neurons_learn_with_the_norm_that_follows_while_its_statistics_stay():
    groups = with_neurons(("st.*",), (("head/.*", 0.5), (".*", 0.0)), layer_decay=0.5)
    single = {path: (g.rule, g.lr_multiplier, g.decay) for path, g in groups.items() if g.partial}
    assert single == {
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
    assert frozen_stages(["stem", "stage1"], with_neurons(("stage1/.*",), ((".*", 0.0),))) == ["stem"]


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (
            (("stem/bn/.*", 0.1), (".*", 0.0)),
            r'stem/bn/scale would learn twice, by rule "stem/bn/\.\*" and by its neur',
        ),
        (((".*", 1.0),), "stem/conv/kernel would learn twice"),
        ((("head/.*", 0.0),), "no rule covers stem/conv/kernel"),
    ],
)
def test_rules_must_freeze_what_neurons_are_part_of(rules, words):
    with pytest.raises(UserError, match=words):
        with_neurons(("stem/conv",), rules)


names = st.text("abc", min_size=1, max_size=2)
trees = st.lists(st.tuples(names, names, names).map("/".join), min_size=1, max_size=12, unique=True)
patterns = st.sampled_from(["a.*", ".*b.*", "[ab]/.*", ".*/c", "c+/.*", ".*"])
multipliers = st.sampled_from([0.0, 0.1, 1.0])


@given(trees, trees, st.lists(st.tuples(patterns, multipliers), min_size=1, max_size=4), st.lists(patterns, max_size=2))
def test_every_leaf_has_exactly_one_group_or_there_is_an_error(params, stats, rules, chosen):
    leaves = {f"{p}/{leaf}": np.zeros((2, 2)) for p in params for leaf in ("kernel", "c")}
    norms = {f"{p}/{leaf}": np.zeros(2) for p in params for leaf in ("bias", "bn/scale", "bn/bias")}
    params, stats = leaves | norms, {f"{p}/mean": np.zeros(2) for p in stats}
    phase = Phase("p", tuple(rules), neurons=NeuronsConfig(layers=tuple(chosen)))
    try:
        layers = neurons.find_layers(params, chosen, [("(.*)", r"\1/bn")])
    except UserError:
        kernels = [path for path in params if path.endswith("/kernel")]
        assert any(not [k for k in kernels if matches(pattern, k)] for pattern in chosen)
        return
    single = {path for paths in layers.values() for path in paths}
    first = {path: next((r for r in rules if re.fullmatch(r[0], path)), None) for path in [*params, *stats]}
    try:
        groups = assign_param_groups(params, stats, phase, layers=layers)
    except UserError:
        learns = single or any(first[path][1] > 0 for path in params if first[path])
        twice = any(first[path][1] > 0 for path in single if first[path])
        assert None in first.values() or set(first.values()) != set(rules) or not learns or twice
        return
    assert set(groups) == set(first)
    for path, group in groups.items():
        assert group.partial == (path in single)
        if group.partial:
            assert group.rule in chosen
            assert (group.lr_multiplier, first[path][1]) == (1.0, 0.0)
        else:
            assert (group.rule, group.lr_multiplier) == first[path]
    assert {path for path in params if groups[path].trainable} >= single
    assert not single & set(stats)


def matches(pattern, kernel):
    return re.fullmatch(pattern, kernel) or re.fullmatch(pattern, kernel.removesuffix("/kernel"))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fill_the_run_and_fit_the_tree(name):
    config = Config(
        strategy=StrategyConfig(name=name, layers=("stage1/.*",) if name == "layers" else ()),
        train=TrainConfig(epochs=8.0),
    )
    strategy = build_phases(config, ["stem", "stage1"])
    assert sum(p.epochs for p in strategy.phases) == pytest.approx(8)
    hint = "head/hint_stem/conv/kernel"
    params = PARAMS | ({hint: np.zeros((1, 1, 4, 8))} if name == "fitnets" else {})
    learned = []
    for phase in strategy.phases:
        layers = neurons.find_layers(params, phase.neurons.layers)
        groups = assign_param_groups(params, STATS, phase, ["stem", "stage1"], layers)
        learned.append({p for p, g in groups.items() if g.trainable and p in params})
    head, stem = ({p for p in PARAMS if p.startswith(stage)} for stage in ("head", "stem"))
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
    assert learned == expected[name]


def test_unknown_preset_and_phases_that_do_not_add_up():
    with pytest.raises(UserError, match=r'no strategy\.name "lpft"; did you mean "lp_ft"'):
        build_phases(Config(strategy=StrategyConfig(name="lpft")), ["stem"])
    phases = (Phase("a", epochs=6.0), Phase("b", epochs=6.0))
    with pytest.raises(UserError, match=r"do not add up to train\.epochs"):
        build_phases(Config(strategy=StrategyConfig(name="custom", phases=phases)), ["stem"])
