# SPDX-License-Identifier: 0BSD
"""bdcc compiles a float ONNX CNN to portable C with binary weights and low-bit activations.

    import bdcc

    options = bdcc.CompileOptions(output=Path("out"), data=Path("pictures"), max_drop_pp=2.0)
    result = bdcc.compile_model(Path("model.onnx"), options)   # as `bdcc compile` does
    with bdcc.Library.open(result.project) as library:          # builds and loads it
        logits = library.run(x)                      # x: float32 [C, H, W] or [N, C, H, W]

    print(bdcc.verify(result.project, images=x[None]).text())   # every layer against the oracle
    print(bdcc.bench(result.project).median_ms)
    project = bdcc.open_project(result.project)                 # as `bdcc eval` and `bdcc run` do
    bdcc.evaluate_project(project, Path("test"), classes=None, limit=0, threads=2, progress=None)
    bdcc.classify(project, Path("photo.jpg"), model=None)

    graph = bdcc.load_onnx(Path("model.onnx"))                  # the network alone

Everything a user can act on is raised as `bdcc.BdccError`. Names are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bdcc.errors import BdccError
    from bdcc.host.bench import bench
    from bdcc.host.library import Library
    from bdcc.host.verify import verify
    from bdcc.ir.onnx_import import load_onnx
    from bdcc.pipeline import CompileOptions, CompileResult, compile_model
    from bdcc.pipeline.project import classify, evaluate_project, open_project

__all__ = [
    "BdccError",
    "CompileOptions",
    "CompileResult",
    "Library",
    "bench",
    "classify",
    "compile_model",
    "evaluate_project",
    "load_onnx",
    "open_project",
    "verify",
]

_HOMES = {
    "BdccError": "bdcc.errors",
    "CompileOptions": "bdcc.pipeline",
    "CompileResult": "bdcc.pipeline",
    "Library": "bdcc.host.library",
    "bench": "bdcc.host.bench",
    "classify": "bdcc.pipeline.project",
    "compile_model": "bdcc.pipeline",
    "evaluate_project": "bdcc.pipeline.project",
    "load_onnx": "bdcc.ir.onnx_import",
    "open_project": "bdcc.pipeline.project",
    "verify": "bdcc.host.verify",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("bdcc")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bdcc' has no attribute '{name}'")
