"""Rows of what was kept and lost, as text ready to print."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetrial.analyze.changes import Change
from finetrial.analyze.forgetting import HEADROOM, ItemChange
from finetrial.report.forgetting import SHOWN, Forgetting, Kept, Room, Traded
from finetrial.report.tables import Table
from finetrial.report.theme import count, decimals_for, number, p_text

FILE = "item_changes.csv"
"""Beside the page: every item of every condition and suite."""

MOST = 100
"""Items of one list on the page; the file beside it has all."""

PROMPT = 140
"""Characters of a prompt in a row."""


def overview(found: Forgetting) -> Table:
    """Every condition on every suite: mean change, and how many items went which way."""
    rows = [
        [
            one.suite,
            one.condition,
            one.metric,
            interval(one.change),
            number(one.change.n_items),
            number(len(one.gains)),
            number(len(one.drops)),
            number(len(one.items) - len(one.gains) - len(one.drops)),
        ]
        for one in found.kept
    ]
    return ["test set", "condition", "metric", "change", "items", "better", "worse", "unchanged"], rows


def interval(change: Change) -> str:
    """`+0.12 [0.05, 0.19]`, without an interval where there is none."""
    return _interval(change.estimate, change.ci)


def _interval(value: float, ci: tuple[float, float] | None) -> str:
    places = decimals_for(ci[1] - ci[0]) if ci else None
    shown = number(value, places, signed=True) if ci else number(float(f"{value:.3g}"), signed=True)
    return f"{shown} [{number(ci[0], places)}, {number(ci[1], places)}]" if ci else shown


def room(found: Forgetting) -> Table:
    """How close each condition is to the ends of the range, on suites whose metric has two."""
    rows = [
        [
            one.suite,
            one.condition,
            one.metric,
            _percent(one.ends.at_lowest),
            _percent(one.ends.at_highest),
            _percent(one.ends.room_up),
            _percent(one.ends.room_down),
        ]
        for one in found.room
    ]
    heads = ["test set", "condition", "metric", "at the lowest value", "at the highest", "room to gain", "room to lose"]
    return heads, rows


def room_warnings(found: Forgetting) -> list[str]:
    """A sentence per suite and end without room, conditions together."""
    sentences = []
    for suite in dict.fromkeys(one.suite for one in found.room):
        mine = [one for one in found.room if one.suite == suite]
        for names, what in (
            (_names(mine, lambda one: one.ends.cannot_gain), "gain: an improvement could hardly show"),
            (_names(mine, lambda one: one.ends.cannot_lose), "lose: forgetting could hardly show"),
        ):
            if names:
                verb = "has" if len(names) == 1 else "have"
                sentences.append(
                    f"{suite}: {', '.join(names)} {verb} less than {100 * HEADROOM:g} % of the range to {what}."
                )
    return sentences


def _names(rooms: Sequence[Room], lacks: Callable[[Room], bool]) -> list[str]:
    return [one.condition for one in rooms if lacks(one)]


def categories(members: Sequence[Kept]) -> Table:
    """Conditions on one suite, by category."""
    rows = [
        [
            f"{part.category}: {kept.condition}",
            number(part.change.n_items),
            number(part.baseline, 3),
            number(part.value, 3),
            interval(part.change),
            "too few items" if part.ci_adjusted is None else _ends(part.ci_adjusted),
            "—" if part.p_adjusted is None else p_text(part.p_adjusted),
        ]
        for part, kept in sorted(
            ((part, kept) for kept in members for part in kept.categories), key=lambda entry: entry[0].category
        )
    ]
    return ["category: condition", "items", "base", "condition", "change", "interval by Holm", "p by Holm"], rows


def subsets(found: Forgetting) -> Table:
    """What a random 16 of the items would have said, for every condition and suite."""
    rows = []
    for one in found.kept:
        if one.subset is not None:
            low, high = one.subset.spread
            places = decimals_for(high - low)
            half, full = number(one.subset.half_width, places), number(one.subset.full_half_width, places)
            rows.append(
                [
                    one.suite,
                    one.condition,
                    number(one.subset.full_difference, places, signed=True),
                    f"{number(low, places, signed=True)} to {number(high, places, signed=True)}",
                    _percent(one.subset.opposite_sign),
                    f"{_percent(one.subset.significant)} ({_percent(one.subset.significant_opposite)})",
                    f"±{half} instead of ±{full}",
                ]
            )
    heads = ["test set", "condition", "all items", "95 % of the subsets", "other sign", "“significant” (wrong way)"]
    return [*heads, "interval"], rows


def within(found: Forgetting) -> Table:
    """Suites that are part of a larger one, beside it."""
    rows = [
        [
            one.nested.subset,
            one.nested.full,
            one.condition,
            f"{interval(one.nested.on_subset)}, {count(one.nested.on_subset.n_items, 'item')}",
            f"{interval(one.nested.on_full)}, {count(one.nested.on_full.n_items, 'item')}",
        ]
        for one in found.within
    ]
    return ["subset", "of", "condition", "change on the subset", "change on all of it"], rows


def tradeoff(traded: Traded) -> Table:
    """Where every condition stands, and which others dominate it."""
    several = any(position.y.mean or position.x.mean for position in traded.positions)
    rows = []
    for position in traded.positions:
        origin = position.condition == traded.tradeoff.baseline
        row = [f"{position.condition}{' (baseline)' if origin else ''}"]
        for axis, side in ((traded.tradeoff.x_axis, position.x), (traded.tradeoff.y_axis, position.y)):
            named = f" ({side.suite})" if len(axis.suites) > 1 and not origin else ""
            row.append("0" if origin else f"{interval(side.change)}{named}")
            if several and len(axis.suites) > 1:
                row.append("0" if origin else "—" if side.mean is None else interval(side.mean))
        row.append(", ".join(position.dominated_by) or "no: Pareto-optimal")
        row.append(", ".join(position.surely_dominated_by) or "no")
        rows.append(row)
    heads = ["condition"]
    for axis in (traded.tradeoff.x_axis, traded.tradeoff.y_axis):
        heads.append(
            f"worst {axis.metric} of {len(axis.suites)}"
            if len(axis.suites) > 1
            else axis_words(axis.suites, axis.metric)
        )
        if several and len(axis.suites) > 1:
            heads.append(f"mean of the {len(axis.suites)}")
    return [*heads, "beaten by, in the means", "beyond noise"], rows


def axis_words(suites: Sequence[str], metric: str) -> str:
    """`metric on suite`."""
    return f"{metric} on {', '.join(suites)}"


@dataclass(frozen=True)
class ItemList:
    """The items that gained or lost."""

    title: str
    first: Table
    rest: Table
    more: int
    """Items that stand in the file alone."""


def items(found: Forgetting, kept: Kept) -> list[ItemList]:
    """Drops and gains of one condition on one suite, the largest first."""
    lists = []
    for title, members in (("Largest drops", kept.drops), ("Largest gains", kept.gains)):
        if members:
            heads, rows = _item_rows(found, kept, members[:MOST])
            told = f"{title}: {count(len(members), 'item')}"
            lists.append(ItemList(told, (heads, rows[:SHOWN]), (heads, rows[SHOWN:]), max(0, len(members) - MOST)))
    return lists


def every_item(found: Forgetting) -> str:
    """All items as text in columns, the largest gain of each condition and suite first."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    heads = ("condition", "suite", "metric", "item", "category", "base", "value", "change", "low", "high", "seeds")
    writer.writerow(heads)
    for kept in found.kept:
        for one in kept.items:
            asked = found.asked.get((kept.suite, one.item))
            named = (kept.condition, kept.suite, kept.metric, one.item, asked.category if asked else None)
            writer.writerow([*named, one.baseline, one.value, one.change, *(one.ci or (None, None)), one.n_seeds])
    return stream.getvalue()


