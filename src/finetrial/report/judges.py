"""Judges that graded: what they had to show before their grades counted, and whether they still judge as before.

The manifest's `judges` has an entry per judge: who it is, as `outcomes` what the campaign's outcomes rest on, as
`launch` what it did in the last launch, and as `self_test` and `control` the facts of `finetrial.judge.proof.prove`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from finetrial.report.facts import Report
from finetrial.report.tables import Table
from finetrial.report.theme import INK, MUTED, ZONE, Chart, chart_of, count, finish, number

TOTALS = {
    "graded": "completions graded",
    "missing": "of them without a grade, because no reply could be read (missing, never 0)",
    "judgments": "judgments that the grades rest on",
    "asked_again": "of them asked a second time",
    "lost": "grades whose judgments are no longer in the store, not counted here",
}
LAUNCH = {
    "graded": "completions",
    "missing": "without a grade",
    "pending": "not judged yet",
    "requests": "requests, with those of self-test and control chart",
    "retried": "requests tried again",
    "asked_again": "asked a second time",
    "tokens": "tokens",
}
SHARES = {
    "floor_share": "at the very bottom of the scale",
    "ceiling_share": "at the very top of the scale",
    "order_disagreement": "verdicts that turned with the order (ties)",
}

INSIDE, OUTSIDE = "#0072B2", "#D55E00"


def judges(report: Report) -> list[Mapping[str, Any]]:
    """Entries of the manifest, or nothing."""
    return report.section("judges") or []


def title(entry: Mapping[str, Any]) -> str:
    """Which judge, and how it is asked."""
    kind = {"single": "one answer at a time", "pairwise": "pairs in both orders"}.get(entry.get("kind", ""), "")
    return f"{entry['model']}{f', {kind}' if kind else ''}"


def facts(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the outcomes rest on, whichever launch asked for it, and in what the judge cannot tell answers apart."""
    rows = [("served as", ", ".join(entry.get("served") or ()) or "not recorded")]
    if scale := entry.get("scale"):
        rows.append(("scale", f"{number(scale[0])} to {number(scale[1])}, as a share of it in every figure"))
    totals = entry.get("outcomes") or {}
    rows += [
        (words, number(totals[key]))
        for key, words in TOTALS.items()
        if totals.get(key) or (totals and key == "missing")
    ]
    rows += [(words, _percent(totals[key])) for key, words in SHARES.items() if totals.get(key) is not None]
    return [*rows, ("prompt", str(entry.get("prompt") or "not recorded")[:10])]


def launch(entry: Mapping[str, Any]) -> str:
    """What the judge did in the last launch alone, in one sentence; empty where it was not recorded."""
    done = entry.get("launch") or {}
    parts = [f"{words} {number(done[key])}" for key, words in LAUNCH.items() if key in done]
    return f"In the last launch: {'; '.join(parts)}." if parts else ""


def _percent(share: float) -> str:
    return f"{number(100 * share, 1)} %"


def self_test(entry: Mapping[str, Any]) -> Table:
    """What the judge was tried on; no rows where it was not recorded."""
    rows = [
        [
            check["check"],
            str(check["n"]),
            f"{check['as_wanted']} ({number(100 * check['share'], 0)} %)",
            str(check["missing"]),
            f"at least {number(100 * check['threshold'], 0)} %",
            "passed" if check["passed"] else "FAILED",
        ]
        for check in entry.get("self_test", {}).get("checks", ())
    ]
    return ["check", "answers", "as they should be", "no grade", "wanted", "result"], rows


def control_charts(report: Report) -> list[Chart]:
    """A chart per judge with at least one session."""
    return [_control(k, entry) for k, entry in enumerate(judges(report)) if entry.get("control", {}).get("sessions")]


