# SPDX-License-Identifier: 0BSD
"""What the oracle says each step must leave in memory: the golden vectors of `selftest`, and what
`bdcc verify` compares.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bdcc.approx.model import QuantizedModel
from bdcc.approx.quantize import quantize_array
from bdcc.approx.simulate import Trace, run_exact
from bdcc.codegen.checksum import checksum
from bdcc.ir.graph import F32

Array = npt.NDArray[Any]


def expected_tensor(
    model: QuantizedModel, trace: Trace, *, tensor: str, quant: str | None
) -> Array:
    """The tensor's values in (C, H, W) order: float32, or the uint8 codes made with the range of
    tensor `quant`.

    A step may hand on codes before the graph's quantized tensor: a max-pool commutes with the
    monotone quantizer.
    """
    values = trace.values[tensor]
    shape = model.graph.map_shape(tensor)
    if quant is None:
        return values.reshape(shape)
    return quantize_array(values, model.tensors[quant]).reshape(shape)


def in_memory(array: Array) -> bytes:
    """The bytes that C has: [H][W][C]."""
    return np.ascontiguousarray(array.transpose(1, 2, 0)).tobytes()


def golden_vectors(model: QuantizedModel, steps: list[dict[str, Any]], pictures: F32) -> bytes:
    """host/golden.bin: "BDCCGOLD", pictures, steps, floats per picture (uint64), then per picture
    the input and the
    checksum of what each step leaves. steps: as plan.describe_steps gives them; pictures: float32
    [n, C, H, W]."""
    header = np.array([len(pictures), len(steps), pictures[0].size], dtype="<u8")
    parts = [b"BDCCGOLD", header.tobytes()]
    for picture in pictures:
        parts.append(np.ascontiguousarray(picture, dtype="<f4").tobytes())
        trace = run_exact(model, picture)
        sums = []
        for step in steps:
            array = expected_tensor(model, trace, tensor=step["tensor"], quant=step["quant"])
            # A step that restores ONNX's order leaves a vector.
            sums.append(checksum(in_memory(array.reshape(step["shape"]))))
        parts.append(np.array(sums, dtype="<u8").tobytes())
    return b"".join(parts)
