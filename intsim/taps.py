"""Choosing tensors by glob: `layers.3.*`, `*.acc`, `layers.*.mixer.scan*.h`."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from intsim.errors import UserError
from intsim.program import Program


def select(program: Program, globs: Iterable[str]) -> list[str]:
    """Tensor names that match any of `globs`, in execution order, and always the logits.

    Raises UserError for a glob that matches nothing.
    """
    globs = [globs] if isinstance(globs, str) else list(globs)
    names = list(program.tensors)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise UserError(f"no tensor matches {glob!r}; names look like {names[1]} or {program.logits}")
    return [n for n in names if n == program.logits or any(fnmatchcase(n, g) for g in globs)]
