"""The numbers behind templates/popcount.h.j2: register tiles and carry-save adder schedules of the popcount kernels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Vector registers left for accumulators beside the weights, one activation word and temporaries (of 32).
ACCUMULATORS = 24
MAX_TILE = 4  # pixels; more does not pay, the loads are hidden by then
GROUP = 4  # positions (words) that one round of the adder network takes in
PREFETCH_BYTES = 8192  # 4 to 16 KB measured alike for weights that come from L3 or memory
EXTRA_LEVELS = 2  # counter bits above the planes: one word leaves a round for at least 4 * 2^bits - 4 that enter


@dataclass(frozen=True, slots=True, kw_only=True)
class Adder:
    """One statement of an adder network over words, bit by bit; names are C variables.

    product: out = weight & x[position][plane];  full: level, a, b -> sum stays in level's word, carry to out;
    half: level, a -> the same without b;  count: popcount of a joins the total of the top level.
    """

    kind: str
    level: int = 0
    out: str = ""
    a: str = ""
    b: str = ""
    position: int = 0
    plane: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """Carry-save counter for `bits` planes: the statements of a round of `group` positions and of a single one.

    limit: most positions between two flushes, so that no byte of a plain C total passes 255.
    """

    bits: int
    levels: int
    group: int
    limit: int
    many: tuple[Adder, ...]
    single: tuple[Adder, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """tile: pixels that the AVX-512 kernel computes together; passes: the bases whose accumulators are in registers at
    the same time; limit: most positions that the generic kernel counts at once (see Counter)."""

    bases: int
    bits: int
    tile: int
    limit: int
    passes: tuple[tuple[int, ...], ...]


def kernel_parameters(bases: int, bits: int) -> Kernel:
    """The numbers of one kernel; the AVX-512 tile has tile * len(pass) * bits accumulators."""
    count = -(-bases * bits // ACCUMULATORS)
    size, larger = divmod(bases, count)
    passes, first = [], 0
    for index in range(count):
        after = first + size + (index < larger)
        passes.append(tuple(range(first, after)))
        first = after
    tile = max(1, min(MAX_TILE, ACCUMULATORS // (len(passes[0]) * bits)))
    return Kernel(
        bases=bases, bits=bits, tile=tile, limit=counter(bits).limit, passes=tuple(passes)
    )


def adder_network(bits: int, positions: int) -> tuple[Adder, ...]:
    """Adds `positions` words of each of `bits` planes to a bit-sliced counter with bits + EXTRA_LEVELS levels.

    A word of plane q enters at level q, because a bit there is worth 2^q: so carries of one plane meet the words
    of the next, and one counter serves all planes. As soon as a level holds its word and two more, a full adder
    takes the two; a leftover word is taken by a half adder at the end, so that each level ends with one word.
    """
    top = bits + EXTRA_LEVELS
    waiting: list[list[str]] = [[] for _ in range(top)]
    steps: list[Adder] = []
    names = iter(f"v{i}" for i in range(1000))

    def enter(level: int, word: str) -> None:
        if level == top:
            steps.append(Adder(kind="count", a=word))
            return
        waiting[level].append(word)
        if len(waiting[level]) == 2:
            a, b = waiting[level]
            waiting[level].clear()
            carry = next(names)
            steps.append(Adder(kind="full", level=level, out=carry, a=a, b=b))
            enter(level + 1, carry)

    for position in range(positions):
        for plane in range(bits):
            word = next(names)
            steps.append(Adder(kind="product", out=word, position=position, plane=plane))
            enter(plane, word)
    for level in range(top):
        for word in tuple(waiting[level]):
            waiting[level].clear()
            carry = next(names)
            steps.append(Adder(kind="half", level=level, out=carry, a=word))
            enter(level + 1, carry)
    return tuple(steps)


def counter(bits: int) -> Counter:
    """The counter of the kernels with `bits` planes."""
    many, single = adder_network(bits, GROUP), adder_network(bits, 1)
    per_round, per_single = (sum(s.kind == "count" for s in steps) for steps in (many, single))
    rounds = (255 // 8 - (GROUP - 1) * per_single) // per_round
    return Counter(
        bits=bits,
        levels=bits + EXTRA_LEVELS,
        group=GROUP,
        limit=GROUP * rounds,
        many=many,
        single=single,
    )


def template_variables(pairs: Iterable[tuple[int, int]]) -> dict[str, object]:
    """What templates/popcount.h.j2 is rendered with, for the (bases, bits) pairs of a model."""
    ordered = sorted(set(pairs))
    return {
        "kernels": tuple(kernel_parameters(bases, bits) for bases, bits in ordered),
        "counters": tuple(counter(bits) for bits in sorted({bits for _, bits in ordered})),
        "ahead": PREFETCH_BYTES,
    }
