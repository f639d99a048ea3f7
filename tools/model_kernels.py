# SPDX-License-Identifier: 0BSD
"""Cost tables of ARM cores without the hardware: `bdcc tune`'s network is built for the core, run
under QEMU with its basic blocks counted, and each step takes the modelled cycles (cycles.py).

    python tools/model_kernels.py                  all cores
    python tools/model_kernels.py cortex-a72       one of them
    python tools/model_kernels.py --loops          products in a cycle, of Cortex-A53 and A72
    python tools/model_kernels.py --float          those of float convolutions

Needs the cross compilers of the targets, qemu-user with plugins, llvm-mca and llvm-objdump.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from cycles import CORES, Core, cycles_of, parse_counts, parse_disassembly

from bdcc.approx.model import DecomposedModel, QuantizedModel
from bdcc.codegen.binary import FAMILIES, Family
from bdcc.codegen.costs import Key, Kind, Parts, work_of, write_cost_table
from bdcc.codegen.emit import emit_sources
from bdcc.codegen.geometry import MapShape
from bdcc.codegen.plan import DeploymentPlan, make_plan
from bdcc.codegen.targets import TARGETS, Target
from bdcc.host import tune
from bdcc.ir.graph import Conv, Dense, Flatten, Graph, MaxPool, Node, macs, make_graph, output_shape
from bdcc.report.text import table

FILTERS = 64  # of the float convolution
# Products in a cycle of loops that do nothing else, written by hand and weighed by the same models:
# popcount, look-ups, and bytes by SMLAL, four steps at a time.
BY_HAND = {
    "cortex-a53": {
        (2, 2): (8.6, 9.6, 6.1), (3, 2): (5.7, 6.7, 6.1), (3, 3): (3.8, 6.1, 6.1),
        (4, 3): (2.9, 4.6, 6.1), (4, 4): (2.2, 4.0, 6.1), (6, 4): (1.4, 2.5, 5.8),
        (6, 6): (1.0, 1.4, 4.9),
    },
    "cortex-a72": {
        (2, 2): (20.8, 14.5, 8.0), (3, 2): (13.9, 9.7, 8.0), (3, 3): (9.3, 9.2, 8.0),
        (4, 3): (6.9, 6.8, 8.0), (4, 4): (5.2, 6.3, 8.0), (6, 4): (3.5, 4.1, 8.0),
        (6, 6): (2.3, 2.8, 8.0),
    },
}  # fmt: skip
FROM_HALF_BYTES = {"cortex-a53": 2.0, "cortex-a72": 4.6}  # the same of a dense layer: B = 4, Q = 8
DENSE = (1, 8), (2, 8), (3, 8), (4, 8)  # pairs whose dense layers `loops` tells of
INPUT = 32, 13, 13  # of the network of kernels
WHOLE_TILES = 32, 2, 24  # the same whose pixels leave none over
Pair = tuple[int, int]  # bases, bits
SHAPES: dict[Kind, tuple[str, ...]] = {
    "conv": ("conv_outputs", "conv_codes", "conv_products", "conv_weights"),
    "dense": ("dense",),
}
HERE = Path(__file__).resolve().parent
TABLES = HERE.parent / "compiler/bdcc/codegen/cost_tables"

# Without an operating system: what QEMU's user mode understands, whatever the core.
_START = """
void _start(void);
void _start(void) {
    register int call __asm__("r7") = 1, status __asm__("r0") = main();
    __asm__ volatile("svc 0" : : "r"(call), "r"(status));
    for (;;) {}
}
"""
_MAIN = """
#include "{name}.h"
static _Alignas(64) unsigned char arena[{arena}];
static float input[{inputs}], output[{outputs}];
void mark(void);
__attribute__((noinline)) void mark(void) {{ __asm__ volatile("" ::: "memory"); }}
int main(void);
int main(void) {{
    {name}_t model;
    int bad = {name}_init(&model, 0, 0);
    for (int i = 0; i < {name}_step_count() && !bad; i++) {{
        mark();
        bad = {name}_run_steps(&model, arena, sizeof arena, input, output, i, i + 1);
    }}
    mark();
    return bad;
}}
"""


def run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def reference(core: str) -> Target:
    """The target whose compiler, clock and memory a core's table has: the first of it."""
    return next(target for target in TARGETS if target.core == core)


def one_isa(target: Target) -> Target:
    """With the instruction set that it is planned for alone."""
    return replace(target, isas=(str(target.planned_for),))


