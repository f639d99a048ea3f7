# SPDX-License-Identifier: 0BSD
"""Tables of kernel costs: what is shipped, what is refused, and what is chosen by them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from bdcc.codegen.binary import FAMILIES
from bdcc.codegen.costs import (
    choose_kernels,
    read_cost_table,
    shipped_cost_table,
    work_of,
    write_cost_table,
)
from bdcc.codegen.targets import ISAS, TARGETS, Target, planned_core
from bdcc.errors import DataError
from bdcc.ir.graph import Conv
from codegen.nets import alexnet_like, quantized


@pytest.mark.parametrize("target", TARGETS[1:], ids=lambda target: target.name)
def test_every_target_has_a_table(target: Target) -> None:
    table = shipped_cost_table(str(target.core))
    assert table.isa == target.planned_for
    assert all(any(part > 0 for part in parts) for parts in table.ns.values())


def test_every_target_is_planned_for_something_that_it_has() -> None:
    for target in TARGETS:
        assert target.planned_for is None or target.planned_for in target.isas
        assert target.isas[0] == "generic"
        assert set(target.isas) <= set(ISAS)
    assert all(planned_core(isa) for isa in ISAS)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    shipped = shipped_cost_table("avx2")
    file = tmp_path / "table.json"
    file.write_text(write_cost_table("avx2", shipped.machine, shipped.ns))
    read = read_cost_table(file)
    assert read.ns == shipped.ns
    assert (read.isa, read.machine, read.sha256) == ("avx2", shipped.machine, shipped.sha256)


def test_a_modelled_table_says_so_and_has_the_price_of_an_output(tmp_path: Path) -> None:
    shipped = shipped_cost_table("avx2")
    assert not shipped.modelled
    ns = {
        key: (*parts[:3], 0.25) if key[1] == "conv" else parts for key, parts in shipped.ns.items()
    }
    file = tmp_path / "table.json"
    file.write_text(write_cost_table("neon", "cortex-a72, modelled", ns, modelled_mhz=1500))
    read = read_cost_table(file)
    assert read.ns == ns
    assert read.modelled
    assert read.modelled_mhz == 1500
    graph = alexnet_like()
    conv = graph.weight_layers[0]
    without = replace(read, ns=shipped.ns)
    outputs = work_of(conv, graph, family="popcount", isa="neon", bits=3)[3]
    assert read.predict("popcount", conv, graph, bases=2, bits=3) == pytest.approx(
        without.predict("popcount", conv, graph, bases=2, bits=3) + outputs / 4
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.update(schema=2),
        lambda record: record.update(isa="mmx"),
        lambda record: record["ns"].pop("lut"),
        lambda record: record["ns"]["lut"]["conv"].pop(),
        lambda record: record["ns"]["lut"]["conv"][3].extend([1.0, 1.0]),
        lambda record: record["ns"]["lut"]["conv"][3].pop(),
        lambda record: record.update(modelled=True),
        lambda record: record["ns"]["popcount"]["dense"][0].__setitem__(2, -1.0),
        lambda record: record["ns"]["popcount"]["dense"][0].__setitem__(2, float("nan")),
        lambda record: record["ns"]["popcount"]["dense"][0].__setitem__(2, "1"),
        lambda record: record["ns"]["popcount"]["dense"][0].__setitem__(0, 1.5),
        lambda record: record["ns"]["popcount"]["dense"].__setitem__(0, 7),
        lambda record: record["ns"].__setitem__("lut", []),
        lambda record: record.update(isa=["avx2"]),
        lambda record: record.update(machine=5),
        lambda record: record.update(modelled=True, mhz="fast"),
        lambda record: record.update(modelled="yes", mhz=1500),
    ],
)
def test_a_damaged_table_is_refused(damage, tmp_path: Path) -> None:
    shipped = shipped_cost_table("avx2")
    record = json.loads(write_cost_table("avx2", shipped.machine, shipped.ns))
    damage(record)
    file = tmp_path / "table.json"
    file.write_text(json.dumps(record))
    with pytest.raises(DataError, match="table of kernel costs"):
        read_cost_table(file)
    with pytest.raises(DataError, match="table of kernel costs"):
        read_cost_table(tmp_path / "none.json")


def test_the_fastest_family_is_chosen_or_the_one_told() -> None:
    model = quantized(alexnet_like(), bases=[4, 1, 2, 5, 1], bits=[5, 3, 2, 8, 7])
    table = shipped_cost_table("avx512")
    chosen = choose_kernels(model, table, family=None)
    assert list(chosen) == [layer.name for layer in model.graph.weight_layers]
    assert all(choice.ns[choice.family] == min(choice.ns.values()) for choice in chosen.values())
    for family in FAMILIES:
        told = choose_kernels(model, table, family=family)
        assert {choice.family for choice in told.values()} == {family}
        assert {name: one.ns for name, one in told.items()} == {
            name: one.ns for name, one in chosen.items()
        }


def test_work_counts_what_the_kernels_round_up() -> None:
    graph = alexnet_like()
    first, *_, last = graph.weight_layers
    assert isinstance(first, Conv)
    pixels = graph.map_shape(first.output)[1] * graph.map_shape(first.output)[2]
    products, weights, codes, outputs = work_of(first, graph, family="bytedot", isa="avx2", bits=8)
    assert outputs == pixels * 16
    assert (products, weights) == (pixels * 16 * 48, 16 * 48)  # 5 x 3 taps of 3 channels: 45
    assert codes == pixels * 48
    assert work_of(first, graph, family="popcount", isa="avx2", bits=1)[1] == 16 * 64
    assert work_of(first, graph, family="lut", isa="avx512", bits=3)[1] == 64 * 48
    assert work_of(first, graph, family="lut", isa="avx512", bits=4)[1] == 16 * 48
    assert work_of(first, graph, family="lut", isa="generic", bits=4)[1] == 16 * 48
    assert work_of(last, graph, family="lut", isa="avx2", bits=4) == (16 * 33,)


def test_tables_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "deep").write_text("[" * 100_000)
    (tmp_path / "list").write_text("[]")
    for place in (tmp_path / "pipe", tmp_path, tmp_path / "deep", tmp_path / "list"):
        with pytest.raises(DataError, match="table of kernel costs"):
            read_cost_table(place)