def _control(k: int, entry: Mapping[str, Any]) -> Chart:
    sessions = entry["control"]["sessions"]
    rows = [
        {
            "session": place,
            "mean": one["mean"],
            "centre": one["centre"],
            "low": one["low"],
            "high": one["high"],
            "state": "drifted" if one["drifted"] else "in control",
        }
        for place, one in enumerate(sessions, 1)
        if one["mean"] is not None
    ]
    found = [row[key] for row in rows for key in ("mean", "low", "high") if row[key] is not None]
    low, high = min(found, default=0.0), max(found, default=1.0)
    room = 0.25 * (high - low) or 0.05
    width = 640
    whole = list(range(1, len(sessions) + 1, 1 + len(sessions) // 20))
    axis = alt.Axis(title="session", values=whole, format="d", grid=False)
    reach = alt.Scale(domain=[0.5, len(sessions) + 0.5], nice=False)
    x = alt.X("session:Q", scale=reach, axis=axis)
    scale = alt.Scale(domain=[low - room, high + room], nice=False)
    y = alt.Y("mean:Q", scale=scale, axis=alt.Axis(title="mean grade of the frozen baseline", tickCount=5))
    states = alt.Scale(domain=["in control", "drifted"], range=[INSIDE, OUTSIDE])
    shapes = alt.Scale(domain=["in control", "drifted"], range=["circle", "triangle-down"])
    limits = [
        {**row, "from": row["session"] - 0.5, "to": row["session"] + 0.5} for row in rows if row["low"] is not None
    ]
    layers: list[Any] = []
    if limits:
        band = chart_of(limits)
        start = alt.X("from:Q", scale=reach, axis=axis)
        layers += [
            band.mark_rect(color=ZONE).encode(start, alt.Y("low:Q", scale=scale), x2="to", y2="high"),
            *(
                band.mark_rule(color=MUTED, strokeDash=dash).encode(start, alt.Y(f"{field}:Q", scale=scale), x2="to")
                for field, dash in (("low", [4, 3]), ("high", [4, 3]), ("centre", [1, 0]))
            ),
        ]
    data = chart_of(rows)
    layers += [
        data.mark_line(color=INK, strokeWidth=1, opacity=0.5).encode(x, y),
        data.mark_point(filled=True, size=90, opacity=1).encode(
            x,
            y,
            alt.Color("state:N", scale=states, legend=None),
            alt.Shape("state:N", scale=shapes, legend=None),
        ),
    ]
    drifted = [one for one in sessions if one["drifted"]]
    state = "in control" if entry["control"]["in_control"] else "has drifted"
    first = len(sessions) == 1
    told = (
        "One session is a baseline and has nothing to be compared with: the band comes with the second."
        if first
        else "Band: where the mean lies while nothing has changed, from the earlier sessions in control (three sigma); "
        "line in it: their mean. Points outside (orange triangles) have drifted: grades of such a session are not "
        f"compared. {count(len(sessions), 'session')}, {len(drifted)} of them drifted. Last: {sessions[-1]['reason']}."
    )
    return finish(
        alt.layer(*layers).properties(width=width, height=220),
        f"judge-control-{k}",
        f"Control chart of {title(entry)}: {'the first session' if first else state}",
        f"The same {count(len(sessions[-1]['scores']), 'answer')} of good, middling and bad worth, judged anew in "
        f"every session. {told}",
        f"Control chart: means of {', '.join(number(row['mean'], 3) for row in rows)}; the judge is {state}.",
    )


def sentences(report: Report) -> Sequence[str]:
    """The judges in short, for `verdict.md`."""
    told = []
    for entry in judges(report):
        if "self_test" not in entry or "control" not in entry:
            told.append(f"Judge {title(entry)}: nothing is recorded of its self-test and its control chart.")
            continue
        tested = "passed its self-test" if entry["self_test"]["passed"] else "FAILED its self-test"
        state = "is in control" if entry["control"]["in_control"] else "has DRIFTED"
        n = count(len(entry["control"]["sessions"]), "session")
        totals = entry.get("outcomes") or {}
        rests = f" Outcomes rest on {count(totals['graded'], 'grade')}, {totals['missing']} missing." if totals else ""
        told.append(f"Judge {title(entry)}: {tested} and {state} ({n}).{rests}")
    return told