def step_cycles(plan: DeploymentPlan, folder: Path, core: Core) -> list[float]:
    """Cycles of every step of a plan for a target of `one_isa`. folder: empty."""
    emit_sources(plan, folder)
    target, name = plan.target, plan.name
    shape = plan.model.graph.shapes[plan.model.graph.input]
    source, program, plugin = (folder / f for f in ("bench.c", "bench", "count_blocks.so"))
    source.write_text(
        _MAIN.format(
            name=name, arena=plan.arena_bytes, inputs=shape[0] * shape[1] * shape[2],
            outputs=plan.outputs,
        )
        + (_START if target.bare else "")
    )  # fmt: skip
    blob = folder / "weights" / f"{name}.bin"
    # Debian's compiler for ARMv6 calls functions for floats unless told otherwise; boards' do not.
    floats = ["-mfloat-abi=softfp"] if target.cross == "arm-linux-gnueabi-" else []
    run(
        f"{target.cross}gcc", "-std=gnu11", *target.cflags.split(), *floats, f"-I{folder}/include",
        f"-I{folder}/src", f'-D{name.upper()}_WEIGHTS_FILE="{blob}"', source,
        folder / f"src/{name}.c", folder / f"src/{name}_weights.c",
        "-nostartfiles" if target.bare else "-static", "-lm", "-o", program,
    )  # fmt: skip
    run("cc", "-O2", "-shared", "-fPIC", HERE / "count_blocks.c", "-o", plugin)
    symbols = run(f"{target.cross}nm", program).splitlines()
    mark = next(line.split()[0] for line in symbols if line.endswith(" T mark"))
    counts = folder / "counts"
    run(
        "qemu-aarch64" if target.bits == 64 else "qemu-arm", "-cpu", "max",
        "-plugin", f"{plugin},mark=0x{mark},out={counts}", program,
    )  # fmt: skip
    code = parse_disassembly(
        run(
            "llvm-objdump", "-d", "--no-show-raw-insn", "--no-leading-headers",
            f"--mcpu={target.core}", program,
        )
    )  # fmt: skip
    stretches = parse_counts(counts.read_text(), sorted(code))[1:]
    return cycles_of(core, code, stretches)


