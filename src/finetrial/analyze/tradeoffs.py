"""Where conditions stand between two aims, and which of them no other condition beats on both.

An axis is one metric on one suite or several; with several a condition stands where its worst suite is: the suite whose
mean change is least. Its interval is that suite's (to first order the others do not move a minimum). All changes are
oriented and against one baseline, which stands at the origin itself.

Dominance: A dominates B if A is no worse on both axes and better on one. By the means that decides every pair; with
uncertainty only where the interval of A - B says so on each axis by itself (an intersection-union test: both must hold,
so neither is corrected), which leaves most pairs open when there are few runs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from finetrial.analyze.changes import Change, Pair, average_change, between, change, comparable, pair
from finetrial.analyze.contrast import Axis, Tradeoff
from finetrial.analyze.metrics import Direction
from finetrial.analyze.table import Dense

Arm = Callable[[str, str, str], Dense | None]
"""(condition, suite, metric) -> its outcomes, or None where there are none."""


@dataclass(frozen=True)
class Side:
    """A condition on one axis."""

    change: Change
    """On `suite`."""
    suite: str
    """The suite of the axis with the least change."""
    mean: Change | None
    """Over the suites of the axis; None for one suite, and where runs differ between suites."""
    seeds: tuple[tuple[int | None, float], ...]
    """(seed, its change on `suite`)."""


@dataclass(frozen=True)
class Position:
    """A condition between the two aims."""

    condition: str
    x: Side
    y: Side
    dominated_by: tuple[str, ...]
    """Conditions that are as good on both axes and better on one, by their means."""
    surely_dominated_by: tuple[str, ...]
    """Those of which the intervals of the difference say so."""

    @property
    def optimal(self) -> bool:
        """Whether no mean dominates it."""
        return not self.dominated_by


def positions(
    tradeoff: Tradeoff,
    conditions: Sequence[str],
    arm: Arm,
    better: Callable[[str], Direction],
    level: float = 0.95,
) -> list[Position]:
    """Where the baseline and every condition with outcomes on all suites of both axes stand.

    Args:
        tradeoff: what is declared.
        conditions: names, without the baseline.
        arm: where outcomes come from.
        better: direction of a metric.
        level: of every interval.
    """
    axes = (tradeoff.x_axis, tradeoff.y_axis)
    found: dict[str, tuple[_Place, _Place]] = {}
    for name in conditions:
        x, y = (_place(axis, name, tradeoff.baseline, arm, better(axis.metric)) for axis in axes)
        if x is not None and y is not None:
            found[name] = (x, y)
    sides = {name: (x.side(level), y.side(level)) for name, (x, y) in found.items()}

    def differences(a: str, b: str) -> list[Change]:
        """a - b on both axes; the baseline is at 0."""
        if b == tradeoff.baseline:
            return [side.change for side in sides[a]]
        if a == tradeoff.baseline:
            return [_negative(side.change) for side in sides[b]]
        return [_versus(found[a][k], found[b][k], a, b, arm, better(axis.metric), level) for k, axis in enumerate(axes)]

    names = [*found, tradeoff.baseline]
    by_mean, surely = _dominations(names, differences)
    placed = [Position(name, x, y, by_mean[name], surely[name]) for name, (x, y) in sides.items()]
    return [*placed, _at_origin(tradeoff, by_mean, surely)] if placed else []


@dataclass(frozen=True)
class _Place:
    """A condition on one axis, before intervals."""

    pairs: Mapping[str, Pair]
    """Suite of the axis -> the condition and the baseline."""
    axis: Axis

    @property
    def worst(self) -> str:
        """Suite of the least change."""
        return min(self.pairs, key=lambda suite: float(self.pairs[suite].effect.estimate))

    def side(self, level: float) -> Side:
        """As it is reported."""
        worst = self.pairs[self.worst]
        alike = len({one.seeds for one in self.pairs.values()}) == 1
        return Side(
            change=change(worst, level),
            suite=self.worst,
            mean=average_change(list(self.pairs.values()), level) if alike and len(self.pairs) > 1 else None,
            seeds=tuple(zip(worst.seeds[0], map(float, worst.change_S), strict=True)),
        )


def _place(axis: Axis, condition: str, baseline: str, arm: Arm, better: Direction) -> _Place | None:
    pairs = {}
    for suite in axis.suites:
        a, b = arm(condition, suite, axis.metric), arm(baseline, suite, axis.metric)
        if a is None or b is None or not comparable(a, b):
            return None
        matched = pair(a, b, better)
        if matched is None:
            return None
        pairs[suite] = matched
    return _Place(pairs, axis)


def _versus(a: _Place, b: _Place, a_name: str, b_name: str, arm: Arm, better: Direction, level: float) -> Change:
    """How much better `a` stands than `b`; on one suite what both share on an item cancels."""
    if a.worst != b.worst:
        return between(a.pairs[a.worst], b.pairs[b.worst], level)
    left, right = (arm(name, a.worst, a.axis.metric) for name in (a_name, b_name))
    assert left is not None
    assert right is not None
    matched = pair(left, right, better)
    if matched is None:
        return between(a.pairs[a.worst], b.pairs[b.worst], level)
    return change(matched, level)


def _dominations(
    names: Sequence[str], differences: Callable[[str, str], Sequence[Change]]
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """(by the means, by the intervals): condition -> those that dominate it."""
    by_mean: dict[str, list[str]] = {name: [] for name in names}
    surely: dict[str, list[str]] = {name: [] for name in names}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            forward = differences(a, b)
            for winner, loser, gaps in ((a, b, forward), (b, a, [_negative(gap) for gap in forward])):
                values = [gap.estimate for gap in gaps]
                if min(values) >= 0 and max(values) > 0:
                    by_mean[loser].append(winner)
                if all(gap.ci is not None and gap.ci[0] > 0 for gap in gaps):
                    surely[loser].append(winner)
    return _frozen(by_mean), _frozen(surely)


def _frozen(of: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(found) for name, found in of.items()}


def _negative(one: Change) -> Change:
    ci = None if one.ci is None else (-one.ci[1], -one.ci[0])
    return Change(-one.estimate, ci, one.p_value, (one.n_seeds[1], one.n_seeds[0]), one.n_items)


def _at_origin(
    tradeoff: Tradeoff, by_mean: Mapping[str, tuple[str, ...]], surely: Mapping[str, tuple[str, ...]]
) -> Position:
    nothing = Change(0.0, None, None, (0, 0), 0)
    x, y = (Side(nothing, axis.suites[0], None, ()) for axis in (tradeoff.x_axis, tradeoff.y_axis))
    name = tradeoff.baseline
    return Position(name, x, y, by_mean[name], surely[name])
