"""One path, one group: on tiny trees, on random ones, and its errors."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tljax.config import Config, Phase, StrategyConfig, TrainConfig
from tljax.errors import UserError
from tljax.strategies import PRESETS, assign, frozen_modules, frozen_prefix, resolve

PARAMS = {
    "stem/conv/kernel": np.zeros((3, 3, 3, 4)),
    "stem/bn/scale": np.zeros(4),
    "stage1/conv/kernel": np.zeros((3, 3, 4, 4)),
    "head/dense/kernel": np.zeros((4, 2)),
    "head/dense/bias": np.zeros(2),
}
STATS = {"stem/bn/mean": np.zeros(4), "stem/bn/var": np.zeros(4)}


def test_first_match_decides_and_decay_spares_biases_and_norms():
    groups = assign(PARAMS, STATS, Phase("p", (("head/.*", 1.0), ("stage1/.*", 0.5), (".*", 0.0))))
    assert {p: g.multiplier for p, g in groups.items()} == {
        "stem/conv/kernel": 0,
        "stem/bn/scale": 0,
        "stage1/conv/kernel": 0.5,
        "head/dense/kernel": 1,
        "head/dense/bias": 1,
        "stem/bn/mean": 0,
        "stem/bn/var": 0,
    }
    assert [p for p, g in groups.items() if g.decay] == ["stage1/conv/kernel", "head/dense/kernel"]
    assert frozen_prefix(["stem", "stage1"], groups) == ["stem"]
    assert frozen_prefix(["stem", "stage1"], groups, random=["stem"]) == []


def test_layer_decay_counts_stages_from_the_head():
    groups = assign(PARAMS, STATS, Phase("p", ((".*", 1.0),), layer_decay=0.5), ["stem", "stage1"])
    assert groups["head/dense/kernel"].multiplier == 1
    assert groups["stage1/conv/kernel"].multiplier == 0.5
    assert groups["stem/conv/kernel"].multiplier == 0.25


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
        assign(PARAMS, STATS, Phase("p", rules))
    assert words in str(caught.value)


def test_batch_norm_follows_its_mean_and_dropout_its_surroundings():
    groups = assign(PARAMS, STATS, Phase("p", (("head/.*", 1.0), (".*", 0.0))))
    modules = ["stem/bn", "stem/drop", "stage1/drop", "head/drop", "drop"]
    assert frozen_modules(modules, groups) == {"stem/bn", "stem/drop", "stage1/drop"}
    affine_only = assign(PARAMS, STATS, Phase("p", ((".*/scale", 1.0), (".*", 0.0))))
    assert "stem/bn" in frozen_modules(modules, affine_only)


names = st.text("abc", min_size=1, max_size=2)
trees = st.lists(st.tuples(names, names, names).map("/".join), min_size=1, max_size=12, unique=True)
patterns = st.sampled_from(["a.*", ".*b.*", "[ab]/.*", ".*/c", "c+/.*", ".*"])
multipliers = st.sampled_from([0.0, 0.1, 1.0])


@given(trees, trees, st.lists(st.tuples(patterns, multipliers), min_size=1, max_size=4))
def test_every_leaf_has_exactly_one_group_or_there_is_an_error(params, stats, rules):
    params = {p: np.zeros((2, 2)) for p in params}
    stats = {f"{p}/mean": np.zeros(2) for p in stats}
    try:
        groups = assign(params, stats, Phase("p", tuple(rules)))
    except UserError:
        decided = {next((r for r in rules if re.fullmatch(r[0], path)), None): path for path in [*params, *stats]}
        learns = any(next((m for r, m in rules if re.fullmatch(r, p)), 0) > 0 for p in params)
        assert None in decided or set(decided) != set(rules) or not learns
        return
    assert set(groups) == set(params) | set(stats)
    for path, group in groups.items():
        assert (group.rule, group.multiplier) == next(r for r in rules if re.fullmatch(r[0], path))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fill_the_run_and_fit_the_tree(name):
    config = Config(
        strategy=StrategyConfig(name=name, layers=("stage1/.*",) if name == "layers" else ()),
        train=TrainConfig(epochs=8.0),
    )
    strategy = resolve(config, ["stem", "stage1"])
    assert sum(p.epochs for p in strategy.phases) == pytest.approx(8)
    learned = [
        {p for p, g in assign(PARAMS, STATS, phase, ["stem", "stage1"]).items() if g.learns and p in PARAMS}
        for phase in strategy.phases
    ]
    head = {p for p in PARAMS if p.startswith("head")}
    everything = set(PARAMS)
    expected = {
        "scratch": [everything],
        "full": [everything],
        "feature_extraction": [head],
        "freeze_last": [everything - head],
        "layers": [{"stage1/conv/kernel"}],
        "lp_ft": [head, everything],
        "gradual_unfreeze": [head, head | {"stage1/conv/kernel"}, everything],
    }
    assert learned == expected[name]


def test_unknown_preset_and_phases_that_do_not_add_up():
    with pytest.raises(UserError, match=r'no strategy\.name "lpft"; did you mean "lp_ft"'):
        resolve(Config(strategy=StrategyConfig(name="lpft")), ["stem"])
    phases = (Phase("a", epochs=6.0), Phase("b", epochs=6.0))
    with pytest.raises(UserError, match=r"do not add up to train\.epochs"):
        resolve(Config(strategy=StrategyConfig(name="custom", phases=phases)), ["stem"])
