"""The two values between the float graph and the C: decomposed weights, and those with quantized activations.

`save_oracle` and `load_oracle` keep a QuantizedModel as host/oracle.npz, the canonical parameters that `bdcc verify`
judges the built library by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bdcc.ir.graph import F32, Graph

U8 = npt.NDArray[np.uint8]
I8 = npt.NDArray[np.int8]

# Largest sum of |c| over one filter's bases (docs/design.md): a cap of 31 costs at most 0.4 % of the squared error.
COEFFICIENT_CAP = {1: 31, 2: 31, 3: 31, 4: 31, 5: 63, 6: 127, 7: 127}
MAX_BASES = 7
MAX_BITS = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decomposition:
    """w[n] ~ scale[n] * sum_b coefficients[n, b] * m[n, b], m in {-1, +1}, K in ONNX order (CI/groups, KH, KW).

    coefficients: int16 [N, B], sum |c| at most COEFFICIENT_CAP[B]; signs: uint8 [N, K], bit b set where m[n, b] is +1;
    scale: float32 [N], not negative; bias: float32 [N], the layer's (corrected by methods that do so).
    """

    coefficients: npt.NDArray[np.int16]
    signs: U8
    scale: F32
    bias: F32

    @property
    def bases(self) -> int:
        return int(self.coefficients.shape[1])

    def integer_weights(self) -> I8:
        """int8 [N, K]: sum_b c[n, b] * m[n, b]."""
        patterns = np.arange(1 << self.bases)
        plus_minus = 2 * ((patterns[:, None] >> np.arange(self.bases)) & 1) - 1  # [2^B, B]
        levels = (self.coefficients.astype(np.int64) @ plus_minus.T).astype(np.int8)  # [N, 2^B]
        return np.take_along_axis(levels, self.signs.astype(np.intp), axis=1)

    def weights(self) -> F32:
        """float32 [N, K]: scale * integer weights."""
        return self.scale[:, None] * self.integer_weights().astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecomposedModel:
    """layers: decomposition of each weight layer by name; a weight layer that is missing stays float."""

    graph: Graph
    layers: Mapping[str, Decomposition]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorQuant:
    """How a tensor becomes codes: q = clamp(rint(x * r) + z, 0, 2^bits - 1), x ~ delta * (q - z), r = f32(1 / delta).

    delta is None for a dynamic range: delta and z then follow from each picture's own minimum and maximum.
    """

    bits: int
    delta: np.float32 | None
    zero_point: int = 0

    @property
    def dynamic(self) -> bool:
        return self.delta is None

    @property
    def top(self) -> int:
        """Largest code."""
        return (1 << self.bits) - 1

    @property
    def reciprocal(self) -> np.float32:
        assert self.delta is not None, "a dynamic range has no fixed step"
        return np.float32(1.0) / np.float32(self.delta)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantizedModel:
    """tensors: for the input tensor of every decomposed layer, by tensor name, how it is quantized."""

    decomposed: DecomposedModel
    tensors: Mapping[str, TensorQuant]

    @property
    def graph(self) -> Graph:
        return self.decomposed.graph
