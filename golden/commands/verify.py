"""`intsim verify`: is a bundle as it was written?"""

from __future__ import annotations

from pathlib import Path

import click

from golden.commands.common import MISMATCH, json_option, progress_bar, result


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option
@click.pass_context
def command(context: click.Context, bundle: Path, json_to: str | None) -> None:
    """Check a golden bundle: every hash, every file, and that all parts agree.  Exit status 1 if anything differs.

    JSON: ok, problems: [text].
    """
    from golden.verify import verify as check

    with result(json_to) as (found, out):
        with progress_bar("images") as update:
            problems = check(bundle, update)
        found.update(ok=not problems, problems=problems)
        for problem in problems:
            out.print(problem, soft_wrap=True)
        found_wrong = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        out.print(f"{bundle}: {found_wrong if problems else 'whole'}", soft_wrap=True)
    if problems:
        context.exit(MISMATCH)
