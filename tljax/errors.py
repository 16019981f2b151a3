"""What ends a run, each with one sentence for the user and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TljaxError(Exception):
    """An end that is no bug: `run.py` prints `label` and the message, one sentence, and exits with `exit_code`."""

    label, exit_code = "error", 1


class UserError(TljaxError):
    """Bad input, found before the expensive part."""

    exit_code = 2


class TrainingStopped(TljaxError):
    """Training cannot go on."""

    label = "stopped"


class Interrupted(TljaxError):
    """The user asked to stop; the state is saved."""

    label, exit_code = "stopped", 130


def did_you_mean(name: str, known: Iterable[str], most: int = 20) -> str:
    """Returns `'; did you mean "x"?'` for the known name closest to `name`, else lists what there is, or its start."""
    known = [str(k) for k in known]
    if close := difflib.get_close_matches(str(name), known, n=1, cutoff=0.5):
        return f'; did you mean "{close[0]}"?'
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return f"; there is: {', '.join(known[:most]) or 'nothing'}{more}."
