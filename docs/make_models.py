"""Writes models.md, next to this file: every network, and how near it is to the reference implementations.

Builds each network, loads the weights that the references were given (tests/golden/make_zoo.py), and compares. Takes
about a half an hour on two cores:

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
    "convnext": "ConvNeXt", "unet": "U-Net (encoder)",
}  # fmt: skip

COLUMNS = "backbone", "parameters", "GFLOP", "inference", "training", "gradient"


def describe(backbone: str) -> dict:
    """Facts of a network with its published classifier, at 224 pixels; Inception v3 at 299."""
    size = 299 if backbone.startswith("inception_v3") else 224
    family, config = models.get_variant(backbone)
    vgg = {"pool": "flatten", "pool_size": 7, "hidden": (4096, 4096)} if family == "vgg" else {}
    classes = {"unet": 0}.get(family, 10 if getattr(config, "small", False) else 1000)
    model = models.create_model(backbone, num_classes=classes, image_size=size, rngs=None, **vgg)
    graphdef, params, stats = params_lib.flatten_model(model)
    picture = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    forward = jax.jit(lambda leaves, x: params_lib.merge(graphdef, leaves)(x)).lower(params | stats, picture)
    return {
        "family": family,
        "parameters": sum(x.size for x in params.values()),
        "flops": forward.cost_analysis()["flops"],
        "pyramid": model.feature_info(),
        "layouts": list(layouts(family, config)),
    }


def compare(case: zoo.Case) -> dict[str, float]:
    """The worst errors of a case by kind, which must be within what the tests ask for."""
    assert zoo.misplaced(case) == [], case
    assert zoo.round_trip(case) == [], case
    worst = {"inference": max(zoo.inference_errors(case).values())}
    if case.has("train_logits"):
        worst["training"] = max(zoo.training_errors(case).values())
    if case.has("loss"):
        worst["gradient"] = max(zoo.gradient_errors(case).values())
    bars = {"inference": 1e-4, "training": 1e-4, "gradient": 1e-6}
    assert all(worst[kind] < bars[kind] for kind in worst), (case, worst)
    print(case, worst, file=sys.stderr, flush=True)
    return worst


def main() -> None:
    """Runs everything and writes the page."""
    cases = zoo.cases()
    # A process each time: what a network leaves behind in the compiler's caches adds up to gigabytes.
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=4) as pool:
        names = models.list_backbones()
        facts = dict(zip(names, track(pool.imap(describe, names), "describing", len(names)), strict=True))
        errors = dict(zip(cases, track(pool.imap(compare, cases), "comparing", len(cases)), strict=True))
    text = (Path(__file__).parent / "models.md.in").read_text()
    (Path(__file__).parent / "models.md").write_text(text.replace("{TABLES}", "\n".join(tables(facts, errors))))


def tables(facts: dict[str, dict], errors: dict[zoo.Case, dict[str, float]]) -> list[str]:
    """One table a family, in Markdown, behind its stages and layouts."""
    lines = []
    for family, title in TITLES.items():
        mine = {name: fact for name, fact in facts.items() if fact["family"] == family}
        layouts_read = ", ".join(next(iter(mine.values()))["layouts"])
        lines += [f"### {title}", "", f"Layouts: {layouts_read}. Stages, stride × channels:", ""]
        pyramids = {}
        for name, fact in mine.items():
            levels = ", ".join(f"{stage} {level.stride}×{level.channels}" for stage, level in fact["pyramid"].items())
            pyramids.setdefault(levels, []).append(f"`{name}`")
        lines += [f"- {levels}: {', '.join(names)}" for levels, names in pyramids.items()]
        lines += ["", f"| {' | '.join(COLUMNS)} |", "|---|---:|---:|---|---|---|"]
        for name, fact in mine.items():
            found = {case: worst for case, worst in errors.items() if case.backbone == name}
            cells = [worst_of(found, kind) for kind in ("inference", "training", "gradient")]
            lines.append(f"| `{name}` | {fact['parameters']:,} | {fact['flops'] / 1e9:.2f} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def worst_of(found: dict[zoo.Case, dict[str, float]], kind: str) -> str:
    """The largest error of a kind, and against whom."""
    known = {case: worst[kind] for case, worst in found.items() if kind in worst}
    if not known:
        return "-"
    case = max(known, key=known.get)
    return f"{known[case]:.0e} ({case.reference if case.reference != 'unet' else case.variant.split('_')[0]})"


if __name__ == "__main__":
    main()
