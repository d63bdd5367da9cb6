"""Every command in README.md, docs/*.md and the help texts: it is run as printed, and says what is shown.

A page is a session in an empty folder, command after command.  What a reader has and this machine has not is stood in
for, under the same names: the official checkpoint by a small network of its layout, photographs by drawn ones.  Shown
output is held against the real one with its numbers masked, as another network has other numbers; where no stand-in
takes part, exactly.  What is not run as printed is in the tables INSTEAD and PARSED_ONLY, with the reason.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from golden.cli import COMMANDS, cli
from golden.vectors import UNITS

torch = pytest.importorskip("torch")
from bitexact.vim import Vim, VimConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
LIMIT = 120  # seconds for one command


# Pages


@dataclass
class Command:
    """A command as printed, and the lines shown below it (None: none are)."""

    line: str
    shown: list[str] | None = None


@dataclass
class Page:
    commands: list[Command] = field(default_factory=list)
    python: list[str] = field(default_factory=list)
    spans: list[str] = field(default_factory=list)  # `code` in the text


def read(text: str) -> Page:
    """What a page has readers run.  A block of another language must be none of these."""
    page = Page()
    blocks = re.findall(r"^```(.*)\n((?:.*\n)*?)```$", text, flags=re.MULTILINE)
    assert text.count("```") == 2 * len(blocks)
    for language, body in blocks:
        if language == "sh":
            page.commands += [Command(line) for line in logical(body.splitlines()) if not line.startswith("#")]
        elif language == "console":
            page.commands += session(body)
        elif language == "python":
            page.python.append(body)
        else:
            assert language in ("", "systemverilog"), f"a block of {language}: is it sh, console or python?"
            assert not re.search(r"^(\$ |make |\.?/?(\w+/)*(intsim|python3?|pip) )", body, flags=re.MULTILINE), body
    text = re.sub(r"^```(.*)\n((?:.*\n)*?)```$", "", text, flags=re.MULTILINE)
    page.spans = re.findall(r"`([^`\n]+)`", text)
    return page


def logical(lines: list[str]) -> list[str]:
    """Lines that end in a backslash with those that continue them; without empty ones."""
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def session(body: str) -> Iterator[Command]:
    """`$ command`, continued while lines end in a backslash, and what it prints."""
    parts = re.split(r"^\$ ", body, flags=re.MULTILINE)
    assert parts[0] == "", "a console block begins with a command"
    for part in parts[1:]:
        command = re.match(r"(?:.*\\\n)*.*\n", part)
        assert command is not None
        yield Command(*logical(command[0].splitlines()), part[command.end() :].splitlines())


def test_pages_are_read() -> None:
    text = "`a b`\n```sh\nx \\\n  y\n\n# no\nz # yes\n```\n"
    text += "```console\n$ one \\\n    two\nout\n$ three\n```\n```\ndata\n```\n"
    page = read(text)
    assert [(c.line, c.shown) for c in page.commands] == [
        *(("x    y", None), ("z # yes", None)),
        *(("one      two", ["out"]), ("three", [])),
    ]
    assert page.spans == ["a b"]
    for hidden in ("```bash\nls\n```\n", "```\nintsim info\n```\n", "```\n$ ls\n```\n", "```sh\nls\n"):
        with pytest.raises(AssertionError):
            read(hidden)


# Shown and real output


def mask(line: str) -> str:
    """A line without its numbers, hashes, rules and alignment."""
    line = re.sub(r"\b(?=[0-9a-f_]*[0-9])[0-9a-f_]+\b|\b[0-9a-f]{2}\b|[0-9]+", "#", line)
    line = re.sub(r"-?#(?:[.,]#)*", "#", line)
    return re.sub(r"[\s─]+", " ", line).strip()


def differs(shown: list[str], real: list[str], exact: bool) -> str:
    """Where the shown lines are not the real ones, '' if they are; '...' stands for any lines."""
    clean = (lambda line: line.rstrip()) if exact else mask
    there = [text for text in map(clean, real) if text]
    at, free = 0, False
    for line in shown:
        text = clean(line)
        if line.strip() == "...":
            free = True
            continue
        if not text:
            continue
        while free and at < len(there) and there[at] != text:
            at += 1
        if at >= len(there) or there[at] != text:
            return f"shown {line!r} ({text!r}), said {there[at] if at < len(there) else 'nothing more'!r}"
        at, free = at + 1, False
    return "" if free or at == len(there) else f"not shown: {there[at]!r}"


def test_output_is_compared() -> None:
    real = ["", " a   12 ", " ─── ", "hash 0a1b2c", "b 3.5 s", "end"]
    for good in (["a 7", "hash ffee0", "b 1 s", "end"], ["a 1", "...", "end"], ["..."], ["...", "b 9,000.1 s", "..."]):
        assert differs(good, real, exact=False) == ""
    for bad in ([], ["a 7"], ["b 1 s", "..."], ["...", "b 1 s"], ["a 7", "...", "c", "..."], ["...", "end", "a 1"]):
        assert differs(bad, real, exact=False) != ""
    assert differs([" a   12", " ───", "...", "end"], real, exact=True) == ""
    assert differs([" a   13", "..."], real, exact=True) != ""


# What a reader has


def draw(folder: Path, names: list[str], side: int) -> list[Path]:
    """Smooth pictures with some noise, the same every time."""
    folder.mkdir()
    rng = np.random.default_rng(len(names))
    files = []
    for name in names:
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((side, side))
        noisy = np.asarray(coarse).astype(int) + rng.integers(-20, 21, (side, side, 3))
        files.append(folder / name)
        PIL.Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(files[-1])
    return files


def checkpoint(path: Path) -> None:
    """The layout of the official Vim-Tiny, and its image size and classes; but small: 17 tokens, two layers."""
    torch.manual_seed(0)
    config = VimConfig(224, 224, 3, 56, 56, 16, 2, 32, 16, 1, 4, 1000)
    state = Vim(config).state_dict()
    for name, value in state.items():
        if name in ("cls_token", "pos_embed", "head.weight"):
            value.normal_(std=0.3)
    torch.save({"model": state, "epoch": 300}, path)


@pytest.fixture(scope="module")
def tools_of(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an environment: intsim and python are this interpreter's."""
    folder = tmp_path_factory.mktemp("venv") / "bin"
    folder.mkdir()
    for name, what in (("intsim", "-m golden.cli"), ("python", ""), ("python3", "")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} {what} "$@"\n')
        script.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def had(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What readers have, under the names that pages and help texts use."""
    folder = tmp_path_factory.mktemp("had")
    checkpoint(folder / "vim_t_midclstok_76p1acc.pth")
    names = [f"n0{i}_thing.jpg" for i in range(2, 5)]
    draw(folder / "calibration", [f"{i}.jpg" for i in range(4)], 256)
    draw(folder / "photos", ["n01688243_frilled_lizard.jpg", *names], 256)
    rows = "".join(f"{file.name},{i}\n" for i, file in enumerate(sorted((folder / "photos").glob("*.jpg"))))
    (folder / "photos" / "labels.csv").write_text("file,class_index\n" + rows)
    small = np.stack([np.asarray(PIL.Image.open(p)) for p in draw(folder / "small", ["0.png", "1.png"], 32)])
    np.savez(folder / "test.npz", images=small, labels=np.arange(2))
    shutil.copy(folder / "small" / "0.png", folder / "cat.png")
    (folder / "tools").symlink_to(ROOT / "tools")
    return folder


def provide(had: Path, folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).symlink_to(had / name)


# Pages as sessions


def in_makefile(target: str) -> Callable[[], None]:
    def check() -> None:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    return check


def extras(*names: str) -> Callable[[], None]:
    def check() -> None:
        section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]\n")[1].split("\n[")[0]
        assert set(names) <= set(re.findall(r"^(\w+) = ", section, flags=re.MULTILINE))

    return check


# Commands that are not run as printed: what is checked, and why that.
INSTEAD: dict[str, Callable[[], None]] = {
    "make golden": in_makefile("golden"),  # test_make_golden runs the recipe, in an environment that is there
    "make test": in_makefile("test"),  # this is it
    "python3 -m venv .venv": lambda: None,  # the test has its environment; packages may be out of reach
    ". .venv/bin/activate": lambda: None,
    "pip install '.[torch,report]'": extras("torch", "report"),
}
RTL = ("iverilog", "vvp", "dumps")  # commands with these words need Icarus Verilog


def run(line: str, before: int, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Status and output of a command line in bash; in this process if it is intsim alone, to load kernels once.

    before: the status that `$?` is.
    """
    if line.startswith("intsim ") and not re.search(r"""[|<>;&$`"*?~]""", re.sub(r"'[^']*'", "", line)):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            ended = CliRunner().invoke(cli, shlex.split(line)[1:])
        return ended.exit_code, ended.output
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; (exit {before}); {line}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
    )
    return done.returncode, done.stdout


