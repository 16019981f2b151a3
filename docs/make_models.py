"""Write models.md, next to this file: every network, and its differences from the reference implementations.

Builds each network, loads the weights that the references used (tests/golden/make_zoo.py), and compares their outputs.
Takes about half an hour on two cores:

    python docs/make_models.py
"""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.progress import track

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.models import zoo  # noqa: E402
from tljax import models  # noqa: E402
from tljax.models import params as params_lib  # noqa: E402
from tljax.weights.layouts import layouts  # noqa: E402

TITLES = {
    "vgg": "VGG", "resnet": "ResNet, ResNeXt, Wide ResNet", "densenet": "DenseNet", "inception": "Inception",
    "convnext": "ConvNeXt", "efficientnet": "EfficientNet-Lite", "unet": "U-Net (encoder)",
}  # fmt: skip

COLUMNS = "backbone", "parameters", "GFLOP", "inference", "training", "gradient"


def describe(backbone: str) -> dict:
    """Return size, cost and stages of a network with its published classifier, at 224 pixels (Inception v3: 299)."""
    size = 299 if backbone.startswith("inception_v3") else 224
    family, config = models.get_variant(backbone)
    head_options = {"pool": "flatten", "pool_size": 7, "hidden": (4096, 4096)} if family == "vgg" else {}
    num_classes = {"unet": 0}.get(family, 10 if getattr(config, "small", False) else 1000)
    model = models.create_model(backbone, num_classes=num_classes, image_size=size, rngs=None, **head_options)
    graphdef, params, batch_stats = params_lib.flatten_model(model)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    forward = jax.jit(lambda variables, x: params_lib.merge(graphdef, variables)(x)).lower(params | batch_stats, image)
    return {
        "family": family,
        "parameters": sum(x.size for x in params.values()),
        "flops": forward.cost_analysis()["flops"],
        "feature_info": model.feature_info(),
        "layouts": list(layouts(family, config)),
    }


def compare(case: zoo.Case) -> dict[str, float]:
    """Return the largest errors of a case by kind, after checking that they are within the tests' tolerances."""
    assert zoo.naming_errors(case) == [], case
    assert zoo.round_trip(case) == [], case
    worst = {"inference": max(zoo.inference_errors(case).values())}
    if case.has("train_logits"):
        worst["training"] = max(zoo.training_errors(case).values())
    if case.has("loss"):
        worst["gradient"] = max(zoo.gradient_errors(case).values())
    tolerances = {"inference": 1e-4, "training": 1e-4, "gradient": 1e-6}
    assert all(worst[kind] < tolerances[kind] for kind in worst), (case, worst)
    print(case, worst, file=sys.stderr, flush=True)
    return worst


def main() -> None:
    """Measure all networks and write the page."""
    cases = zoo.cases()
    # Fresh processes, because the compiler's caches of one process grow to gigabytes.
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=4) as pool:
        names = models.list_backbones()
        descriptions = dict(zip(names, track(pool.imap(describe, names), "describing", len(names)), strict=True))
        errors = dict(zip(cases, track(pool.imap(compare, cases), "comparing", len(cases)), strict=True))
    text = (Path(__file__).parent / "models.md.in").read_text()
    (Path(__file__).parent / "models.md").write_text(text.replace("{TABLES}", "\n".join(tables(descriptions, errors))))


def tables(descriptions: dict[str, dict], errors: dict[zoo.Case, dict[str, float]]) -> list[str]:
    """Return the lines of the page's tables: for each family its layouts, its stages and a table in Markdown."""
    lines = []
    for family, title in TITLES.items():
        members = {name: facts for name, facts in descriptions.items() if facts["family"] == family}
        layout_names = ", ".join(next(iter(members.values()))["layouts"])
        lines += [f"### {title}", "", f"Layouts: {layout_names}. Stages, stride × channels:", ""]
        backbones_by_stages = {}
        for name, facts in members.items():
            stages = ", ".join(f"{stage} {x.stride}×{x.channels}" for stage, x in facts["feature_info"].items())
            backbones_by_stages.setdefault(stages, []).append(f"`{name}`")
        lines += [f"- {stages}: {', '.join(names)}" for stages, names in backbones_by_stages.items()]
        lines += ["", f"| {' | '.join(COLUMNS)} |", "|---|---:|---:|---|---|---|"]
        for name, facts in members.items():
            errors_by_case = {case: worst for case, worst in errors.items() if case.backbone == name}
            cells = [largest_error(errors_by_case, kind) for kind in ("inference", "training", "gradient")]
            lines.append(f"| `{name}` | {facts['parameters']:,} | {facts['flops'] / 1e9:.2f} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def largest_error(errors: dict[zoo.Case, dict[str, float]], kind: str) -> str:
    """Return the largest error of a kind and the reference that it was measured against."""
    measured = {case: worst[kind] for case, worst in errors.items() if kind in worst}
    if not measured:
        return "-"
    case = max(measured, key=measured.get)
    library = {"efficientnet": "timm", "unet": case.variant.split("_")[0]}.get(case.reference, case.reference)
    return f"{measured[case]:.0e} ({library})"


if __name__ == "__main__":
    main()
