"""`nox`: the same integers with other versions of Python, NumPy and Numba.  Not part of `make test`.

    nox                          every session whose Python is found (`pip install nox`; pyenv's are found on PATH)
    nox --list                   their names
    nox -s "same-3.13(newest)"   one
    nox -- tests/test_engine.py  these tests in addition

A session has an environment of its own, without torch, and recomputes tests/golden_digest.json: by the definitions,
with each path of the kernels, with 1 and 2 threads, for a generic CPU, and from a bundle.
"""

from __future__ import annotations

import nox

nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# the lowest that pyproject.toml allows and that there is for a Python: NumPy 2.0 has no build for 3.13
LOWEST = {"numpy": "2.0", "numba": "0.61", "click": "8.1", "rich": "13.8", "safetensors": "0.4.5", "Pillow": "10.3"}
LOWEST_313 = {**LOWEST, "numpy": "2.1", "Pillow": "11.0"}


@nox.session(python=PYTHONS)
@nox.parametrize("versions", ["lowest", "newest"], ids=["lowest", "newest"])
def same(session: nox.Session, versions: str) -> None:
    wanted = {"lowest": LOWEST_313 if session.python == "3.13" else LOWEST, "newest": {}}[versions]
    pins = [f"{name}=={version}.*" for name, version in wanted.items()]
    session.install("--editable", ".", *pins, "pytest>=8.0", "hypothesis>=6.100", "jsonschema>=4.20")
    env = {"NUMBA_CACHE_DIR": session.create_tmp()}  # versions of Numba would write over each other's kernels
    session.run("python", "tests/golden_digest.py", "--threads", "1", "2", env=env)
    session.run("python", "-m", "pytest", "tests/test_digest.py", *session.posargs, env=env)