def network(
    size: MapShape, convs: Sequence[Pair], dense: Sequence[Pair], *, channels: int, width: int
) -> Graph:
    """Convolutions of four shapes, in which the four prices weigh differently, and dense layers of
    `width` inputs and outputs, all in a row: <kind><shape>_b<bases>q<bits>. size: of the input.
    """
    nodes: list[Node] = []
    tensor, shape = "x", size

    def add(node: Node) -> None:
        nonlocal tensor, shape
        nodes.append(node)
        tensor, shape = node.output, output_shape(node, shape)

    def conv(name: str, filters: int, side: int) -> None:
        weight = np.broadcast_to(np.float32(0), (filters, shape[0], side, side))
        bias, pads = np.zeros(filters, np.float32), (side // 2,) * 4
        add(Conv(name=name, input=tensor, output=f"{name}.y", weight=weight, bias=bias, pads=pads))

    for bases, bits in convs:
        conv(f"conv_outputs_b{bases}q{bits}", channels, 1)
        conv(f"conv_codes_b{bases}q{bits}", size[0], 1)
    conv("conv_wider_b1q1", channels, 1)  # of no shape
    for bases, bits in convs:
        conv(f"conv_products_b{bases}q{bits}", channels, 3)
    to4 = max(1, size[1] - 3), size[2] - 3
    add(MaxPool(name="pool", input=tensor, output="small", kernel=to4))
    for bases, bits in convs:
        conv(f"conv_weights_b{bases}q{bits}", channels, 3)
    add(Flatten(name="flat", input=tensor, output="flat.y"))
    for bases, bits in dense:
        name = f"dense_b{bases}q{bits}"
        weight = np.broadcast_to(np.float32(0), (width, shape[0]))
        bias = np.zeros(width, np.float32)
        add(Dense(name=name, input=tensor, output=f"{name}.y", weight=weight, bias=bias))
    return make_graph(name="kernels", input_name="x", input_shape=size, output=tensor, nodes=nodes)


def cycle_prices(core: str, family: Family, model: QuantizedModel) -> dict[Key, Parts]:
    """Cycles that fit those of the layers of a `network` best, all with one family."""
    target, graph = one_isa(reference(core)), model.graph
    layers = {layer.name: layer for layer in graph.weight_layers}
    plan = make_plan(model, name="kernels", target=target, families=dict.fromkeys(layers, family))
    with tempfile.TemporaryDirectory(prefix="bdcc-model-") as folder:
        cycles = step_cycles(plan, Path(folder), CORES[core])
    taken = {step.layer: count for step, count in zip(plan.steps, cycles, strict=True)}
    found: dict[Key, Parts] = {}
    for kind, shapes in SHAPES.items():
        pairs = sorted({tune._pair(name) for name in layers if name.startswith(shapes[0])})
        for bases, bits in pairs:
            some = [layers[f"{shape}_b{bases}q{bits}"] for shape in shapes]
            work = [
                work_of(one, graph, family=family, isa=target.isas[0], bits=bits) for one in some
            ]
            found[family, kind, bases, bits] = tune._fit(
                np.array(work), np.array([taken[one.name] for one in some])
            )
    return found


def model(core: str, family: Family) -> dict[Key, Parts]:
    """Nanoseconds of one family on a core."""
    began = time.perf_counter()
    target = reference(core)
    assert target.mhz is not None
    graph = network(INPUT, tune.PAIRS, tune.PAIRS, channels=128, width=1024)
    cycles = cycle_prices(core, family, tune._quantized(graph))
    costs = {
        key: tuple(count * 1e3 / target.mhz for count in parts) for key, parts in cycles.items()
    }
    if target.memory_mbs is not None:  # a dense layer's planes are read from memory
        for (f, kind, bases, bits), parts in costs.items():
            if kind == "dense":
                floor = bases / 8 / target.memory_mbs * 1e3
                costs[f, kind, bases, bits] = (max(parts[0], floor),)
    print(f"{core} {family}: {time.perf_counter() - began:.0f} s", flush=True)
    return costs


def float_rate(core: str) -> float:
    """Multiply-accumulates of a float convolution in a cycle."""
    weight = np.ones((FILTERS, FILTERS, 3, 3), np.float32)
    node = Conv(
        name="conv", input="x", output="y", weight=weight, bias=weight[:, 0, 0, 0], pads=(1,) * 4
    )
    graph = make_graph(
        name="floats", input_name="x", input_shape=(FILTERS, 13, 13), output="y", nodes=[node]
    )
    quantized = QuantizedModel(decomposed=DecomposedModel(graph=graph, layers={}), tensors={})
    plan = make_plan(quantized, name="floats", target=one_isa(reference(core)), families={})
    with tempfile.TemporaryDirectory(prefix="bdcc-model-") as folder:
        cycles = step_cycles(plan, Path(folder), CORES[core])
    return macs(node, graph.shapes) / cycles[[step.layer for step in plan.steps].index("conv")]


def small_weights(model: QuantizedModel) -> QuantizedModel:
    """With coefficients of 1, 2, 4 and so on: sums are flushed no oftener than they must be."""
    layers = {
        name: replace(one, coefficients=np.full_like(one.coefficients, 1) << np.arange(one.bases))
        for name, one in model.decomposed.layers.items()
    }
    return replace(model, decomposed=replace(model.decomposed, layers=layers))


def loops(core: str) -> str:
    """Products in a cycle of all families, by the price of a product alone; in brackets how many
    times that is what a loop written by hand has.
    """
    by_hand = BY_HAND[core]
    graph = network(WHOLE_TILES, tuple(by_hand), DENSE, channels=512, width=4096)
    small = small_weights(tune._quantized(graph))
    found = [cycle_prices(core, family, small) for family in FAMILIES]
    rows = []
    for (bases, bits), limits in by_hand.items():
        row = [f"{bases}, {bits}"]
        for family, cycles, limit in zip(FAMILIES, found, limits, strict=True):
            rate = 1 / cycles[family, "conv", bases, bits][0]
            row.append(f"{rate:.2f} ({rate / limit:.2f})")
        rows.append(row)
    dense = [
        [f"dense {bases}, {bits}"]
        + [
            f"{1 / cycles[family, 'dense', bases, bits][0]:.2f}"
            for family, cycles in zip(FAMILIES, found, strict=True)
        ]
        for bases, bits in DENSE
    ]
    dense[-1][-1] += f" ({float(dense[-1][-1]) / FROM_HALF_BYTES[core]:.2f})"
    return table([f"{core}: B, Q", *FAMILIES], rows + dense, left=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cores", nargs="*", default=list(CORES), metavar="CORE")
    parser.add_argument("-j", type=int, default=2, help="how many at a time")
    parser.add_argument("-o", type=Path, default=TABLES, help="folder of the tables")
    parser.add_argument("--float", action="store_true", help="print the rates of float layers only")
    parser.add_argument("--loops", action="store_true", help="print what loops reach only")
    options = parser.parse_args()
    if options.loops:
        cores = [core for core in options.cores if core in BY_HAND]
        if not cores:
            parser.error(f"there are loops written by hand of {' and '.join(BY_HAND)} alone")
        with ThreadPoolExecutor(options.j) as pool:
            print(*pool.map(loops, cores), sep="\n\n")
        return
    if options.float:
        for core in options.cores:
            print(f"{core}: {float_rate(core):.2f} MAC/cycle in float", flush=True)
        return
    with ThreadPoolExecutor(options.j) as pool:
        jobs = {
            core: [pool.submit(model, core, family) for family in FAMILIES]
            for core in options.cores
        }
        for core, parts in jobs.items():
            ns: dict[Key, Parts] = {}
            for part in parts:
                ns |= part.result()
            target = reference(core)
            assert target.planned_for is not None
            text = write_cost_table(
                target.planned_for, f"{core}, modelled", ns, modelled_mhz=target.mhz
            )
            (options.o / f"{core}.json").write_text(text)


if __name__ == "__main__":
    main()
