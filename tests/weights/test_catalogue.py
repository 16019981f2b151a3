"""The table of published weights beside the publishers' own tables (tests/golden)."""

import json
from pathlib import Path

import numpy as np
import pytest

from tljax.weights import CATALOG
from tljax.weights.preprocess import PRESETS

PUBLISHED = [entry for entry in CATALOG.values() if ":" in entry.name]
GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "catalogue.json").read_text())["rows"]


def facts(entry):
    """A entry in the golden file's terms."""
    if isinstance(entry.normalisation, str):
        preset = PRESETS[entry.normalisation]
        unit = 255 * preset.scale
        mean, std, order = np.divide(preset.mean, unit), np.divide(preset.std, unit), preset.order
    else:
        (mean, std), order = entry.normalisation, "rgb"
    fcn = "fcn_" if "fcn_" in entry.name else ""
    return {
        "architecture": fcn + entry.backbone.removesuffix("_v1").removesuffix("_keras"),
        "source": entry.source,
        "digest": entry.digest,
        "classes": entry.classes,
        "size": entry.size,
        "crop": pytest.approx(entry.crop, rel=1e-6),
        "squash": entry.squash,
        "interpolation": entry.interpolation,
        "mean": pytest.approx(list(mean), rel=1e-5),
        "std": pytest.approx(list(std), rel=1e-5),
        "order": order,
        "licence": entry.licence,
    }


def test_nothing_is_missing_and_nothing_extra():
    names = [entry.name for entry in PUBLISHED]
    assert len(set(names)) == len(names)
    assert sorted(names) == sorted(GOLDEN)


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_entries_equal_their_publishers_tables(entry):
    ours, theirs = facts(entry), GOLDEN[entry.name]
    # Not every publisher states every fact.
    assert {key: ours[key] for key in theirs} == theirs


@pytest.mark.parametrize("publisher", ["torchvision:", "hf:timm/", "keras:"])
def test_publishers_own_layout_and_digest(publisher):
    layout = publisher.removeprefix("hf:").rstrip(":/")
    digits = {"torchvision": 8, "timm": 0, "keras": 32}[layout]
    entries = [entry for entry in PUBLISHED if entry.name.startswith(publisher)]
    assert {entry.layout for entry in entries} == {layout}
    assert {len(entry.digest or "") for entry in entries} == {digits}
