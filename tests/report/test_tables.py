import io
import math

import pytest
from rich.console import Console

from tljax.report import tables


def trial(accuracy, seed=0, trainable=5130, **settings):
    return {
        "settings": {**{k.replace("__", "."): v for k, v in settings.items()}, "seed": seed},
        "result": {
            "valid": {"accuracy": accuracy + 0.01},
            "test": {"accuracy": accuracy},
            "phases": [{"trainable_parameters": 10}, {"trainable_parameters": trainable}],
            "seconds": 10.0 + seed,
            "seed": seed,
        },
    }


@pytest.fixture
def rows():
    probe = [trial(0.7 + 0.01 * s, s, strategy__name="probe", size=32) for s in range(3)]
    tuned = [trial(0.9, 0, 11_181_642, strategy__name="lp_ft", size=32)]
    return tables.summarize_trials(probe + tuned)


def test_summarise_groups_over_seeds(rows):
    probe, tuned = rows
    assert probe["settings"] == {"strategy.name": "probe", "size": 32}
    assert (probe["seeds"], tuned["seeds"]) == (3, 1)
    mean, half_width = probe["test"]
    assert mean == pytest.approx(0.71)
    # t quantile of 2 degrees of freedom, deviation 0.01, three values
    assert half_width == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-5)
    assert tuned["test"] == (0.9, None)
    assert tuned["trainable_parameters"] == 11_181_642
    assert probe["seconds"] == pytest.approx(11.0)


def test_summarise_rejects_a_repeated_seed():
    with pytest.raises(ValueError, match="repeat"):
        tables.summarize_trials([trial(0.7, 1, a=1), trial(0.7, 1, a=1)])
    trials = [trial(0.7, seed, a=1) for seed in (0, 1)]
    for unseeded in trials:
        del unseeded["settings"]["seed"]
    assert tables.summarize_trials(trials)[0]["seeds"] == 2


def test_mean_interval_rejects_no_values():
    with pytest.raises(ValueError, match="no values"):
        tables.mean_interval([])


def test_markdown_table(rows):
    lines = tables.markdown_table(rows).splitlines()
    assert lines == [
        "| strategy | validation % | test % | trainable parameters | seconds |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| probe | 72.00 ± 2.48 | 71.00 ± 2.48 | 5,130 | 11.0 |",
        "| **lp_ft** | **91.00** | **90.00** | **11,181,642** | **10.0** |",
        "",
        "± is the half-width of the 95 % Student-t interval over 1 to 3 seeds.",
    ]


def test_comparison_marks_ties_and_missing_settings():
    rows = tables.summarize_trials([trial(0.8, a=1), trial(0.8, b__a="x|y"), trial(0.7, a=2)])
    text = tables.markdown_table(rows)
    assert text.count("**80.00**") == 2
    header, body, best = tables.table_content(rows)
    assert header[:2] == ["a", "b.a"]
    assert body[0][:2] == ["1", tables.MISSING]
    assert best == [True, True, False]
    assert r"x\|y" in text
    assert "±" not in text


def test_headers_are_short_unless_they_collide():
    assert tables.headers(["strategy.name", "data.name", "optim.lr"]) == ["strategy", "data", "lr"]
    assert tables.headers(["a.size", "b.size", "seed"]) == ["a.size", "b.size", "seed"]


def test_markdown_with_given_columns(rows):
    assert tables.markdown_table(rows, ["size"]).startswith("| size | validation")
    assert tables.varying_fields(rows) == ["strategy.name"]


def test_rich_table_content(rows):
    rows[0]["settings"]["strategy.name"] = "[4, 4]"
    table = tables.rich_table(rows)
    assert [row.style for row in table.rows] == [None, "bold"]
    output = io.StringIO()
    Console(file=output, width=120).print(table)
    text = output.getvalue()
    for part in ("[4, 4]", "11,181,642", "71.00 ± 2.48", "1 to 3 seeds"):
        assert part in text
