# SPDX-License-Identifier: 0BSD
"""How large a model may be. Whatever its file says is held against these bounds before anything is
allocated or computed for it; docs/operators.md lists them for users.

Extents and counts have bounds of their own. All else grows with `--max-memory`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bdcc.errors import ModelError
from bdcc.ir.graph import AveragePool, Conv, Dense, Lrn, MaxPool, Node, Shape, macs

MAX_MEMORY = 4 << 30  # bytes; VGG-16 on 224 x 224 pixels takes 1.2 GB
MAX_EXTENT = 1 << 16  # channels, height, width, kernel, stride, dilation, pad, size of LRN
MAX_RANK = 8  # dimensions of a constant
CHUNK = 64  # pictures
SAMPLES = 4000  # outputs of a Conv (RANGE_ROWS in approx/observe.py)
MAX_NODES = 1 << 15  # functions inlined: some seconds of reading
MAX_NESTING = 32  # functions that call functions, or themselves
# Elements of a tensor, its padding included: with 8 bytes each (a position of 8 bits is one in a
# map of one channel) the C's sizes and offsets in a tensor stay below 2^31.
MAX_ELEMENTS = 1 << 27
# Inputs of a filter: their int32 sums hold 8 bits with any number of bases that a search may choose
# (`largest_weight` in codegen/geometry.py: 127 for 6 and more, which Conv may have; 31 up to 4).
MAX_CONV_INPUTS = 1 << 16
MAX_DENSE_INPUTS = 1 << 18

RAISE = "Raise it with --max-memory"


@dataclass(slots=True, kw_only=True)
class Budget:
    """What a model has taken so far of what it may; every method adds to that or raises ModelError.

    fetched: bytes read from files beside the model; stored: of the constants that the model holds;
    bytes: of all constants, weights and the activations of one picture; folded: that operators on
    constants read and write, and those of the layers' weights; work: multiply-adds of one picture,
    or comparisons.
    """

    max_memory: int = MAX_MEMORY
    fetched: int = 0
    stored: int = 0
    bytes: int = 0
    folded: int = 0
    work: int = 0

    @property
    def max_elements(self) -> int:
        return min(self.max_memory // 64, MAX_ELEMENTS)

    def fetch(self, amount: int, *, layer: str) -> None:
        """Bytes that are read from a file beside the model, which may be a sparse one."""
        self.fetched += amount
        self._check(self.fetched, self.max_memory, "bytes of external data", layer=layer)

    def hold(self, amount: int, *, layer: str) -> None:
        """Bytes of a constant, of weights, or of an activation."""
        self.bytes += amount
        self._check(self.bytes, self.max_memory, "bytes of weights and activations", layer=layer)

    def store(self, amount: int, *, layer: str) -> None:
        """Bytes of a constant of the file."""
        self.hold(amount, layer=layer)
        self.stored += amount

    def fold(self, amount: int, *, layer: str) -> None:
        """Bytes that are read, written or copied: a small file does not make much work."""
        self.folded += amount
        most = 16 * self.stored + self.max_memory // 8
        self._check(self.folded, most, "bytes of constants that are worked on", layer=layer)

    def picture(self, shape: Shape, *, layer: str) -> None:
        """The model's input: chunks of CHUNK pictures (approx/chunks.py) are in memory."""
        most = self.max_memory // (4 * CHUNK)
        if math.prod(shape) > most:
            raise ModelError(
                f"a picture of {_by(shape)}, {math.prod(shape)} values; bdcc handles {most}, as "
                f"{CHUNK} are in memory at a time",
                layer=layer,
                hint=RAISE,
            )
        self.activation(shape, layer=layer)

    def activation(self, shape: Shape, *, layer: str) -> None:
        """An activation of shape (C, H, W) or (N,), float32."""
        if len(shape) > 1 and max(shape) > MAX_EXTENT:
            raise ModelError(
                f"a feature map of {_by(shape)}; bdcc handles up to {MAX_EXTENT} channels, rows "
                "and columns",
                layer=layer,
            )
        self.elements(shape, layer=layer)
        self.hold(4 * math.prod(shape), layer=layer)

    def elements(self, shape: Shape, *, layer: str) -> None:
        count = math.prod(shape)
        if count > self.max_elements:
            raise ModelError(
                f"a tensor of {_by(shape)}, {count} values; bdcc handles {self.max_elements}",
                layer=layer,
                hint=RAISE if self.max_elements < MAX_ELEMENTS else None,
            )

    def node(self, node: Node, source: Shape, output: Shape, *, layer: str) -> None:
        """A layer with inputs of shape `source` (of one of them): its output, padded input, weights
        and work.
        """
        self.activation(output, layer=layer)
        work = 0
        match node:
            case Conv() | Dense():
                inputs = math.prod(node.weight.shape[1:])
                most = MAX_CONV_INPUTS if isinstance(node, Conv) else MAX_DENSE_INPUTS
                if inputs > most:
                    raise ModelError(
                        f"filters of {inputs} weights; bdcc handles {most}, which sums in 32 bits "
                        "hold",
                        layer=layer,
                    )
                self.hold(node.weight.nbytes + node.bias.nbytes, layer=layer)
                self.fold(node.weight.nbytes, layer=layer)  # it is read, may be scaled or copied
                work = macs(node, {node.output: output})
                if isinstance(node, Conv):
                    self._observe(node, inputs, output, layer=layer)
            case Lrn():
                work = math.prod(output) * node.size
            case MaxPool() | AveragePool():
                taps = math.prod(node.kernel)
                if taps > MAX_EXTENT:
                    raise ModelError(
                        f"a window of {taps} positions; bdcc handles {MAX_EXTENT}", layer=layer
                    )
                work = math.prod(output) * taps
        self.elements(_padded(node, source), layer=layer)
        self.work += work
        self._check(self.work, 128 * self.max_memory, "multiply-adds of a picture", layer=layer)

    def _observe(self, node: Conv, inputs: int, output: Shape, *, layer: str) -> None:
        """What choosing its bases works in: the inputs of all outputs of a picture, float32, and
        of SAMPLES outputs, with their second moments in float64.
        """
        columns = 4 * math.prod(output[1:]) * inputs
        moments = node.groups * inputs * (8 * inputs + 4 * SAMPLES)
        if max(columns, moments) > self.max_memory:
            raise ModelError(
                f"it is approximated in {max(columns, moments)} bytes; bdcc handles "
                f"{self.max_memory}",
                layer=layer,
                hint=RAISE,
            )

    def _check(self, found: int, most: int, what: str, *, layer: str) -> None:
        if found > most:
            raise ModelError(
                f"up to here the model has {found} {what}; bdcc handles {most}",
                layer=layer,
                hint=RAISE,
            )


def _padded(node: Node, shape: Shape) -> Shape:
    """What the node reads, with the zeros around it."""
    match node:
        case Conv() | MaxPool() | AveragePool():
            channels, height, width = shape
            top, left, bottom, right = node.pads
            return (channels, height + top + bottom, width + left + right)
        case Lrn():
            return (shape[0] + node.size - 1, *shape[1:])
        case _:
            return shape


def _by(shape: Shape) -> str:
    return " x ".join(str(size) for size in shape)
