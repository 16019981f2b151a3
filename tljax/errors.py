"""Errors that end a run with a one-line message and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TljaxError(Exception):
    """Base class of expected errors: `run.py` prints `label` and the one-line message and exits with `exit_code`."""

    label = "error"
    exit_code = 1


class UserError(TljaxError):
    """Invalid input, detected before any expensive work starts."""

    exit_code = 2


class TrainingStopped(TljaxError):
    """Training cannot continue."""

    label = "stopped"


class Interrupted(TljaxError):
    """The user asked to stop; the state is saved."""

    label = "stopped"
    exit_code = 130


def did_you_mean(name: str, candidates: Iterable[str], max_listed: int = 20) -> str:
    """Return the end of an error message about an unknown name.

    Args:
      name: the unknown name.
      candidates: the valid names.
      max_listed: number of candidates listed if none is similar to `name`.

    Returns:
      `'; did you mean "x"?'` with the most similar candidate, or else `"; available: x, y."`.
    """
    candidates = [str(candidate) for candidate in candidates]
    if close := difflib.get_close_matches(str(name), candidates, n=1, cutoff=0.5):
        return f'; did you mean "{close[0]}"?'
    more = f" and {len(candidates) - max_listed} more" if len(candidates) > max_listed else ""
    return f"; available: {', '.join(candidates[:max_listed]) or 'none'}{more}."
