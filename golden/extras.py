"""Packages that only some commands need, each in an extra of the installation."""

from __future__ import annotations

from importlib import import_module

from intsim.errors import UserError

EXTRAS = {"torch": "torch", "onnx": "onnx", "jinja2": "report", "matplotlib": "plot", "distributed": "dask"}


def need(package: str, who: str = "this", otherwise: str = "") -> None:
    """Raises UserError where `package` is not installed.  otherwise: what else helps, such as ', or --no-plot'."""
    try:
        import_module(package)
    except ImportError as problem:
        name = "Dask" if package == "distributed" else package
        raise UserError(
            f"{who} needs {name}: pip install '.[{EXTRAS[package]}]' in intsim's source folder{otherwise} ({problem})"
        ) from None