def _item_rows(found: Forgetting, kept: Kept, members: Sequence[ItemChange]) -> Table:
    asked = [found.asked.get((kept.suite, one.item)) for one in members]
    heads = ["item", *(["category"] if any(one and one.category for one in asked) else [])]
    heads += ["what it asks"] if any(asked) else []
    rows = []
    for one, what in zip(members, asked, strict=True):
        row = [_shorten(one.item, 40)]
        if "category" in heads:
            row.append((what.category if what else None) or "—")
        if "what it asks" in heads:
            row.append(_shorten(what.prompt, PROMPT) if what else "not recorded")
        seeds = "" if one.ci or one.n_seeds < 2 else f" in all {one.n_seeds} runs"
        rows.append([*row, number(one.baseline), number(one.value), f"{_interval(one.change, one.ci)}{seeds}"])
    return [*heads, "base", kept.condition, "change"], rows


def _shorten(text: str, most: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


def _ends(ci: tuple[float, float]) -> str:
    places = decimals_for(ci[1] - ci[0])
    return f"[{number(ci[0], places)}, {number(ci[1], places)}]"


def _percent(share: float) -> str:
    return f"{number(100 * share, 1 if 0 < share < 0.1 else 0)} %"


def sentences(found: Forgetting) -> list[str]:
    """The section in short, for `verdict.md`: largest changes and what dominates what."""
    told = []
    for traded in found.traded:
        names = [p.condition for p in traded.positions if p.optimal and p.condition != traded.tradeoff.baseline]
        lost = [
            f"{p.condition} by {', '.join(p.surely_dominated_by)}" for p in traded.positions if p.surely_dominated_by
        ]
        told.append(
            f"{traded.tradeoff.name}: no mean beats {', '.join(names) or 'the baseline'} on both aims"
            + (f"; beaten beyond noise: {'; '.join(lost)}" if lost else "; nothing is beaten beyond noise")
            + "."
        )
    for suite in found.suites:
        worst = min(found.of(suite), key=lambda one: one.change.estimate)
        if worst.change.estimate < 0:
            told.append(
                f"Largest loss on {suite}: {worst.condition}, {worst.metric} {interval(worst.change)} (oriented; "
                f"{count(worst.change.n_items, 'item')}, {len(worst.drops)} worse, {len(worst.gains)} better)."
            )
    return told + room_warnings(found)
