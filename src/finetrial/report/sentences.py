"""What the findings mean, in plain sentences for readers who are not statisticians."""

from collections import Counter
from collections.abc import Sequence

from finetrial.analyze.contrast import Finding
from finetrial.report.facts import Report, is_exploratory, oriented
from finetrial.report.theme import count, decimals_for, metric_words, number

MEANING = {
    "CONFIRMED": "the improvement is larger than the margin even at the cautious end of its interval",
    "FAILED": "an improvement as large as the margin is ruled out",
    "INCONCLUSIVE": "the data allow both an improvement worth having and none; more seeds are needed",
    "INVALID": "something is wrong with the experiment itself, so its numbers decide nothing",
}

HOW_TO_READ = (
    (
        "A contrast",
        "compares one recipe (the candidate) with another (the baseline, or the untrained base model) on one test set. "
        "All contrasts were written down before the results were known, unless marked exploratory.",
    ),
    (
        "A seed",
        "is one complete repetition of training. Results differ between seeds by chance; a claim about a recipe must "
        "hold across seeds, so the seed is what is counted, not the test item.",
    ),
    (
        "The margin",
        "is the smallest improvement that would change what you do, declared in advance. An improvement that is real "
        "but smaller than the margin does not count as confirmed.",
    ),
    (
        "The interval",
        "holds the differences that agree with the data. The adjusted interval is wider, because several contrasts "
        "were tested together; verdicts rest on it. The p-value is the probability of a difference at least as large "
        "if there were none.",
    ),
    (
        "A verdict",
        "says where the adjusted interval lies: all beyond the margin, confirmed; all short of it, failed (harmful if "
        "all below zero, equivalent if all within the margin on both sides); otherwise inconclusive. Invalid means "
        "that a check of the experiment itself failed.",
    ),
)


def summary(report: Report) -> list[str]:
    """The paragraph at the top: how many contrasts were confirmed, failed or undecided, and what that means."""
    if not report.findings:
        return [_nothing_judged(report)]
    declared = [finding for finding in report.findings if not is_exploratory(finding)]
    exploratory = [finding for finding in report.findings if is_exploratory(finding)]
    sentences = [f"This campaign put {count(len(declared), 'comparison')} to the test."] if declared else []
    verdicts = Counter(finding.verdict for finding in declared)
    for verdict, meaning in MEANING.items():
        n = verdicts[verdict]
        if n:
            verb = "was" if n == 1 else "were"
            said = f"{verb} confirmed" if verdict == "CONFIRMED" else verdict.lower()
            said = said if verdict in ("CONFIRMED", "FAILED") else f"{'is' if n == 1 else 'are'} {said}"
            subject = _word(n) if n < len(declared) else "It" if n == 1 else f"All {n}"
            sentences.append(f"{subject} {said}: {meaning}{_failures(declared) if verdict == 'FAILED' else ''}.")
    if exploratory:
        n, further = len(exploratory), " further" if declared else ""
        which = f"{_word(n)}{further} contrast{' is' if n == 1 else 's are'}"
        sentences.append(f"{which} exploratory: a hint for a next campaign, not a result of this one.")
    return sentences


def _word(n: int) -> str:
    """A number at the head of a sentence."""
    words = ("One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")
    return words[n - 1] if n <= len(words) else str(n)


def _failures(declared: list[Finding]) -> str:
    subtypes = Counter(finding.subtype for finding in declared if finding.verdict == "FAILED")
    parts = []
    if subtypes["HARMFUL"]:
        parts.append(f"{subtypes['HARMFUL']} made things worse")
    if subtypes["EQUIVALENT"]:
        parts.append(f"{subtypes['EQUIVALENT']} made no difference that matters")
    return f" ({', '.join(parts)})" if parts else ""


def _nothing_judged(report: Report) -> str:
    if report.next_look:
        return f"Nothing has been decided yet: {report.next_look}. Until then there is progress to see, no result."
    if not report.cells:
        return "No outcomes are recorded yet, so nothing could be judged."
    return "The campaign declares no contrasts, so nothing was judged; the measurements below describe, no more."


def claim(finding: Finding, level: str) -> str:
    """One finding as a sentence, in the direction of improvement."""
    words = metric_words(finding.metric)
    on = finding.suite if finding.minus_suite is None else f"{finding.suite} minus {finding.minus_suite}"
    pair = f"{finding.candidate} against {finding.baseline} on {on}"
    interval = oriented(finding, finding.ci_adjusted)
    if finding.estimate is None or interval is None:
        return f"{pair}: nothing could be estimated ({finding.reason})."
    gain = finding.estimate if finding.better == "higher" else -finding.estimate
    places = decimals_for(interval[1] - interval[0])
    word = "better" if gain >= 0 else "worse"
    ends = f"{number(interval[0], places)} to {number(interval[1], places)}"
    unit = "" if words.unit == "proportion" else f" {words.unit}"
    size = f"{number(abs(gain), places)}{unit}"
    n = f"{finding.n_seeds[0]} and {finding.n_seeds[1]} seeds" if finding.n_seeds[1] else f"{finding.n_seeds[0]} seeds"
    return (
        f"{pair}: {words.title} {word} by {size} (improvement {ends}, {level}; margin {finding.margin:g}; "
        f"{n}, {count(finding.n_items, 'item')}; {finding.test})."
    )


def level_words(report: Report) -> str:
    """`adjusted 95 % interval`, or without the level where alpha was not recorded or every look has its own."""
    if report.section("looks"):
        return "adjusted interval at the level of its look"
    return "adjusted interval" if report.alpha is None else f"adjusted {100 * (1 - report.alpha):g} % interval"


def status_notes(report: Report) -> list[str]:
    """What a reader must know before believing any number: a run that is not whole."""
    notes = []
    status = report.section("status")
    if status == "dry":
        notes.append("This was a dry run with shortened training. Its figures show that the machinery works, no more.")
    elif status == "running":
        provisional = "figures are provisional; what a look decided stands" if report.section("looks") else None
        notes.append(f"The campaign is still running: {provisional or 'figures and verdicts are provisional'}.")
    elif status == "failed":
        notes.append("The campaign stopped with an error before it was complete.")
    states = Counter(run["status"] for run in report.section("runs") or [])
    for state in ("failed", "quarantined", "pending"):
        if states[state]:
            names = [f"{r['condition']} seed {r['seed']}" for r in report.section("runs") if r["status"] == state]
            shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            notes.append(f"{count(states[state], 'run')} {state}: {shown}.")
    if report.unjudged and report.next_look:
        listed = ", ".join(report.unjudged)
        notes.append(f"{count(len(report.unjudged), 'contrast')} undecided, {report.next_look}: {listed}.")
    elif report.unjudged:
        rest = "; the correction of the others does not count them" if report.findings else ""
        subject = count(len(report.unjudged), "contrast")
        notes.append(f"{subject} could not be judged for want of outcomes{rest}: {', '.join(report.unjudged)}.")
    return notes


def doubts(warnings: Sequence[str]) -> list[str]:
    """One note at the top of the page for all warnings about reinforcement learning, which stand further below."""
    if not warnings:
        return []
    return [f"{count(len(warnings), 'warning')} about the training runs: see how the policies learned."]
