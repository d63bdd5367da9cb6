"""A Program as an ONNX file: standard operators on integers, with the Program's own integers at every tensor.

    model = export_onnx(program, taps=["layers.3.*", "*.acc"])      # onnx.ModelProto
    onnx_bytes(program)                                             # the file

Each operator of the Program is one node, with its name, that calls a local function of its kind (`functions.py`); the
functions are made of standard operators only.  golden/FORMAT.md, section 9, states inputs, outputs and metadata.
Needs the extra `onnx`.
"""

from __future__ import annotations

from golden.onnx.export import export_onnx, onnx_bytes, tap_names

__all__ = ["export_onnx", "onnx_bytes", "tap_names"]
