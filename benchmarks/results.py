"""Results with ratios and shares of the peak, as JSON, Markdown and a figure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from steps import matmul_peaks

COLD = "nothing compiled before"
CACHED = "cached features"
UNITS = {"s": "{:.1f} s", "s/step": "{:.3f} s/step", "MB": "{:.0f} MB", "images/s": "{:.2f} /s"}
COLORS = ("#2a6f97", "#e9a23b", "#7a9e5f")
EXPLANATION = """Medians of the rounds, in which all frameworks run in turns. The columns with × are the speed of the
named variant of tljax divided by that of the row (memory: the row's divided by tljax's); above 1, tljax is better. *of
peak* is the FLOP/s divided by those of the best large matrix product in the same dtype; the FLOPs are the lowest count
of any framework in the case, by XLA before optimization. Networks have random weights, ten classes and one dense layer,
except in the script. Keras' ResNet-50 strides a convolution earlier than the others' and has up to 6 % fewer FLOPs."""


def add_ratios(items: Mapping[str, dict]) -> dict[str, list[dict]]:
    """Return the rows by case, adding `ratios` ({name of a tljax row: ratio}) and `share` of the peak to them."""
    cases: dict[str, list[dict]] = {}
    for item in items.values():
        for row in item["rows"]:
            cases.setdefault(row["case"], []).append(row)
    peaks = dict(matmul_peaks(cases.get("machine", [])))
    for rows in cases.values():
        tljax_rows = [r for r in rows if is_tljax(r) and "median" in r]
        # The lowest count, because some implementations of convolutions execute more FLOPs than necessary.
        min_flops = min((r["flops"] for r in rows if r.get("flops") and CACHED not in r["name"]), default=None)
        for row in (r for r in rows if "median" in r):
            flops = row.get("flops") if CACHED in row["name"] else min_flops
            if row["unit"] == "images/s" and flops and row["dtype"] in peaks:
                row["share"] = row["median"] * flops / peaks[row["dtype"]]
            if not is_tljax(row):
                row["ratios"] = {r["name"]: ratio(r, row) for r in tljax_rows}
    return cases


def is_tljax(row: dict) -> bool:
    """Return whether a row belongs to this project."""
    return row["name"].startswith("tljax")


def ratio(tljax_row: dict, row: dict) -> float:
    """Return how many times better the tljax row is than the other."""
    more_is_better = tljax_row["unit"].endswith("/s")
    return tljax_row["median"] / row["median"] if more_is_better else row["median"] / tljax_row["median"]


def write(results: dict, folder: Path, name: str, descriptions: Mapping[str, str]) -> None:
    """Write NAME.json, NAME.md and NAME.png.

    Args:
      results: `machine` (facts by name), and `items`, each with rows, when, seconds and settings.
      folder: destination.
      name: name of the machine.
      descriptions: a sentence per item.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cases = add_ratios(results["items"])
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    has_figure = draw_figure(cases, folder / f"{name}.png")
    lines = list(markdown_lines(results, cases, name, descriptions, has_figure))
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")


def markdown_lines(
    results: dict, cases: Mapping[str, list[dict]], name: str, descriptions: Mapping[str, str], has_figure: bool
) -> Iterator[str]:
    """Yield the lines of the page."""
    yield f"# Benchmarks: {name}\n"
    yield from (f"- {key}: {fact}" for key, fact in results["machine"].items())
    yield f"\n{EXPLANATION}\n"
    if has_figure:
        yield f"![Speed of tljax relative to other frameworks]({name}.png)\n"
    shown = set()
    for item, description in descriptions.items():
        if item not in results["items"]:
            continue
        run = results["items"][item]
        minutes = run["seconds"] / 60
        yield f"## {item}\n\n{description} ({run['when']}; {run['settings']}; took {minutes:.1f} minutes.)\n"
        for case in dict.fromkeys(row["case"] for row in run["rows"]):
            if case in shown:
                yield f'The rows are in the table "{case}" above.\n'
            else:
                yield from table_lines(case, cases[case])
                shown.add(case)


