"""Fixtures: history, result, config and predictions of a small realistic run."""

import numpy as np
import pytest

CLASSES = ["trouser", "T-shirt|top", "ankle boot"]


def _metrics(accuracy):
    per_class = [
        {"class": name, "precision": 0.9, "recall": accuracy, "f1": 0.85, "support": 1000 + index}
        for index, name in enumerate(CLASSES)
    ]
    return {
        **{"accuracy": accuracy, "top5": None, "precision_macro": 0.91, "recall_macro": 0.88},
        **{"f1_macro": 0.89, "roc_auc": 0.975, "ece": 0.031, "loss": 0.4, "per_class": per_class},
        "confusion": [[40, 2, 0], [1, 30, 5], [0, 0, 22]],
    }


@pytest.fixture
def classes():
    return list(CLASSES)


@pytest.fixture
def config():
    return {
        "model": {"backbone": "resnet18"},
        "data": {"name": "digits"},
        "strategy": {"name": "lp_ft", "note": "```"},
        "seed": 0,
    }


@pytest.fixture
def result():
    test = _metrics(0.9123)
    valid = _metrics(0.9201)
    gap = {
        key: None if test[key] is None else valid[key] - test[key]
        for key in test
        if key not in ("per_class", "confusion")
    }
    phase = {
        "name": "head",
        "losses": {"cross_entropy": 1.0},
        "epochs": 4,
        "seconds": 8.25,
        "frozen_unchanged": True,
        "features": "training computed once",
    }
    splits = {"train": 50, "valid": 20, "test": 3003}
    return {
        **{"test": test, "valid": valid, "gap": gap, "seed": 0, "devices": ["TFRT_CPU_0"]},
        "phases": [
            {**phase, "trainable_parameters": 5130, "optimizer_bytes": 41_040},
            {
                **{**phase, "name": "all", "seconds": 725.0},
                "losses": {"cross_entropy": 0.5, "distillation": 0.5},
                **{"trainable_parameters": 11_181_642, "optimizer_bytes": 89_453_136},
            },
        ],
        "best": {"step": 441, "epoch": 7.0, "phase": "all"},
        "versions": {"jax": "0.8.0", "flax": "0.12.0"},
        "weights": {"name": "resnet18-imagenet", "sha256": "ab" * 32},
        "teachers": {"teacher0": {"name": "workdir:runs/big", "sha256": "cd" * 32}},
        "data": {
            **{"name": "digits", "classes": CLASSES},
            **{k: {"fingerprint": f"{k:z<40}", "size": n} for k, n in splits.items()},
            "duplicates": {"train/valid": 0, "train/test": 2, "valid/test": 0},
        },
        "features": [
            {
                "what": "head: prefix, training",
                "images": 50,
                "bytes": 2048,
                "storage": "disk",
                "seconds": 3.0,
                "saved": 27.0,
            }
        ],
        **{"seconds": 8000.0, "peak_memory_bytes": 3 * 2**30},
        **{"config_digest": "c0ffee", "parameters_digest": "deadbeef"},
    }


@pytest.fixture
def history():
    """A function that returns one row per epoch for (phase name, epochs) pairs, each better than the one before."""

    def make(*phases):
        names = [name for name, count in phases for _ in range(count)]
        rows = []
        for epoch, name in enumerate(names, start=1):
            remaining = np.exp(-3 * epoch / len(names))
            rows.append(
                {
                    **{"phase": name, "epoch": float(epoch), "step": 63 * epoch, "lr": 1e-3},
                    "train": {"loss": 2.2 * remaining, "accuracy": 1 - 0.8 * remaining},
                    "valid": {"loss": 2.0 * remaining + 0.2, "accuracy": 0.95 - 0.7 * remaining},
                    "best": True,
                }
            )
        return rows

    return make


@pytest.fixture
def predictions():
    """A function that returns labels [N] and probabilities [N, K] for (classes, images per class)."""

    def sample(num_classes, per_class, margin=3.0):
        labels = np.repeat(np.arange(num_classes), per_class)
        logits = np.random.default_rng(0).normal(size=(len(labels), num_classes))
        logits[np.arange(len(labels)), labels] += margin
        exponents = np.exp(logits)
        return labels, exponents / exponents.sum(axis=1, keepdims=True)

    return sample
