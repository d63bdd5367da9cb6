"""`--json` of fuzz.py and faults.py: what was counted, by which command, of which commit; see tests/reports/."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def origin(command: str) -> dict[str, Any]:
    """Where counts come from: {command, commit, changed, python, cpus}.

    command: how the script is called; this call's options are added but for --json and --keep.  changed: whether
    the sources differ from the commit.
    """
    options = sys.argv[1:]
    for dropped in ("--json", "--keep"):
        if dropped in options:
            at = options.index(dropped)
            del options[at : at + 2]
    return {
        "command": " ".join([command, *(f"'{option}'" if " " in option else option for option in options)]),
        "commit": git("rev-parse", "HEAD"),
        "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
    }


def write_report(path: str, content: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="ascii")


def git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
