"""Loading plugins: caching per version of the file, and error messages."""

import os

import pytest

from tljax import plugins
from tljax.errors import UserError

SOURCE = """
from __future__ import annotations
import dataclasses

@dataclasses.dataclass
class Options:
    scale: int = 1

def halve(x): return x / 2
"""


@pytest.fixture
def plugin_file(tmp_path):
    path = tmp_path / "custom.py"
    path.write_text(SOURCE)
    return path


def test_load_plugin_caches_an_unchanged_file(plugin_file, monkeypatch):
    halve = plugins.load_plugin(f"{plugin_file}:halve", "function")
    assert halve(3) == 1.5
    assert plugins.load_plugin(f"{plugin_file}:Options", "class")().scale == 1
    monkeypatch.chdir(plugin_file.parent)
    assert plugins.load_plugin("custom.py:halve", "function") is halve
    assert [p.name for p in plugin_file.parent.iterdir()] == ["custom.py"]


def test_load_plugin_reloads_a_changed_file(plugin_file):
    before = plugins.load_plugin(f"{plugin_file}:halve", "function")
    mtime = plugin_file.stat().st_mtime_ns
    plugin_file.write_text(SOURCE.replace("x / 2", "x / 4"))
    os.utime(plugin_file, ns=(mtime, mtime + 1000))
    assert plugins.load_plugin(f"{plugin_file}:halve", "function")(4) == 1
    assert before(4) == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("custom.py:halv", 'custom.py has no function "halv"; did you mean "halve"?'),
        ("custom.py:zzz", 'has no function "zzz"; available: annotations, Options, halve.'),
        ("cutsom.py:halve", 'there is no file cutsom.py; did you mean "custom.py"?'),
        ("nowhere/custom.py:halve", 'function "nowhere/custom.py:halve": there is no folder nowhere.'),
        ("custom.py", 'A custom function must be given as FILE.py:NAME, got "custom.py".'),
        ("custom.py:", 'A custom function must be given as FILE.py:NAME, got "custom.py:".'),
        ("custom:halve", 'A custom function must be given as FILE.py:NAME, got "custom:halve".'),
    ],
)
def test_load_plugin_reports_missing_names(plugin_file, monkeypatch, spec, message):
    monkeypatch.chdir(plugin_file.parent)
    with pytest.raises(UserError) as error:
        plugins.load_plugin(spec, "function")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a = 1\ndef f(): return 1 / 0\nf()\n", "custom.py, line 2: ZeroDivisionError: division by zero"),
        ("a = 1\nb = = 2\n", "custom.py, line 2: SyntaxError: invalid syntax"),
        ("import no_such_module_at_all\n", "line 1: ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("raise ValueError('two\\nlines')\n", "line 1: ValueError: two lines"),
        (
            "from tljax.losses import loss\n@loss('waek')\ndef f(): pass\n",
            'line 2: There is no loss requirement "waek"',
        ),
    ],
)
def test_load_plugin_reports_errors_in_the_file(plugin_file, source, message):
    plugin_file.write_text(source)
    for _ in range(2):  # a file that failed is not cached
        with pytest.raises(UserError) as error:
            plugins.load_plugin(f"{plugin_file}:f", "function")
        assert message in str(error.value)
        assert "\n" not in str(error.value)