def bare(line: str) -> str:
    """A command without its comment."""
    return re.split(r"\s+#\s", line)[0].strip()


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, tmp_path: Path, had: Path, tools_of: Path) -> None:
    found = read((ROOT / page).read_text())
    provide(had, tmp_path, "vim_t_midclstok_76p1acc.pth", "calibration", "photos", "test.npz", "tools")
    environment = {**os.environ, "PATH": f"{tools_of}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "120"}
    status, left_out, icarus = 0, [], shutil.which("iverilog")
    for at, command in enumerate(found.commands):
        line = bare(command.line)
        if line in INSTEAD:
            INSTEAD[line]()
            continue
        before = bare(found.commands[at - 1].line) if at else ""
        if not icarus and (any(word in line for word in RTL) or (line == "echo $?" and before in left_out)):
            left_out.append(line)
            continue
        status, said = run(line, status, tmp_path, environment)
        asked = at + 1 < len(found.commands) and found.commands[at + 1].line == "echo $?"
        assert status == 0 or asked, f"{page}: {line}: status {status}\n{said}"
        if command.shown is not None:
            real = [text for text in said.splitlines() if not text.startswith("compiling kernels")]
            exact = "vectors" in line and "--model" not in line
            wrong = differs(command.shown, real, exact)
            assert not wrong, f"{page}: {line}: {wrong}\n{said}"
    for text in found.python:
        exec(compile(text, page, "exec"), {})
    if left_out:
        pytest.skip(f"iverilog is missing, {len(left_out)} commands of {page} were not run: {left_out[0]} ...")


def test_two_commands() -> None:
    """README has exactly two to start with, and CI runs its test command as it is."""
    start = (ROOT / "README.md").read_text().split("## Two commands\n")[1].split("\n## ")[0]
    assert [bare(command.line) for command in read(start).commands] == ["make golden", "make test"]
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "make test"


def test_make_golden(tmp_path: Path, tools_of: Path) -> None:
    """The recipes, with few tensors and no tests: bundle and verification; pytest."""
    venv = tools_of.parent
    for stamp in (".core", ".test"):
        (venv / stamp).touch()
    few = ["COUNT=1", "GOLDEN=--layers '*.norm.out'"]
    where = [f"VENV={venv}", f"BUNDLE={tmp_path / 'golden_vectors'}", f"PYTHON={sys.executable}"]
    # Under `make test` the outer make's options and its level must not reach these two.
    own = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    make = functools.partial(subprocess.run, cwd=ROOT, env=own, capture_output=True, text=True, timeout=LIMIT)
    done = make(["make", "golden", *where, *few])
    assert done.returncode == 0 and done.stdout.endswith("golden_vectors: whole\n"), done.stdout + done.stderr
    done = make(["make", "test", *where, "TESTS=--version"])
    assert done.returncode == 0 and "pytest" in done.stdout + done.stderr


# Commands in running text


def click_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that `intsim WORDS` names, and its arguments."""
    found: Any = cli
    with click.Context(cli) as context:
        while isinstance(found, click.Group) and words != ["--help"]:
            assert words, "the name of a command or unit is missing"
            name, *words = words
            made = found.get_command(context, name)
            assert made is not None, f"there is no {name}"
            found = made
    return found, words


def parse(line: str) -> None:
    """Every intsim of a command line parses, with all its options; nothing is run."""
    for part in re.split(r"\|", line):
        words = shlex.split(re.sub(r"[<>] *\S+", "", part))
        if words[0] != "intsim":
            continue
        command, arguments = click_command(words[1:])
        command.make_context(command.name, arguments)


def options_of(script: Path) -> set[str]:
    """Words like --this in the script's text, in which argparse and click name their options."""
    return set(re.findall(r'"(--[\w-]+)', script.read_text()))


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text(page: str) -> None:
    """Names, options and scripts exist; what has all it needs parses."""
    scripts = set().union(*(options_of(script) for script in (ROOT / "tools").glob("*.py")))
    for span in read((ROOT / page).read_text()).spans:
        words = span.split()
        if words[0] == "intsim" and len(words) > 1:
            if words[1] == "COMMAND":
                continue
            line = re.sub(r"\bUNIT\b", "requantize", span).replace("WIDTH", "state-bits").replace("...", "")
            command, arguments = click_command(shlex.split(line)[1:]) if not line.endswith("intsim") else (cli, [])
            known = {name for option in command.params for name in option.opts}
            assert {word for word in arguments if word.startswith("--")} - {"--help"} <= known, span
            required = {o.name for o in command.params if o.required}
            given = {o.name for o in command.params if set(o.opts) & set(arguments)}
            if "--help" not in arguments and required <= given:
                parse(line)
        elif words[0] == "python":
            script = ROOT / words[1]
            assert script.is_file(), span
            assert {word for word in words if word.startswith("--")} <= options_of(script), span
        elif words[0] == "make" and len(words) > 1:
            in_makefile(words[1])()
        elif words[0].startswith("--"):
            known = {name for command in every_command() for option in command[1].params for name in option.opts}
            assert words[0] in known | scripts, span


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    """Files exist, headings too."""
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text()):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
            made = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in made, f"{page}: {target}"


