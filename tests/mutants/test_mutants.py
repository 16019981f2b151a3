"""Every mutant of the table is detected by its tests."""

import pytest

from tests.mutants.run import ROOT, run
from tests.mutants.table import MUTANTS


def test_mutant_table_is_valid():
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 60
    for mutant in MUTANTS:
        assert (ROOT / mutant.file).read_text().count(mutant.line) == 1, mutant.name
        assert mutant.line != mutant.wrong
        assert all((ROOT / test.partition("::")[0]).exists() for test in mutant.tests), mutant.name


@pytest.mark.deep
@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_mutant_is_caught(mutant):
    outcome = run(mutant)
    assert not outcome.error
    assert outcome.caught_by, f"no test detects {mutant.name}: {mutant.promise}"
