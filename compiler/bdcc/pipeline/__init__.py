# SPDX-License-Identifier: 0BSD
"""From an ONNX file to a measured project: `compile_model` in compile.py tells the story."""

from bdcc.pipeline.compile import CompileResult, compile_model
from bdcc.pipeline.options import CompileOptions

__all__ = ["CompileOptions", "CompileResult", "compile_model"]
