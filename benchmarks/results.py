"""What was measured, with ratios and shares of the peak, as JSON, Markdown and a figure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from steps import peaks

COLD = "nothing compiled before"
KEPT = "kept maps"
UNITS = {"s": "{:.1f} s", "s/step": "{:.3f} s/step", "MB": "{:.0f} MB", "pictures/s": "{:.2f} /s"}
EXPLANATION = """Medians of the rounds, in which everybody had a turn. The columns with × say how many times as fast as
the row tljax is in the named variant (of memory: how many times less it takes); above 1, tljax is better. *of peak*:
FLOP/s over those of the best large matrix product in the row's type; FLOPs are the fewest that XLA counts for a
framework of the case, before optimization. Networks have random weights, ten classes and one dense layer, but for the
script. Keras' ResNet-50 strides a convolution earlier than the others', and has up to 6 % fewer FLOPs."""


def finish(items: Mapping[str, dict]) -> dict[str, list[dict]]:
    """Rows by case, with `ratios` ({name of a row of ours: how many times better}) and `share` of the peak."""
    cases: dict[str, list[dict]] = {}
    for item in items.values():
        for row in item["rows"]:
            cases.setdefault(row["case"], []).append(row)
    peak = dict(peaks(cases.get("machine", [])))
    for rows in cases.values():
        ours = [r for r in rows if is_ours(r) and "median" in r]
        # Some convolutions are written with more FLOPs than they need, which are no merit.
        fewest = min((r["flops"] for r in rows if r.get("flops") and KEPT not in r["who"]), default=None)
        for row in (r for r in rows if "median" in r):
            flops = row.get("flops") if KEPT in row["who"] else fewest
            if row["unit"] == "pictures/s" and flops and row["dtype"] in peak:
                row["share"] = row["median"] * flops / peak[row["dtype"]]
            if not is_ours(row):
                row["ratios"] = {r["who"]: ratio(r, row) for r in ours}
    return cases


def is_ours(row: dict) -> bool:
    """Whether it is a row of this project."""
    return row["who"].startswith("tljax")


def ratio(ours: dict, row: dict) -> float:
    """How many times better ours is."""
    more_is_better = ours["unit"].endswith("/s")
    return ours["median"] / row["median"] if more_is_better else row["median"] / ours["median"]


def write(found: dict, folder: Path, name: str, about: Mapping[str, str]) -> None:
    """Writes NAME.json, NAME.md and NAME.png.

    Args:
      found: `machine` (facts by name), and `items`, each with rows, when, seconds and settings.
      folder: where to.
      name: of the machine.
      about: a sentence about each item.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cases = finish(found["items"])
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    drawn = figure(cases, folder / f"{name}.png")
    lines = list(markdown(found, cases, name, about, drawn))
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")


def markdown(found: dict, cases: Mapping[str, list[dict]], name: str, about, drawn: bool) -> Iterator[str]:
    """The lines of the page."""
    yield f"# Benchmarks: {name}\n"
    yield from (f"- {what}: {fact}" for what, fact in found["machine"].items())
    yield f"\n{EXPLANATION}\n"
    if drawn:
        yield f"![How many times better tljax is]({name}.png)\n"
    shown = set()
    for item, sentence in about.items():
        if item not in found["items"]:
            continue
        run = found["items"][item]
        own = dict.fromkeys(row["case"] for row in run["rows"])
        yield f"## {item}\n\n{sentence} ({run['when']}; {run['settings']}; took {run['seconds'] / 60:.1f} minutes.)\n"
        for case in own:
            if case in shown:
                yield f'The rows stand under "{case}" above.\n'
            else:
                yield from table(case, cases[case])
                shown.add(case)


def table(case: str, rows: list[dict]) -> Iterator[str]:
    """A case's rows."""
    ours = [r["who"] for r in rows if is_ours(r) and "median" in r] if any("ratios" in r for r in rows) else []
    columns = {"median": measured, "variant": lambda r: r.get("variant") or ""}
    columns["of peak"] = lambda r: f"{r['share']:.0%}" if "share" in r else ""
    columns["accuracy"] = lambda r: f"{r['accuracy']:.4f}" if r.get("accuracy") is not None else ""
    for who in ours:
        columns[f"× {who.removeprefix('tljax ')}"] = lambda r, who=who: times(r, who)
    columns["note"] = lambda r: "; ".join(str(r[k]) for k in ("note", "error") if r.get(k)).replace("|", "/")
    kept = {heading: [cell(r) for r in rows] for heading, cell in columns.items()}
    kept = {heading: cells for heading, cells in kept.items() if any(cells)}
    yield f"**{case}**\n"
    yield f"| | {' | '.join(kept)} |"
    yield "|---|" + "".join("---|" if h in ("variant", "note") else "---:|" for h in kept)
    for i, row in enumerate(rows):
        who = f"**{row['who']}**" if is_ours(row) else row["who"]
        yield f"| {who} | {' | '.join(cells[i] for cells in kept.values())} |"
    yield ""


