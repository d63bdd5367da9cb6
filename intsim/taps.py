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
    chosen = {program.logits}
    for glob in globs:
        found = {glob} & program.tensors.keys() or {name for name in names if fnmatchcase(name, glob)}
        if not found:
            raise UserError(f"no tensor matches {glob!r}; names look like {names[1]} or {program.logits}")
        chosen |= found
    return [name for name in names if name in chosen]