# Examples of the help texts


@functools.cache
def every_command() -> list[tuple[str, click.Command]]:
    """All commands, those of the units too."""
    found = []
    for name in COMMANDS:
        command = importlib.import_module(f"golden.commands.{name}").command
        found.append((name, command))
        if name in ("vectors", "judge"):
            found += [(f"{name} {unit}", click_command([name, unit])[0]) for unit in UNITS]
    return found


def examples_of(command: click.Command) -> list[str]:
    assert command.epilog is not None and command.epilog.startswith("\b\nExamples:\n")
    return [line.strip() for line in command.epilog.splitlines()[2:]]


PARSED_ONLY = {  # examples that are not run, and why
    "intsim compare --model vim_int8.safetensors --images photos/ --center-crop --device cuda --form fast": "CUDA",
    "intsim compare --count 2": "takes 10 s: the tutorial's small model",
    "intsim compare --layers 'layers.0.*' --reference oracle --count 1": "the oracle takes long: test_fakequant",
    "intsim eval --data test.npz --engine fake --device cuda": "CUDA",
    "intsim eval --data photos/ --model vim_int8.safetensors --center-crop --workers 4": "processes: test_dask",
    "intsim golden --model vim_int8.safetensors --images photos/ --center-crop --workers 4 --out tiny": "likewise",
    "intsim golden --out bundle": "writes 64 images: test_make_golden writes one",
    "intsim report --out report.html": "proves for long: test_report, and the tutorial's small model",
    "intsim report --text --count 16": "likewise",
    "intsim sweep --what rounding --values half_even,floor --data test.npz --calibration photos/ --out rounding": (
        "quantizes three times: test_whatif"
    ),
    "intsim sweep --what accumulator-bits --values 18,20,22,24 --data test.npz --out sweep": "takes 10 s: test_whatif",
    "intsim sweep --what state-bits --values 4,5,6,7 --data test.npz --no-plot --out states": "is in docs/COMMANDS.md",
    "intsim widths": "proves for long: test_widths, and the tutorial's small model",
    "intsim widths --all --sv widths_pkg.sv": "likewise",
}
MAY_DIFFER = ("verify", "judge")  # status 1 is an answer too


