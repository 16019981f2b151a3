"""The one kind of error that a user can cause, and the sentence that it prints."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one sentence; `run.py` prints it and exits with code 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `'; did you mean "x"?'` for the known name closest to `name`, else lists what there is."""
    known = [str(k) for k in known]
    if close := difflib.get_close_matches(str(name), known, n=1, cutoff=0.5):
        return f'; did you mean "{close[0]}"?'
    return f"; there is: {', '.join(known) or 'nothing'}."