def table_lines(case: str, rows: list[dict]) -> Iterator[str]:
    """Yield the lines of a case's table."""
    has_ratios = any("ratios" in r for r in rows)
    tljax_names = [r["name"] for r in rows if is_tljax(r) and "median" in r] if has_ratios else []
    columns = {
        "median": [format_median(r) for r in rows],
        "variant": [r.get("variant") or "" for r in rows],
        "of peak": [f"{r['share']:.0%}" if "share" in r else "" for r in rows],
        "accuracy": [f"{r['accuracy']:.4f}" if r.get("accuracy") is not None else "" for r in rows],
    }
    for name in tljax_names:
        columns[f"× {name.removeprefix('tljax ')}"] = [format_ratio(r, name) for r in rows]
    columns["note"] = ["; ".join(str(r[k]) for k in ("note", "error") if r.get(k)).replace("|", "/") for r in rows]
    columns = {heading: cells for heading, cells in columns.items() if any(cells)}
    yield f"**{case}**\n"
    yield f"| | {' | '.join(columns)} |"
    yield "|---|" + "".join("---|" if h in ("variant", "note") else "---:|" for h in columns)
    for i, row in enumerate(rows):
        name = f"**{row['name']}**" if is_tljax(row) else row["name"]
        yield f"| {name} | {' | '.join(cells[i] for cells in columns.values())} |"
    yield ""


def format_median(row: dict) -> str:
    """Return the median with its unit, or "missing" or "failed"."""
    if "median" in row:
        return UNITS.get(row["unit"], "{:.1f} " + row["unit"]).format(row["median"])
    return "missing" if is_missing(row) else "failed"


def is_missing(row: dict) -> bool:
    """Return whether the peer, or its build for the device, is not installed, which does not count as a failure."""
    return row.get("error", "").startswith(("not installed", "sees no"))


def format_ratio(row: dict, name: str) -> str:
    """Return the ratio to a tljax row with three digits, or an empty string."""
    return f"{row['ratios'][name]:.3g}" if name in row.get("ratios", {}) else ""


def draw_figure(cases: Mapping[str, list[dict]], path: Path) -> bool:
    """Draw a panel per case with a bar per peer and tljax row of the same dtype. Return False if there is no bar."""
    panels = {case: bars for case, rows in cases.items() if (bars := list(comparable_ratios(rows)))}
    if not panels:
        return False
    from matplotlib.figure import Figure

    heights = [max(2, len({peer for peer, *_ in bars})) for bars in panels.values()]
    num_rows = -(-len(panels) // 2)
    row_heights = [max(heights[2 * i : 2 * i + 2]) for i in range(num_rows)]
    figure = Figure(figsize=(14, 1.2 * num_rows + 0.36 * sum(row_heights)), layout="constrained", dpi=110)
    grid = figure.subplots(num_rows, 2, squeeze=False, gridspec_kw={"height_ratios": [h + 2 for h in row_heights]})
    axes = list(grid.flat)
    for (case, bars), ax in zip(panels.items(), axes, strict=False):
        draw_panel(ax, case, bars)
    for ax in axes[len(panels) :]:
        ax.axis("off")
    figure.suptitle(
        "Speed of tljax relative to others in the same dtype (memory: inverse ratio); above 1, tljax is better"
    )
    figure.savefig(path)
    return True


def comparable_ratios(rows: list[dict]) -> Iterator[tuple[str, str, float]]:
    """Yield (peer, variant of tljax, ratio) where both compute in the same dtype."""
    for row in rows:
        for tljax_row in rows:
            name = tljax_row["name"]
            if not is_tljax(tljax_row) or COLD in name or tljax_row["dtype"] != row["dtype"]:
                continue
            if name in row.get("ratios", {}):
                yield row["name"], name.partition(", ")[2] or "tljax", row["ratios"][name]


def draw_panel(ax, case: str, bars: list[tuple[str, str, float]]) -> None:
    """Draw horizontal bars that start at 1 on a logarithmic axis."""
    peers = list(dict.fromkeys(peer for peer, _, _ in bars))
    variants = list(dict.fromkeys(variant for _, variant, _ in bars))
    height = 0.8 / len(variants)
    for peer, variant, value in bars:
        index = variants.index(variant)
        y = peers.index(peer) - 0.4 + height * (index + 0.5)
        ax.barh(y, value - 1, height, left=1, color=COLORS[index % len(COLORS)])
        side = {"ha": "left", "xytext": (3, 0)} if value >= 1 else {"ha": "right", "xytext": (-3, 0)}
        ax.annotate(f"{value:.3g}", (value, y), textcoords="offset points", va="center", fontsize=8, **side)
    ax.set_xscale("log")
    low = min(1, *(value for _, _, value in bars)) / 1.6
    high = max(1, *(value for _, _, value in bars)) * 1.6
    ax.set_xlim(low, high)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if low <= t <= high]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_yticks(range(len(peers)), peers, fontsize=8)
    ax.invert_yaxis()
    ax.set_title(case, fontsize=10, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    if len(variants) > 1:
        handles = [ax.barh(0, 0, left=1, color=COLORS[i % len(COLORS)]) for i in range(len(variants))]
        ax.legend(handles, variants, fontsize=8, frameon=False, loc="best")
