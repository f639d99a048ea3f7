# SPDX-License-Identifier: 0BSD
"""The joint search against enumeration, and against truths that differ from its tables."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from bdcc.approx.joint import (
    AIM,
    TIGHT,
    TRADES,
    Finalist,
    JointChoice,
    Measured,
    Setting,
    Space,
    choose_jointly,
    find_front,
    predicted_nats,
)
from bdcc.approx.sensitivity import Sensitivity

RATE = 10.0  # points per nat


def made_up(
    seed: int,
    tensors: Mapping[str, str],
    *,
    bases: Sequence[int] = (1, 2, 3, 4),
    bits: Sequence[int] = (2, 3, 4, 5),
    correlated: bool = True,
) -> tuple[Space, Sensitivity]:
    """Divergences that fall by some factor with each basis and bit; layers of any size."""
    rng = np.random.default_rng(seed)
    names, read = list(tensors), list(dict.fromkeys(tensors.values()))
    size = {name: float(rng.uniform(1, 20)) for name in names}

    def table(counts: Sequence[int], fall: float) -> dict[int, float]:
        nats = float(rng.uniform(0.2, 2.0))
        return {c: nats * fall ** -(c - 1) * float(rng.uniform(0.7, 1)) for c in counts}

    pairs = itertools.pairwise(read) if correlated else ()
    space = Space(
        tensors=tensors,
        bases=dict.fromkeys(names, bases),
        bits=dict.fromkeys(read, bits),
        cost=lambda name, b, q: size[name] * b * q,
    )
    sensitivity = Sensitivity(
        bases={name: table(bases, 3.5) for name in names},
        bits={tensor: table(bits, 3.0) for tensor in read},
        correlations={pair: float(rng.uniform(-0.3, 0.6)) for pair in pairs},
        drop_per_nat=RATE,
        samples=200,
    )
    return space, sensitivity


CHAIN = {"a": "x", "b": "t", "c": "u"}
SHARED = {"a": "x", "b": "t", "c": "t"}


def every(space: Space) -> list[Setting]:
    return [
        Setting(
            bases=tuple(zip(space.bases, counts[: len(space.bases)], strict=True)),
            bits=tuple(zip(space.bits, counts[len(space.bases) :], strict=True)),
        )
        for counts in itertools.product(*space.bases.values(), *space.bits.values())
    ]


@dataclass
class Truth:
    """Measures with a known answer, counting what they are asked."""

    space: Space
    sensitivity: Sensitivity
    noise: float
    seed: int
    margin: float = 0.0
    asked: list[Setting] = field(default_factory=list)

    def __call__(self, setting: Setting) -> Measured:
        own = [self.seed, *(count for _, count in (*setting.bases, *setting.bits))]
        rng = np.random.default_rng(own)
        nats = predicted_nats(self.sensitivity, setting) * np.exp(self.noise * rng.normal())
        drop = round(RATE * nats + 2 * self.noise * rng.normal(), 1)  # a whole number of pictures
        return Measured(nats=float(nats), drop_pp=drop, upper_pp=drop + self.margin, samples=1000)

    def measure(self, setting: Setting) -> Measured:
        self.asked.append(setting)
        return self(setting)

    def lowered(self, whole: Setting, lowered: Setting) -> Measured:
        assert whole in self.asked
        return self(lowered)

    def choose(self, max_drop_pp: float) -> JointChoice:
        return choose_jointly(
            self.space,
            self.sensitivity,
            max_drop_pp,
            measure=self.measure,
            measure_lowered=self.lowered,
        )


def whole(choice: JointChoice) -> Finalist:
    (one,) = [f for f in choice.tried if f.setting == choice.setting and f.whole]
    return one


# --- the front ----------------------------------------------------------------------------


@pytest.mark.parametrize("tensors", [CHAIN, SHARED])
@pytest.mark.parametrize("seed", range(4))
def test_the_front_has_the_best_setting_for_every_price(tensors, seed: int) -> None:
    space, sensitivity = made_up(seed, tensors, correlated=False)
    front = find_front(space, sensitivity)
    costs = np.array([space.cost_of(s) for s in every(space)])
    nats = np.array([predicted_nats(sensitivity, s) for s in every(space)])
    own = np.array([(space.cost_of(s), predicted_nats(sensitivity, s)) for s in front])
    assert (np.diff(own[:, 0]) < 0).all()
    assert (np.diff(own[:, 1]) > 0).all()
    assert front[0] == max(every(space), key=space.cost_of)
    for price in TRADES * costs.max():
        best = (costs + price * nats).min()
        assert (own[:, 0] + price * own[:, 1]).min() == pytest.approx(best, rel=1e-12)
    assert len(front) > 10


@pytest.mark.parametrize("seed", range(4))
def test_the_front_is_nearly_the_best_where_errors_are_correlated(seed: int) -> None:
    space, sensitivity = made_up(seed, CHAIN)
    front = find_front(space, sensitivity)
    assert len(set(front)) == len(front)
    costs = np.array([space.cost_of(s) for s in every(space)])
    nats = np.array([predicted_nats(sensitivity, s) for s in every(space)])
    own = np.array([(space.cost_of(s), predicted_nats(sensitivity, s)) for s in front])
    assert (np.diff(own[:, 1]) > 0).all()
    for price in TRADES * costs.max():
        best = (costs + price * nats).min()
        assert (own[:, 0] + price * own[:, 1]).min() <= 1.05 * best


def test_predicted_nats_from_the_definition() -> None:
    space, sensitivity = made_up(0, SHARED)
    setting = every(space)[777]
    bases, bits = dict(setting.bases), dict(setting.bits)
    total = sum(sensitivity.bases[n][bases[n]] for n in "abc")
    total += sum(sensitivity.bits[t][bits[t]] for t in "xt")
    product = sensitivity.bits["x"][bits["x"]] * sensitivity.bits["t"][bits["t"]]
    total += 2 * sensitivity.correlations["x", "t"] * product**0.5
    assert predicted_nats(sensitivity, setting) == pytest.approx(total)


# --- the search ---------------------------------------------------------------------------


def refused_from_dearer(space: Space, choice: JointChoice, lowered: Setting) -> bool:
    """Whether that lowering, or the same choice in a setting nowhere lower, was tried and did not
    keep the tolerance."""
    result = dict((*choice.setting.bases, *choice.setting.bits))
    (changed,) = {
        key: count for (key, count) in (*lowered.bases, *lowered.bits) if count != result[key]
    }.items()
    for one in choice.tried:
        counts = dict((*one.setting.bases, *one.setting.bits))
        others = all(counts[key] >= result[key] for key in counts if key != changed[0])
        if others and counts[changed[0]] == changed[1] and not one.kept:
            return True
    return False


@pytest.mark.parametrize("tensors", [CHAIN, SHARED])
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("max_drop", [0.5, 2.0, 8.0, 20.0])
def test_what_is_found_keeps_the_tolerance(tensors, noise: float, max_drop: float) -> None:
    for seed in range(6):
        space, sensitivity = made_up(seed, tensors)
        truth = Truth(space, sensitivity, noise, seed)
        choice = truth.choose(max_drop)
        assert len(truth.asked) == len(set(truth.asked))
        assert [f.setting for f in choice.tried if f.whole] == truth.asked
        assert len(truth.asked) <= 30  # of 4,096
        one = whole(choice)
        for each in choice.tried:
            assert each.measured == truth(each.setting)
            assert each.cost == space.cost_of(each.setting)
            counted = max(each.measured.drop_pp, each.expected_pp)
            if each.whole:
                assert each.kept == (counted <= max_drop + TIGHT)
            else:  # there is room for what decomposing it anew will show
                assert each.kept == (each.expected_pp <= AIM * max_drop)
        assert choice.met == one.kept == any(f.kept for f in choice.tried if f.whole)
        if choice.met:
            assert one.cost == min(f.cost for f in choice.tried if f.whole and f.kept)
            for lowered in space.lowerings(choice.setting):
                assert refused_from_dearer(space, choice, lowered)


@pytest.mark.parametrize("seed", range(5))
def test_true_tables_lead_near_the_optimum(seed: int) -> None:
    """No setting within the tolerance is much cheaper."""
    space, sensitivity = made_up(seed, CHAIN)
    truth = Truth(space, sensitivity, 0.0, seed)
    choice = truth.choose(5.0)
    inside = [space.cost_of(s) for s in every(space) if truth(s).drop_pp <= 5.0]
    assert choice.met
    assert space.cost_of(choice.setting) <= 1.15 * min(inside)


@pytest.mark.parametrize("seed", range(6))
def test_what_saves_nothing_is_tried_and_not_taken(seed: int) -> None:
    """As where reading the weights takes longer than computing with them: bits cost nothing."""
    space, sensitivity = made_up(seed, CHAIN, correlated=False)
    bound = replace(space, cost=lambda name, b, q: max(space.cost(name, b, q), 30.0 * b))
    choice = Truth(bound, sensitivity, 0.1, seed).choose(8.0)
    assert choice.met
    tried = {one.setting for one in choice.tried}
    for lowered in bound.lowerings(choice.setting):
        free = bound.cost_of(lowered) == bound.cost_of(choice.setting)
        assert (free and lowered in tried) or refused_from_dearer(bound, choice, lowered)
    for tensor, count in choice.setting.bits:
        bits = tuple((t, q + (t == tensor)) for t, q in choice.setting.bits)
        more = replace(choice.setting, bits=bits)
        if count < max(space.bits[tensor]):
            assert bound.cost_of(more) > bound.cost_of(choice.setting)


@pytest.mark.parametrize("seed", range(6))
def test_a_tolerance_of_nothing_still_saves(seed: int) -> None:
    """With D = 0 a setting is taken that loses no hit and is expected to lose less than one."""
    space, sensitivity = made_up(seed, CHAIN, bases=range(1, 8), bits=range(2, 9))

    def measure(setting: Setting) -> Measured:
        nats = 0.1 * predicted_nats(sensitivity, setting)
        drop = int(RATE * nats / 0.2) * 0.2  # what is less than a picture is no hit
        return Measured(nats=nats, drop_pp=drop, upper_pp=drop, samples=500)

    choice = choose_jointly(
        space,
        sensitivity,
        0.0,
        measure=measure,
        measure_lowered=lambda *settings: measure(settings[-1]),
    )
    assert choice.met
    assert whole(choice).measured.drop_pp == 0
    assert whole(choice).expected_pp <= 100 / 500
    assert whole(choice).cost < 0.8 * space.cost_of(find_front(space, sensitivity)[0])


def test_the_upper_end_is_what_has_to_keep_the_tolerance() -> None:
    """As with --strict: the choice leaves room for the interval."""
    space, sensitivity = made_up(1, CHAIN)
    loose = Truth(space, sensitivity, 0.1, 1).choose(4.0)
    tight = Truth(space, sensitivity, 0.1, 1, margin=2.0).choose(4.0)
    assert tight.met
    assert whole(tight).measured.upper_pp <= 4.0
    assert whole(tight).measured.drop_pp <= 2.0
    assert whole(tight).expected_pp <= 2.0 + TIGHT
    assert space.cost_of(tight.setting) > space.cost_of(loose.setting)


@pytest.mark.parametrize("seed", range(5))
def test_a_lucky_count_is_not_believed(seed: int) -> None:
    """What was refused is refused again if by chance it keeps all hits: its divergence tells."""
    space, sensitivity = made_up(seed, CHAIN)
    honest = Truth(space, sensitivity, 0.0, seed).choose(3.0)
    refused = [f for f in honest.tried if f.whole and not f.kept and f.measured.drop_pp > 3.5]
    lucky = refused[-1].setting

    def measure(setting: Setting) -> Measured:
        nats = predicted_nats(sensitivity, setting)
        drop = 2.9 if setting == lucky else round(RATE * nats, 1)
        return Measured(nats=nats, drop_pp=drop, upper_pp=drop, samples=1000)

    choice = choose_jointly(
        space,
        sensitivity,
        3.0,
        measure=measure,
        measure_lowered=lambda *settings: measure(settings[-1]),
    )
    (again,) = [f for f in choice.tried if f.whole and f.setting == lucky]
    assert again.measured.drop_pp < 3.0 < again.expected_pp
    assert choice.met
    assert choice.setting != lucky


def test_what_is_refused_afterwards_is_not_the_end() -> None:
    """Where a later evaluation takes back all that was kept, others along the front are tried."""
    space, sensitivity = made_up(23, SHARED)
    choice = Truth(space, sensitivity, 0.4, 23).choose(2.0)
    assert choice.met
    assert whole(choice).kept


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_an_unmet_tolerance_returns_the_best(noise: float) -> None:
    space, sensitivity = made_up(2, CHAIN, bases=(1, 2), bits=(2, 3))
    truth = Truth(space, sensitivity, noise, 2)
    choice = truth.choose(0.01)
    assert not choice.met
    assert max(every(space), key=space.cost_of) in truth.asked
    best = min(choice.tried, key=lambda f: (f.measured.upper_pp, f.cost))
    assert choice.setting == best.setting
    assert not any(f.kept for f in choice.tried)


@pytest.mark.parametrize("hits", range(1, 40))
def test_a_drop_of_exactly_d_is_kept(hits: int) -> None:
    space, sensitivity = made_up(0, {"a": "x"}, bases=(2,), bits=(3,))
    drop = 100.0 * (1 - (400 - hits) / 400)
    (setting,) = every(space)
    measured = Measured(nats=drop / RATE, drop_pp=drop, upper_pp=drop, samples=400)
    for allowed, met in ((100.0 * hits / 400, True), (100.0 * (hits - 0.1) / 400, False)):
        choice = choose_jointly(
            space,
            sensitivity,
            allowed,
            measure=lambda _: measured,
            measure_lowered=lambda *_: measured,
        )
        assert (choice.setting, choice.met) == (setting, met)


def test_stops_serve_every_tolerance() -> None:
    """Most of what is measured for one tolerance was measured for another before."""
    space, sensitivity = made_up(3, CHAIN, bases=range(1, 7), bits=range(2, 9))
    seen: set[Setting] = set()
    new = []
    for max_drop in (1.0, 2.0, 3.0, 5.0, 8.0, 4.0, 6.0):
        truth = Truth(space, sensitivity, 0.05, 3)
        assert truth.choose(max_drop).met
        new.append(len(set(truth.asked) - seen))
        seen |= set(truth.asked)
    assert max(new[-2:]) <= 2 < new[0]


@pytest.mark.parametrize("share", [0.8, 0.5, 0.0])
def test_what_does_not_fit_is_not_measured(share: float) -> None:
    space, sensitivity = made_up(1, CHAIN)
    free = Truth(space, sensitivity, 0.0, 1).choose(2.0)
    room = max(share * space.cost_of(free.setting), space.cost_of(space.least()))
    fitting = replace(space, fits=lambda setting: space.cost_of(setting) <= room)
    truth = Truth(fitting, sensitivity, 0.0, 1)
    choice = truth.choose(2.0)
    assert all(fitting.fits(one.setting) for one in choice.tried)
    assert not choice.met  # what is cheaper than the cheapest that keeps the tolerance
    assert min(one.measured.drop_pp for one in choice.tried) == whole(choice).measured.drop_pp


def test_what_has_one_choice_stays() -> None:
    for given in ({"bases": (3,)}, {"bits": (4,)}):
        space, sensitivity = made_up(4, CHAIN, **given)
        choice = Truth(space, sensitivity, 0.1, 4).choose(5.0)
        assert choice.met
        for one in choice.tried:
            rows = one.setting.bases if "bases" in given else one.setting.bits
            assert {count for _, count in rows} == set(*given.values())
        assert len(choice.tried) >= 3


def test_nothing_to_choose() -> None:
    space = Space(tensors={}, bases={}, bits={}, cost=lambda *_: 1.0)
    sensitivity = Sensitivity(bases={}, bits={}, correlations={}, drop_per_nat=RATE, samples=9)
    for drop, met in ((0.0, True), (1.5, False)):
        asked: list[Setting] = []

        def measure(setting: Setting, drop: float = drop, asked: list[Setting] = asked) -> Measured:
            asked.append(setting)
            return Measured(nats=0.0, drop_pp=drop, upper_pp=drop, samples=9)

        choice = choose_jointly(
            space,
            sensitivity,
            1.0,
            measure=measure,
            measure_lowered=lambda *_: pytest.fail("there is nothing lower"),
        )
        assert (choice.setting, choice.met, asked) == (Setting((), ()), met, [Setting((), ())])


def test_many_layers_are_not_enumerated() -> None:
    tensors = {f"conv{i}": f"t{i}" for i in range(26)}
    space, sensitivity = made_up(3, tensors)
    truth = Truth(space, sensitivity, 0.1, 3)
    choice = truth.choose(15.0)
    assert choice.met
    assert len(truth.asked) < 80
