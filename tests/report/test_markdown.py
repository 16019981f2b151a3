import json
import re

import jinja2
import pytest

from tljax.report import figures, markdown
from tljax.tasks import TASKS


@pytest.fixture
def render(tmp_path, result, config, history):
    """A function that returns the text of the report, with some arguments of `markdown.render` changed."""
    rows = history(("head", 4), ("all", 4))

    def render_changed(**changes):
        arguments = {"result": result, "config": config, "history": rows, "figures": {}} | changes
        return markdown.render(tmp_path, metrics=TASKS["classification"].metrics, **arguments)

    return render_changed


def test_render_title_and_headline(render):
    lines = render().splitlines()
    assert lines[0] == "# resnet18, digits, lp_ft"
    assert lines[2] == (
        "**Test accuracy 91.23 %** on 3,003 test images; validation accuracy 92.01 %, "
        "a gap of +0.78 points (validation minus test). "
        "The test split was evaluated once, after the best epoch was selected on validation."
    )


def test_render_tables(render):
    text = render()
    for line in (
        "| accuracy | 0.9201 | 0.9123 | +0.0078 |",
        "| top-5 accuracy | \u2013 | \u2013 | \u2013 |",
        r"| T-shirt\|top | 0.9000 | 0.9123 | 0.8500 | 1,001 |",
        "| head | cross_entropy | 4 | 8.2 s | 5,130 | 40.1 KiB |",
        "| all | 0.5 cross_entropy + 0.5 distillation | 4 | 12 min 05 s | 11,181,642 | 85.3 MiB |",
        "Best on validation: epoch 7 (step 441), in phase all.",
        "| test | 3,003 | 3 | `testzzzzzzzz` |",
        "Images in two splits: 2 (train/valid 0, train/test 2, valid/test 0).",
        "> **Warning:** 2 images are in two splits, so the scores above may be too high.",
        f"| weights | resnet18-imagenet, sha256 `{'ab' * 32}` |",
        "| versions | jax 0.8.0, flax 0.12.0 |",
        "| config digest | `c0ffee` |",
        "| parameters digest | `deadbeef` |",
        "| devices | TFRT_CPU_0 |",
        "| time | 2 h 13 min |",
        "| peak memory | 3.0 GiB |",
    ):
        assert line in text.splitlines()
    assert "frozen" not in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 6
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_render_folds_the_config_as_json(render, config):
    text = render()
    folded = r"<summary>Config</summary>\n\n````json\n(.*?)\n````\n\n</details>"
    block = re.search(folded, text, re.S)
    assert json.loads(block[1]) == config


def test_render_links_existing_figures(tmp_path, render, history):
    folder = tmp_path / "my figures"
    path = figures.draw_curves(history(("head", 2)), folder / "curves.png")
    text = render(figures={"curves": path, "roc": folder / "absent.png"})
    assert "![Loss and accuracy against epochs](my%20figures/curves.png)" in text
    assert "8 validation rounds over 8 epochs." in text
    assert text.count("![") == 1
    assert not {"## ROC curves", "## Confusion matrix", "## Worst predictions"} & set(text.splitlines())
    all_figures = dict.fromkeys(("curves", "confusion", "roc", "most_wrong"), path)
    assert render(figures=all_figures).count("(my%20figures/curves.png)") == 4


def test_render_rejects_a_figure_outside_workdir(tmp_path, render, history):
    path = figures.draw_curves(history(("head", 1)), tmp_path.parent / f"{tmp_path.name}.png")
    with pytest.raises(ValueError, match="is outside"):
        render(figures={"curves": path})


def test_render_warnings_and_optional_parts(render, result):
    result["data"]["duplicates"] = {"train/test": 0}
    result["phases"][1]["frozen_unchanged"] = False
    result["weights"] = result["peak_memory_bytes"] = None
    text = render(history=[])
    assert "in two splits, so" not in text
    assert "> **Warning:** frozen parameters changed during phase all." in text
    assert "| weights | none |" in text
    assert "| peak memory | \u2013 |" in text
    assert "\n\n\n" not in text


def test_render_folds_many_classes(render, result):
    result["test"]["per_class"] *= 10
    assert "<summary>30 classes</summary>\n\n| class |" in render()


def test_render_rejects_a_missing_key(render, result):
    del result["config_digest"]
    with pytest.raises(jinja2.UndefinedError, match="config_digest"):
        render()


def test_title_has_backbone_data_and_strategy():
    config = {"model": {"backbone": "vit"}, "data": {"name": "a|b"}, "strategy": {"name": "full"}}
    assert markdown.title(config) == r"vit, a\|b, full"


def test_humanise_units():
    assert [markdown.format_bytes(n) for n in (0, 1023, 1024, 5 * 2**41)] == [
        *("0 B", "1023 B", "1.0 KiB", "10.0 TiB"),
    ]
    assert markdown.format_seconds(119.6) == "119.6 s"
    assert markdown.format_seconds(None) == markdown.format_number(None) == markdown.MISSING


def test_render_lists_skipped_files(render, result):
    assert "skipped" not in render()
    result["data"]["skipped"] = ["a|b.jpg", "c.jpg"]
    assert r"> **Warning:** 2 files could not be used and were skipped: a\|b.jpg, c.jpg." in render(result=result)
    result["data"]["skipped"] = [f"{i}.jpg" for i in range(12)]
    assert "9.jpg, ..." in render(result=result)
