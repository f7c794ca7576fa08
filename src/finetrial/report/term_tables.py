"""Rows of the tables about what acted beside the main loss, as text ready to print."""

from collections.abc import Sequence

from finetrial.report.facts import Report
from finetrial.report.tables import Table
from finetrial.report.terms import TERMS, GuardFacts, anchors, guards, mixtures, pulls, sets
from finetrial.report.theme import count, number

KINDS = {"ref_student": "KL(base ‖ adapter)", "student_ref": "KL(adapter ‖ base)", "js": "Jensen–Shannon"}
HELD_OUT = {"kl_to_base": "KL(base ‖ adapter)", "kl_from_base": "KL(adapter ‖ base)"}


def gradients(report: Report) -> Table:
    """What each auxiliary term had of the gradient."""
    rows = [
        [
            pull.condition,
            TERMS.get(pull.term, pull.term),
            "—" if pull.target is None else percent(pull.target),
            percent(pull.share),
            spread([100 * share for share in pull.shares], " %"),
            "—" if pull.cosine is None else number(pull.cosine, 2),
            spread(pull.cosines),
            f"{len(pull.shares)} × in {count(pull.seeds, 'seed')}",
            pull.flag,
        ]
        for pull in pulls(report)
    ]
    heads = ["condition", "term", "asked", "share, median", "range", "cosine", "range"]
    return [*heads, "measured", ""], rows


def anchored(report: Report) -> Table:
    """How anchors acted, and how far from the base runs are on held-out texts."""
    found = anchors(report)
    measured = list(dict.fromkeys((s, m) for anchor in found for s, of in anchor.held_out.items() for m in sorted(of)))
    rows = []
    for anchor in found:
        if anchor.kind is None:
            own = ["none", "—", "—", "—", "—"]
        else:
            kl = number(anchor.kl_last, 4)
            capped = "no cap" if anchor.capped is None else percent(anchor.capped)
            tokens = "not recorded" if anchor.tokens is None else number(round(anchor.tokens))
            bounded = f"at least {kl}" if anchor.lower_bound else kl
            own = [KINDS.get(anchor.kind, anchor.kind), _plain(anchor.peak), tokens, capped, bounded]
        held = [number(anchor.held_out.get(suite, {}).get(metric), 4) for suite, metric in measured]
        rows.append([anchor.condition, *own, *held])
    heads = ["condition", "anchor", "coefficient", "tokens/step", "beyond cap", "in training"]
    return [*heads, *(f"{suite}: {HELD_OUT[metric]}" for suite, metric in measured)], rows


def drawn(report: Report) -> Table:
    """The sets of completions that each condition drew."""
    rows = [
        [
            one.condition,
            "by share" if one.weight is None else f"{one.weight:g}",
            spread(one.weight_last),
            number(one.sets),
            number(one.equal),
            number(one.missing),
            number(one.tokens),
            *(f"{number(one.first.get(key), 3)} → {number(one.last.get(key), 3)}" for key in ("diversity", "quality")),
            ", ".join({"collapse": "collapsed"}.get(alarm, alarm) for alarm in one.alarms),
        ]
        for one in sets(report)
    ]
    heads = ["condition", "λ", "λ at the end", "sets", "no signal", "no score", "tokens"]
    return [*heads, "diversity", "quality", ""], rows


def mixed(report: Report) -> Table:
    """What was asked for and what was given."""
    rows = [
        [
            part.condition,
            part.part,
            part.unit,
            spread([100 * share for share in part.asked], " %"),
            spread([100 * share for share in part.given], " %"),
            spread(part.rows),
            spread(part.tokens),
            f"{spread(part.distinct)} of {spread(part.available)}",
        ]
        for part in mixtures(report)
    ]
    heads = ["condition", "part", "counted in", "asked for", "given", "rows read", "learnt tokens", "different rows"]
    return heads, rows


def guarded(report: Report) -> Table:
    """Best against last of every guarded run."""
    return (
        ["condition", "seed", "watched", "base", "best", "last", "stopped after", "kept", "why"],
        [_guarded(guard) for guard in guards(report)],
    )


def _guarded(guard: GuardFacts) -> list[str]:
    who = [guard.condition, str(guard.seed), f"{guard.metric} on {guard.suite}", number(guard.baseline, 4)]
    if not guard.ran:
        return [*who, "never measured", "never measured", "—", _step(guard.selected_step), "the guard never ran"]
    best, last = (_at(point) for point in (guard.best, guard.last))
    end = "ran to its end" if guard.stopped_at is None else _step(guard.stopped_at)
    return [*who, best, last, end, _step(guard.selected_step), guard.reason or "—"]


def _at(point: tuple[int, float | None] | None) -> str:
    return "never measured" if point is None else f"{number(point[1], 4)} (step\u00a0{point[0]})"


def _step(step: int | None) -> str:
    return "—" if step is None else f"step\u00a0{step}"


def percent(share: float | None) -> str:
    """A share for readers: two significant digits, `0` only for exactly none."""
    return "—" if share is None else "0" if share == 0 else f"{_plain(float(f'{100 * share:.2g}'))} %"


def _plain(value: float | None) -> str:
    return "not recorded" if value is None else "< 0.001" if 0 < abs(value) < 0.001 else f"{value:g}".replace("-", "−")


def spread(values: Sequence[float], unit: str = "") -> str:
    """`3.2 to 8.1`, or the one value that there is."""
    if not values:
        return "—"
    ends = [
        _plain(float(f"{end:.3g}")) if isinstance(end, float) else number(end) for end in (min(values), max(values))
    ]
    return f"{ends[0]}{unit}" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}{unit}"
