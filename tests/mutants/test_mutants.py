"""Every fault of the table is noticed by the tests that stand beside it."""

import pytest

from tests.mutants.run import ROOT, run
from tests.mutants.table import MUTANTS


def test_table_has_each_fault_once():
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 60
    for mutant in MUTANTS:
        assert (ROOT / mutant.file).read_text().count(mutant.line) == 1, mutant.name
        assert mutant.line != mutant.wrong
        assert all((ROOT / test.partition("::")[0]).exists() for test in mutant.tests), mutant.name


@pytest.mark.deep
@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_fault_is_caught(mutant):
    outcome = run(mutant)
    assert not outcome.error
    assert outcome.caught_by, f"no test notices {mutant.name}: {mutant.promise}"
