# SPDX-License-Identifier: 0BSD
"""Bases and bits of every layer together, as cheap as the tolerance allows.

    front      settings that no other beats in cost and predicted divergence, from the tables
    finalists  where along the front the tolerance is kept is found by measuring: first between
               a few stops, which are the same for every tolerance, then where the prediction,
               corrected by what was measured, says
    lowering   every single choice of the result is tried one lower, and taken if it saves
               something and its divergence goes with a drop that keeps the tolerance

A setting counts only if its measured drop keeps the tolerance *and* the drop that its divergence
goes with does: the least of many noisy counts would be too good by chance.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from bdcc.approx.sensitivity import SMALLEST, Sensitivity

F64 = npt.NDArray[np.float64]
MeasureLowered = Callable[["Setting", "Setting"], "Measured"]
Cost = Callable[[str, int, int], float]  # of a layer with B bases and Q bits; costs add up

SPREAD = 0.7  # how far, in the log of the divergence, what was measured speaks for its neighbours
PRIOR = 0.2  # weight of the tables' own points per nat, as a part of the divergence asked about
IN_SEQUENCE = 0.6  # of the drop that single choices predict is what remains after compensation
TRADES = np.geomspace(1e-3, 1e5, 400)  # prices of a nat, as parts of the dearest setting's cost
STOPS = 8  # along the front, between settings that lose next to nothing and next to all
STOPS_PP = (0.25, 25.0)
REFINED = 2  # evaluations between two stops, until one keeps the tolerance
AIM = 0.85  # of the tolerance is aimed at: other pictures lose more, and a miss takes time
EVALUATIONS = 7  # on the front, where the tolerance is hard to keep
MISSES = 4  # lowered settings that missed when decomposed anew, until a setting is left as it is
WORST_ANEW = 4.0  # a divergence next to nothing, on some pictures, may be found many times as much
TIGHT = 1e-9  # a drop of just D must not fail by a rounding of percentages


@dataclass(frozen=True, slots=True)
class Setting:
    """bases: B by layer; bits: Q by tensor; both in graph order."""

    bases: tuple[tuple[str, int], ...]
    bits: tuple[tuple[str, int], ...]

    def lowered(self, name: str, *, of_bits: bool) -> Setting:
        """With one less for a layer's bases or a tensor's bits."""
        rows = self.bits if of_bits else self.bases
        rows = tuple((key, count - (key == name)) for key, count in rows)
        return replace(self, bits=rows) if of_bits else replace(self, bases=rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What may be chosen. tensors: what each layer reads; bases: by layer; bits: by tensor; fits:
    whether there is room for a setting.
    """

    tensors: Mapping[str, str]
    bases: Mapping[str, Sequence[int]]
    bits: Mapping[str, Sequence[int]]
    cost: Cost
    fits: Callable[[Setting], bool] = lambda _: True

    def cost_of(self, setting: Setting) -> float:
        bits = dict(setting.bits)
        return sum(self.cost(name, b, bits[self.tensors[name]]) for name, b in setting.bases)

    def least(self) -> Setting:
        return Setting(
            bases=tuple((name, min(counts)) for name, counts in self.bases.items()),
            bits=tuple((tensor, min(counts)) for tensor, counts in self.bits.items()),
        )

    def lowerings(self, setting: Setting) -> Iterator[Setting]:
        """All settings with one choice one lower that there is room for: kernels of fewer bits may
        work in more memory.
        """
        for of_bits, rows, counts in (
            (False, setting.bases, self.bases),
            (True, setting.bits, self.bits),
        ):
            for name, count in rows:
                lowered = setting.lowered(name, of_bits=of_bits)
                if count > min(counts[name]) and self.fits(lowered):
                    yield lowered


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """nats: divergence; drop_pp: what the metric lost; upper_pp: what has to keep the tolerance
    (the drop itself, or with --strict the upper end of its interval); samples: pictures.
    """

    nats: float
    drop_pp: float
    upper_pp: float
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalist:
    """predicted_pp: the drop, fixed before it was measured; whole: whether it was decomposed anew,
    not only changed in one place.
    """

    setting: Setting
    cost: float
    predicted_pp: float
    expected_pp: float
    measured: Measured
    whole: bool
    kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JointChoice:
    setting: Setting
    predicted_pp: float
    met: bool
    tried: tuple[Finalist, ...]


