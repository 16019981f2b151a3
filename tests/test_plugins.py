"""Attributes of the user's own files: found, kept while a file is the same, and what is said when they are not."""

import os

import pytest

from tljax import plugins
from tljax.errors import UserError

SOURCE = """
from __future__ import annotations
import dataclasses

@dataclasses.dataclass
class Numbers:
    a: int = 1

def halve(x): return x / 2
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_same_file_gives_the_same_object(file, monkeypatch):
    halve = plugins.load_plugin(f"{file}:halve", "function")
    assert halve(3) == 1.5
    assert plugins.load_plugin(f"{file}:Numbers", "class")().a == 1
    monkeypatch.chdir(file.parent)
    assert plugins.load_plugin("mine.py:halve", "function") is halve
    assert [p.name for p in file.parent.iterdir()] == ["mine.py"]


def test_a_changed_file_is_read_again(file):
    before = plugins.load_plugin(f"{file}:halve", "function")
    then = file.stat().st_mtime_ns
    file.write_text(SOURCE.replace("x / 2", "x / 4"))
    os.utime(file, ns=(then, then + 1000))
    assert plugins.load_plugin(f"{file}:halve", "function")(4) == 1
    assert before(4) == 2


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mine.py:halv", 'mine.py has no function "halv"; did you mean "halve"?'),
        ("mine.py:zzz", 'has no function "zzz"; there is: annotations, Numbers, halve.'),
        ("nime.py:halve", 'there is no file nime.py; did you mean "mine.py"?'),
        ("nowhere/mine.py:halve", 'function "nowhere/mine.py:halve": there is no folder nowhere.'),
        ("mine.py", 'named by file and name, as in FILE.py:NAME, got "mine.py".'),
        ("mine.py:", 'named by file and name, as in FILE.py:NAME, got "mine.py:".'),
        ("mine:halve", 'named by file and name, as in FILE.py:NAME, got "mine:halve".'),
    ],
)
def test_what_is_not_there(file, monkeypatch, spec, words):
    monkeypatch.chdir(file.parent)
    with pytest.raises(UserError) as error:
        plugins.load_plugin(spec, "function")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("a = 1\ndef f(): return 1 / 0\nf()\n", "mine.py, line 2: ZeroDivisionError: division by zero"),
        ("a = 1\nb = = 2\n", "mine.py, line 2: SyntaxError: invalid syntax"),
        ("import no_such_module_at_all\n", "line 1: ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("raise ValueError('two\\nlines')\n", "line 1: ValueError: two lines"),
        (
            "from tljax.losses import loss\n@loss('waek')\ndef f(): pass\n",
            'line 2: There is no need "waek"',
        ),
    ],
)
def test_a_file_that_raises(file, source, words):
    file.write_text(source)
    for _ in range(2):
        with pytest.raises(UserError) as error:
            plugins.load_plugin(f"{file}:f", "function")
        assert words in str(error.value)
        assert "\n" not in str(error.value)
