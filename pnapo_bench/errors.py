"""Errors that a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """One line that says what was expected, what came, where, and what to do; exit status 2, no traceback."""


class TrainingStopped(RuntimeError):
    """Training cannot go on (non-finite numbers); the last good state is on disk. Exit status 1."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An error such as ``unknown method 'pnpao'. Did you mean 'pnapo'? Available: ...``."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return UserError(f"unknown {kind} {name!r}.{hint} Available: {', '.join(names)}")
