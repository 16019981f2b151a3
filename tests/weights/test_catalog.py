"""The catalog of published weights, compared with the publishers' tables (tests/golden)."""

import json
from pathlib import Path

import numpy as np
import pytest

from tljax.weights import CATALOG
from tljax.weights.preprocess import PRESETS

PUBLISHED = [entry for entry in CATALOG.values() if ":" in entry.name]
GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "catalog.json").read_text())["rows"]


def golden_fields(entry):
    """Return an entry with the field names of the golden file."""
    if isinstance(entry.normalization, str):
        preset = PRESETS[entry.normalization]
        unit = 255 * preset.scale  # the golden values are for images in 0..1
        mean = np.divide(preset.mean, unit)
        std = np.divide(preset.std, unit)
        order = preset.order
    else:
        (mean, std), order = entry.normalization, "rgb"
    architecture = entry.backbone.removesuffix("_v1").removesuffix("_keras").removesuffix("_torch")
    prefix = "fcn_" if "fcn_" in entry.name else "tf_" if "tf_efficientnet" in entry.name else ""
    return {
        "architecture": prefix + architecture,
        "source": entry.source,
        "digest": entry.digest,
        "classes": entry.num_classes,
        "size": entry.image_size,
        "crop": pytest.approx(entry.crop, rel=1e-6),
        "squash": entry.squash,
        "interpolation": entry.interpolation,
        "mean": pytest.approx(list(mean), rel=1e-5),
        "std": pytest.approx(list(std), rel=1e-5),
        "order": order,
        "licence": entry.license,
    }


def test_catalog_has_all_published_names():
    names = [entry.name for entry in PUBLISHED]
    assert len(set(names)) == len(names)
    assert sorted(names) == sorted(GOLDEN)


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_catalog_entries_equal_publishers_tables(entry):
    expected = GOLDEN[entry.name]
    actual = golden_fields(entry)
    # Not every publisher states every field.
    assert {key: actual[key] for key in expected} == expected


@pytest.mark.parametrize("publisher", ["torchvision:", "hf:timm/", "keras:"])
def test_catalog_layout_and_digest_length(publisher):
    layout = publisher.removeprefix("hf:").rstrip(":/")
    digits = {"torchvision": 8, "timm": 0, "keras": 32}[layout]
    entries = [entry for entry in PUBLISHED if entry.name.startswith(publisher)]
    assert {entry.layout for entry in entries} == {layout}
    assert {len(entry.digest or "") for entry in entries} == {digits}