def measured(row: dict) -> str:
    """The median with its unit, or why there is none."""
    if "median" in row:
        return UNITS.get(row["unit"], "{:.1f} " + row["unit"]).format(row["median"])
    return "missing" if is_missing(row) else "failed"


def is_missing(row: dict) -> bool:
    """Whether the peer, or its build for the device, is not installed, which is no failure."""
    return row.get("error", "").startswith(("not installed", "sees no"))


def times(row: dict, who: str) -> str:
    """A ratio, to three digits."""
    return f"{row['ratios'][who]:.3g}" if who in row.get("ratios", {}) else ""


def figure(cases: Mapping[str, list[dict]], path: Path) -> bool:
    """A panel for each case: a bar for each peer and row of ours of the same type. False where there is none."""
    panels = {case: bars for case, rows in cases.items() if (bars := list(pairs(rows)))}
    if not panels:
        return False
    from matplotlib.figure import Figure

    heights = [max(2, len({who for who, *_ in bars})) for bars in panels.values()]
    rows = -(-len(panels) // 2)
    tallest = [max(heights[2 * i : 2 * i + 2]) for i in range(rows)]
    canvas = Figure(figsize=(14, 1.2 * rows + 0.36 * sum(tallest)), layout="constrained", dpi=110)
    grid = canvas.subplots(rows, 2, squeeze=False, gridspec_kw={"height_ratios": [t + 2 for t in tallest]})
    axes = list(grid.flat)
    for (case, bars), ax in zip(panels.items(), axes, strict=False):
        panel(ax, case, bars)
    for ax in axes[len(panels) :]:
        ax.axis("off")
    canvas.suptitle("How many times faster (memory: smaller) tljax is; computation of the same type")
    canvas.savefig(path)
    return True


def pairs(rows: list[dict]) -> Iterator[tuple[str, str, float]]:
    """(peer, variant of ours, ratio) where both compute in the same type."""
    for row in rows:
        for ours in (r for r in rows if is_ours(r) and COLD not in r["who"] and r["dtype"] == row["dtype"]):
            if ours["who"] in row.get("ratios", {}):
                variant = ours["who"].partition(", ")[2] or "tljax"
                yield row["who"], variant, row["ratios"][ours["who"]]


def panel(ax, case: str, bars: list[tuple[str, str, float]]) -> None:
    """Horizontal bars on a logarithmic axis, from 1."""
    peers, variants = (list(dict.fromkeys(bar[i] for bar in bars)) for i in (0, 1))
    colours = ("#2a6f97", "#e9a23b", "#7a9e5f")
    height = 0.8 / len(variants)
    for who, variant, value in bars:
        place = variants.index(variant)
        y = peers.index(who) - 0.4 + height * (place + 0.5)
        ax.barh(y, value - 1, height, left=1, color=colours[place % len(colours)])
        side = {"ha": "left", "xytext": (3, 0)} if value >= 1 else {"ha": "right", "xytext": (-3, 0)}
        ax.annotate(f"{value:.3g}", (value, y), textcoords="offset points", va="center", fontsize=8, **side)
    ax.set_xscale("log")
    low, high = min(1, *(b[2] for b in bars)), max(1, *(b[2] for b in bars))
    ax.set_xlim(low / 1.6, high * 1.6)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if low / 1.6 <= t <= high * 1.6]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_yticks(range(len(peers)), peers, fontsize=8)
    ax.invert_yaxis()
    ax.set_title(case, fontsize=10, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    if len(variants) > 1:
        handles = [ax.barh(0, 0, left=1, color=colours[i % len(colours)]) for i in range(len(variants))]
        ax.legend(handles, variants, fontsize=8, frameon=False, loc="best")
