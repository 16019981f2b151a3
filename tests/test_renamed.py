"""Old names of config fields: an error names the new field, and an old work directory is read."""

import json

import pytest

from tljax.config import Config, parse, to_dict
from tljax.config.renamed import RENAMED_FIELDS, RENAMED_PHASE_FIELDS, renamed_hint, upgrade
from tljax.errors import UserError
from tljax.storage.run_files import RENAMED_KEYS, read_config, read_json

OF_CONFIG = [(old, new) for old, new in RENAMED_FIELDS.items() if not old.startswith("data.options.")]


def nest(dotted, value):
    """Return {"a": {"b": value}} for "a.b"."""
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return value


def lookup(tree, dotted):
    for part in dotted.split("."):
        tree = tree[part]
    return tree


@pytest.mark.parametrize(("old", "new"), OF_CONFIG)
def test_old_field_error_names_the_new_one(old, new):
    lookup(to_dict(Config()), new)  # exists
    with pytest.raises(UserError, match=f'"{old}"; it is now called {new}\\.') as error:
        parse(nest(old, 1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("old", "new"), list(RENAMED_PHASE_FIELDS.items()))
def test_old_phase_field_error_names_the_new_one(old, new):
    phase = {"name": "head", **nest(old, 1)}
    with pytest.raises(UserError, match=f"{old}.*; it is now called {new}\\."):
        parse({"strategy": {"name": "custom", "phases": [phase]}})


def test_hint_for_the_last_part_alone():
    assert renamed_hint("precision") == "; it is now called train.compute_dtype."
    assert renamed_hint("learning_rate") == ""


def test_upgrade_reads_an_old_config(tmp_path):
    old = {
        "data": {"pictures": None, "options": {}},
        "model": {"tap": "stage2", "pool": "gap"},
        "strategy": {
            "name": "custom",
            "numbers": {"rate": 0.5},
            "phases": [{"name": "head", "objectives": [["cross_entropy", 1.0]], "average": 0.9}],
        },
        "train": {"precision": "bfloat16", "shard": "parameters", "on_bad_file": "skip", "accumulate": 2},
        "cache": {"where": "memory", "gigabytes": 2.0},
        "sweep": {"train.precision": ["float32", "bfloat16"]},
    }
    before = json.dumps(old)
    (tmp_path / "config.json").write_text(before)
    config = read_config(tmp_path / "config.json")
    assert (config.model.out_stage, config.model.pool) == ("stage2", "avg")
    assert (config.train.compute_dtype, config.train.sharding, config.train.grad_accum_steps) == ("bfloat16", "fsdp", 2)
    assert (config.data.on_error, config.cache.storage, config.cache.max_gb) == ("skip", "memory", 2.0)
    assert config.strategy.hparams == {"rate": 0.5}
    assert (config.strategy.phases[0].losses, config.strategy.phases[0].ema_decay) == ((("cross_entropy", 1.0),), 0.9)
    assert config.sweep == {"train.compute_dtype": ["float32", "bfloat16"]}
    upgrade(old)
    assert json.dumps(old) == before


def test_upgrade_leaves_a_new_config_as_it_is():
    tree = to_dict(Config())
    assert upgrade(tree) == tree


def test_read_json_renames_keys_at_any_depth(tmp_path):
    old, new = next(iter(RENAMED_KEYS.items()))
    (tmp_path / "a.json").write_text(json.dumps({"rows": [{old: 1, "settings": {old: 2}}], "text": old}))
    assert read_json(tmp_path / "a.json") == {"rows": [{new: 1, "settings": {old: 2}}], "text": old}
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        read_json(tmp_path / "b.json")