@pytest.fixture(scope="module")
def place(had: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that examples name."""
    folder = tmp_path_factory.mktemp("examples")
    provide(had, folder, "photos", "test.npz", "cat.png")
    for name, of in (("vim.pth", "vim_t_midclstok_76p1acc.pth"), ("train.npz", "train.npz")):
        (folder / name).symlink_to(had / of)
    pixels = np.stack([np.asarray(PIL.Image.open(file))[16:240, 16:240] for file in (had / "photos").glob("*.jpg")])
    np.savez(had / "train.npz", images=pixels)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert intsim("quantize vim.pth --calibration photos --center-crop --out vim_int8.safetensors") == 0
        assert intsim("golden --count 2 --layers 'layers.0.mixer.scan*' --out bundle") == 0
        lines = CliRunner().invoke(cli, ["vectors", "requantize", "--count", "50"]).output.splitlines()
    shutil.copytree(folder / "bundle" / "images", folder / "dumps")
    (folder / "answers.txt").write_text("".join(f"{line} {line.split()[-1]}\n" for line in lines))
    (folder / "dut").write_text("#!/usr/bin/awk -f\n{print $0, $NF}\n")
    (folder / "dut").chmod(0o755)
    return folder


def intsim(line: str) -> int:
    done = CliRunner().invoke(cli, shlex.split(line))
    assert done.exit_code in (0, 1), f"{line}: {done.output}"
    return done.exit_code


def runnable() -> Iterator[tuple[str, str]]:
    for name, command in every_command():
        for line in examples_of(command):
            if line not in PARSED_ONLY and " " not in name:
                yield name, line


def test_what_is_only_parsed_exists() -> None:
    assert set(PARSED_ONLY) <= {line for _, command in every_command() for line in examples_of(command)}


@pytest.mark.parametrize(("name", "line"), list(runnable()))
def test_examples_run(name: str, line: str, place: Path, tools_of: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    if not re.search("[|>]", line):
        made = [word for flag, word in zip(shlex.split(line), shlex.split(line)[1:], strict=False) if flag == "--out"]
        for word in made:
            Path(word).unlink(missing_ok=True)  # the Program, which others of these examples need
        status = intsim(line.removeprefix("intsim "))
        assert all(Path(word).exists() for word in made)
    else:
        monkeypatch.setenv("PATH", f"{tools_of}{os.pathsep}{os.environ['PATH']}")
        done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, timeout=LIMIT)
        status = done.returncode
        assert done.stderr == ""
    assert status == 0 or (name in MAY_DIFFER and status == 1)


@pytest.mark.parametrize("unit", UNITS)
def test_examples_of_a_unit_run(unit: str) -> None:
    """Those of `vectors UNIT`, for a few lines: `test_vectors` has what they say."""
    for line in examples_of(click_command(["vectors", unit])[0]):
        words = shlex.split(re.split("[|>]", line)[0])
        assert words[:3] == ["intsim", "vectors", unit]
        done = CliRunner().invoke(cli, [*words[1:], "--count", "3"])
        assert done.exit_code == 0 and len(done.output.splitlines()) == 3, done.output


@pytest.mark.parametrize(("name", "command"), every_command(), ids=[name for name, _ in every_command()])
def test_examples_parse(name: str, command: click.Command, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)  # answers.txt is opened
    lines = examples_of(command)
    assert 2 <= len(lines) <= 5
    help_text = command.get_help(click.Context(command, info_name=f"intsim {name}"))
    assert help_text.rstrip().endswith("\n".join(["  Examples:", *(f"    {line}" for line in lines)]))
    for line in lines:
        assert f"intsim {name}" in line
        parse(line)


def test_an_example_that_does_not_parse_is_seen() -> None:
    for bad in ("intsim golden --output x", "intsim run", "intsim quantize a.pth --out b", "intsim judge nothing"):
        with pytest.raises((click.ClickException, AssertionError)):
            parse(bad)