def predicted_nats(sensitivity: Sensitivity, setting: Setting) -> float:
    """Divergence of a setting by the tables: the sum, and what is correlated."""
    bits = dict(setting.bits)
    own = {tensor: sensitivity.bits[tensor][count] for tensor, count in bits.items()}
    total = sum(own.values()) + sum(sensitivity.bases[name][b] for name, b in setting.bases)
    for (a, b), rho in sensitivity.correlations.items():
        total += 2 * rho * float(np.sqrt(own[a] * own[b]))
    return max(total, SMALLEST)


def find_front(space: Space, sensitivity: Sensitivity) -> list[Setting]:
    """Settings of least cost for their predicted divergence, the dearest first.

    For a growing price of cost against divergence each tensor, with the layers that read it, takes
    its best choice given the others, until none changes.
    """
    sites = _Sites(space, sensitivity)
    found: dict[Setting, tuple[float, float]] = {}
    chosen = sites.dearest()
    scale = space.cost_of(sites.setting(chosen))
    for price in TRADES[::-1]:
        chosen = sites.settle(chosen, price * scale)
        setting = sites.setting(chosen)
        found[setting] = (space.cost_of(setting), predicted_nats(sensitivity, setting))
    front: list[Setting] = []
    least = np.inf
    for setting, (_, nats) in sorted(found.items(), key=lambda item: item[1]):
        if nats < least:
            front.append(setting)
            least = nats
    return front[::-1]


class _Sites:
    """For each tensor: every combination of its bits and its readers' bases."""

    def __init__(self, space: Space, sensitivity: Sensitivity) -> None:
        self._space, self._tensors = space, list(space.bits)
        self._options: list[list[tuple[int, tuple[int, ...]]]] = []
        self._costs: list[F64] = []
        self._nats: list[F64] = []  # of the weights and of the bits
        self._roots: list[F64] = []  # of the bits' divergence: what correlations go with
        self._readers: list[list[str]] = []
        for tensor in self._tensors:
            readers = [name for name, read in space.tensors.items() if read == tensor]
            options = [
                (q, bases)
                for q in space.bits[tensor]
                for bases in itertools.product(*(space.bases[name] for name in readers))
            ]
            own = sensitivity.bits[tensor]
            self._readers.append(readers)
            self._options.append(options)
            self._costs.append(
                np.array(
                    [
                        sum(space.cost(n, b, q) for n, b in zip(readers, bases, strict=True))
                        for q, bases in options
                    ]
                )
            )
            self._nats.append(
                np.array(
                    [
                        own[q]
                        + sum(sensitivity.bases[n][b] for n, b in zip(readers, bases, strict=True))
                        for q, bases in options
                    ]
                )
            )
            self._roots.append(np.sqrt([own[q] for q, _ in options]))
        index = {tensor: i for i, tensor in enumerate(self._tensors)}
        self._rho = np.zeros((len(index), len(index)))
        for (a, b), rho in sensitivity.correlations.items():
            self._rho[index[a], index[b]] = self._rho[index[b], index[a]] = rho

    def dearest(self) -> list[int]:
        return [int(costs.argmax()) for costs in self._costs]

    def settle(self, chosen: list[int], price: float) -> list[int]:
        """price: of a nat."""
        chosen = list(chosen)
        for _ in range(20):
            before = list(chosen)
            for site, (costs, nats, roots) in enumerate(
                zip(self._costs, self._nats, self._roots, strict=True)
            ):
                others = sum(
                    self._rho[site, j] * self._roots[j][chosen[j]]
                    for j in range(len(chosen))
                    if j != site
                )
                chosen[site] = int(np.argmin(costs + price * (nats + 2 * roots * others)))
            if chosen == before:
                break
        return chosen

    def setting(self, chosen: Sequence[int]) -> Setting:
        picked = [options[i] for options, i in zip(self._options, chosen, strict=True)]
        bases = {
            name: b
            for readers, (_, own) in zip(self._readers, picked, strict=True)
            for name, b in zip(readers, own, strict=True)
        }
        return Setting(
            bases=tuple((name, bases[name]) for name in self._space.tensors),
            bits=tuple((t, q) for t, (q, _) in zip(self._tensors, picked, strict=True)),
        )


@dataclass(slots=True)
class _Forecast:
    """Points per nat, learnt from what was measured, the nearest counting most."""

    prior: float
    seen: list[tuple[float, float]] = field(default_factory=list)  # nats, points

    def points(self, nats: float) -> float:
        weight = PRIOR * nats
        above, below = weight * self.prior, weight
        for other, points in self.seen:
            near = float(np.exp(-0.5 * (np.log(nats / other) / SPREAD) ** 2))
            above, below = above + near * points, below + near * other
        return max(above / below, 0.0) * nats


