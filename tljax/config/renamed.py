"""Config fields renamed since older versions, for helpful errors and for reading old work directories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED_FIELDS = {
    "data.pictures": "data.num_train",
    "train.on_bad_file": "data.on_error",
    "train.accumulate": "train.grad_accum_steps",
    "train.shard": "train.sharding",
    "train.precision": "train.compute_dtype",
    "train.early_stop_epochs": "train.patience_epochs",
    "model.tap": "model.out_stage",
    "augment.colour": "augment.color",
    "augment.strength": "augment.strong_magnitude",
    "cache.where": "cache.storage",
    "cache.views": "cache.num_views",
    "cache.gigabytes": "cache.max_gb",
    "report.most_wrong": "report.num_worst",
    "strategy.objectives": "strategy.losses",
    "strategy.average": "strategy.ema_decay",
    "strategy.pairs": "strategy.stage_pairs",
    "strategy.numbers": "strategy.hparams",
    "strategy.ramp": "strategy.unlabelled_warmup",
    "strategy.balance": "strategy.distribution_alignment",
    "strategy.neurons.pictures": "strategy.neurons.num_images",
    "data.options.ink": "data.options.palette",
    "data.options.colour": "data.options.color",
    "data.options.train_pictures": "data.options.train_images",
    "data.options.valid_pictures": "data.options.valid_images",
    "data.options.test_pictures": "data.options.test_images",
}
RENAMED_PHASE_FIELDS = {"objectives": "losses", "average": "ema_decay", "neurons.pictures": "neurons.num_images"}
RENAMED_VALUES = {
    "model.pool": {"gap": "avg"},
    "features.pool": {"gap": "avg"},
    "train.sharding": {"parameters": "fsdp"},
}


def renamed_hint(name: str) -> str:
    """Return "; it is now called NEW." for the old name of a field, dotted or only its last part, else "".

    >>> renamed_hint("train.precision")
    '; it is now called train.compute_dtype.'
    """
    phase_fields = {f"strategy.phases[].{old}": f"{new} (of a phase)" for old, new in RENAMED_PHASE_FIELDS.items()}
    for old, new in (RENAMED_FIELDS | phase_fields).items():
        if name == old or ("." not in name and name == old.rpartition(".")[2]):
            return f"; it is now called {new}."
        if name.startswith("strategy.phases[") and name.partition("].")[2] == old.partition("[].")[2] != "":
            return f"; it is now called {new.removesuffix(' (of a phase)')}."
    return ""


def upgrade(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json of an older version with the current names of fields and values."""
    tree = _rename_fields(tree, RENAMED_FIELDS)
    if "strategy" in tree and tree["strategy"].get("phases"):
        phases = [_rename_fields(phase, RENAMED_PHASE_FIELDS) for phase in tree["strategy"]["phases"]]
        tree["strategy"] = {**tree["strategy"], "phases": phases}
    for dotted, values in RENAMED_VALUES.items():
        section, _, name = dotted.partition(".")
        if name in tree.get(section, {}):
            value = tree[section][name]
            tree[section] = {**tree[section], name: values.get(value, value)}
    if tree.get("sweep"):
        tree["sweep"] = {RENAMED_FIELDS.get(field, field): values for field, values in tree["sweep"].items()}
    return tree


def _rename_fields(tree: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return a copy of a tree with the values of old dotted names moved to the new names."""
    tree = {key: _rename_fields(value, {}) if isinstance(value, Mapping) else value for key, value in tree.items()}
    for old, new in names.items():
        *parents, last = old.split(".")
        node = tree
        for part in parents:
            node = node.get(part, {}) if isinstance(node, dict) else {}
        if isinstance(node, dict) and last in node:
            *new_parents, new_last = new.split(".")
            target = tree
            for part in new_parents:
                target = target.setdefault(part, {})
            target[new_last] = node.pop(last)
    return tree