def choose_jointly(
    space: Space,
    sensitivity: Sensitivity,
    max_drop_pp: float,
    *,
    measure: Callable[[Setting], Measured],
    measure_lowered: MeasureLowered,
) -> JointChoice:
    """The cheapest setting found whose drop is at most `max_drop_pp` percentage points.

    measure: a setting, decomposed in sequence; measure_lowered(whole, lowered): of the first with
    choices changed in place to those of the last, on as many pictures as tell.
    """
    return _Search(space, sensitivity, max_drop_pp, measure, measure_lowered).run()


class _Search:
    def __init__(
        self,
        space: Space,
        sensitivity: Sensitivity,
        max_drop_pp: float,
        measure: Callable[[Setting], Measured],
        measure_lowered: MeasureLowered,
    ) -> None:
        self.space, self.sensitivity, self.max_drop_pp = space, sensitivity, max_drop_pp
        self._measure, self._measure_lowered = measure, measure_lowered
        self.tried: dict[Setting, Finalist] = {}
        self.lowered: dict[tuple[Setting, Setting], Finalist] = {}  # by what was changed to what
        prior = sensitivity.drop_per_nat
        self._by_tables = _Forecast(prior * IN_SEQUENCE)
        self._by_measure = _Forecast(prior)
        self._anew = 1.0  # how much more a lowered setting may diverge once it is decomposed anew

    def run(self) -> JointChoice:
        front = [one for one in find_front(self.space, self.sensitivity) if self.space.fits(one)]
        front = front or [self.space.least()]
        found = self.along(front)
        while found is not None:
            lowered = self.lower(found)
            # What was measured on the way may have changed what is expected of others.
            kept = [one for one in self.tried.values() if one.kept]
            found = min(kept, key=lambda one: one.cost, default=None)
            if found is None:
                known = len(self.tried)
                found = self.along(front)
                if len(self.tried) == known:
                    break
            elif lowered.setting == found.setting:
                break
        if found is not None:
            return self.choice(found, met=True)
        best = min(self.tried.values(), key=lambda one: (one.measured.upper_pp, one.cost))
        return self.choice(best, met=False)

    def choice(self, finalist: Finalist, *, met: bool) -> JointChoice:
        return JointChoice(
            setting=finalist.setting,
            predicted_pp=finalist.predicted_pp,
            met=met,
            tried=(*self.tried.values(), *map(self._again, self.lowered.values())),
        )

    @property
    def aim(self) -> float:
        """Percentage points that the search aims at."""
        return max(AIM * self.max_drop_pp, self._one_picture)

    @property
    def _one_picture(self) -> float:
        """Percentage points: what is expected to cost less is nothing, also where D is 0."""
        return 100 / next(iter(self.tried.values())).measured.samples if self.tried else 0.0

    def forecast(self, setting: Setting) -> float:
        return self._by_tables.points(predicted_nats(self.sensitivity, setting))

    def evaluate(self, setting: Setting) -> Finalist:
        if setting not in self.tried:
            predicted = self.forecast(setting)
            measured = self._measure(setting)
            nats = predicted_nats(self.sensitivity, setting)
            self._by_tables.seen.append((nats, measured.drop_pp))
            self._by_measure.seen.append((max(measured.nats, SMALLEST), measured.drop_pp))
            self.tried[setting] = self._finalist(setting, predicted, measured, whole=True)
            self.tried = {
                key: self._finalist(key, one.predicted_pp, one.measured, whole=True)
                for key, one in self.tried.items()
            }
        return self.tried[setting]

    def _finalist(
        self, setting: Setting, predicted: float, measured: Measured, *, whole: bool
    ) -> Finalist:
        """Judged by all that has been measured so far."""
        nats = measured.nats if whole else measured.nats * self._anew
        expected = self._by_measure.points(max(nats, SMALLEST))
        margin = measured.upper_pp - measured.drop_pp
        if whole:
            kept = measured.upper_pp <= self.max_drop_pp + TIGHT
            kept = kept and expected + margin <= max(self.max_drop_pp, self._one_picture) + TIGHT
        else:
            kept = expected + margin <= self.aim
        return Finalist(
            setting=setting,
            cost=self.space.cost_of(setting),
            predicted_pp=predicted,
            expected_pp=expected,
            measured=measured,
            whole=whole,
            kept=kept,
        )

    def along(self, front: list[Setting]) -> Finalist | None:
        """The cheapest found of the front that keeps the tolerance, taking it as monotone."""
        good, bad, margin, refined = -1, len(front), 0.0, 0
        stops = self._stops(front)
        while bad - good > 1:
            between = [stop for stop in stops if good < stop < bad]
            if between:
                place = between[len(between) // 2]
            elif refined < REFINED or (good < 0 and len(self.tried) < EVALUATIONS):
                refined += 1
                fits = [self.forecast(one) + margin <= self.aim for one in front]
                aim = max((place for place, fit in enumerate(fits) if fit), default=0)
                if aim <= good:
                    break
                place = min(aim, bad - 1)
            else:
                break
            measured = self.evaluate(front[place]).measured
            margin = measured.upper_pp - measured.drop_pp
            known = {place: self.tried.get(one) for place, one in enumerate(front)}
            good = max((place for place, one in known.items() if one and one.kept), default=-1)
            refused = (place for place, one in known.items() if one and not one.kept)
            bad = min((place for place in refused if place > good), default=len(front))
            if refined and good == place:
                break
        return self.tried[front[good]] if good >= 0 else None

    def _stops(self, front: list[Setting]) -> list[int]:
        """Places along the front whose predicted drops by the tables alone are evenly spaced in
        their logarithm. They do not depend on the tolerance: what is measured there serves all.
        """
        rate = self.sensitivity.drop_per_nat * IN_SEQUENCE
        drops = [rate * predicted_nats(self.sensitivity, one) for one in front]
        wanted = np.searchsorted(drops, np.geomspace(*STOPS_PP, STOPS))
        return sorted({min(int(place), len(front) - 1) for place in wanted})

    def lower(self, whole: Finalist) -> Finalist:
        """Try each choice one lower, what saves most first; go on from what keeps the tolerance.
        What saves nothing is tried too, to be told of, and not taken.

        Layers are changed in place on the way; only where it ends is decomposed anew, and should
        that not keep the tolerance, it goes on from a step before. A choice that was too much once
        is not tried again: from a cheaper setting it is too much all the more.
        """
        steps, refused = [whole], dict[tuple[str, str], int]()  # place -> number of steps before
        for _ in range(MISSES):
            while left := self._open(steps[-1].setting, refused):
                place, lowered = min(left, key=lambda item: self.space.cost_of(item[1]))
                tried = self.tried.get(lowered) or self._try(whole, lowered)
                if tried.kept and tried.cost < steps[-1].cost:
                    steps.append(tried)
                else:
                    refused[place] = len(steps)
            if len(steps) == 1 or self.evaluate(steps[-1].setting).kept:
                return self.tried[steps[-1].setting]
            anew, before = self.tried[steps[-1].setting].measured.nats, steps[-1].measured.nats
            if before > 0:
                self._anew = min(max(self._anew, anew / before), WORST_ANEW)
            while len(steps) > 1:
                if (self.tried.get(steps[-1].setting) or self._again(steps[-1])).kept:
                    break
                last = steps.pop()
                refused = {place: count for place, count in refused.items() if count <= len(steps)}
                refused[_difference(steps[-1].setting, last.setting)] = len(steps)
        return self.tried[whole.setting]

    def _open(
        self, setting: Setting, refused: Mapping[tuple[str, str], int]
    ) -> list[tuple[tuple[str, str], Setting]]:
        places = [(_difference(setting, one), one) for one in self.space.lowerings(setting)]
        return [(place, one) for place, one in places if place not in refused]

    def _again(self, one: Finalist) -> Finalist:
        """A lowered one that was accepted, as it is judged by what is known by now."""
        if not one.kept:
            return one
        return self._finalist(one.setting, one.predicted_pp, one.measured, whole=False)

    def _try(self, whole: Finalist, lowered: Setting) -> Finalist:
        key = whole.setting, lowered
        if known := self.lowered.get(key):
            predicted, measured = known.predicted_pp, known.measured
        else:
            predicted, measured = self.forecast(lowered), self._measure_lowered(*key)
        self.lowered[key] = self._finalist(lowered, predicted, measured, whole=False)
        return self.lowered[key]


def _difference(setting: Setting, lowered: Setting) -> tuple[str, str]:
    """("bases" or "bits", name) of the one choice that differs."""
    for kind, before, after in (
        ("bases", setting.bases, lowered.bases),
        ("bits", setting.bits, lowered.bits),
    ):
        for one, other in zip(before, after, strict=True):
            if one != other:
                return kind, one[0]
    raise ValueError("the settings are equal")
