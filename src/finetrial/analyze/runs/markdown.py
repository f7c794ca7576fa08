"""The significance report and the litmus as Markdown."""

from collections.abc import Mapping
from typing import Any

from finetrial.analyze.runs.litmus import Litmus
from finetrial.analyze.runs.significance import UNIT, Significance


def significance_markdown(report: Significance) -> str:
    """The report as Markdown."""
    lines = ["# Significance report", "", f"**{report.recommendation}**: {report.reason}.", ""]
    lines += [
        f"Unit of replication: {UNIT}. Two-sided alpha {report.alpha:g}; {report.resamples} resamples. Baseline: "
        f"{len(report.baseline_runs)} runs; candidate: {len(report.candidate_runs)} runs.",
        "",
        "## Mean-Difference Tests",
        "",
    ]
    level = f"{1 - report.alpha:.0%}"
    lines += [
        f"| metric | baseline | candidate | difference | bootstrap {level} | t {level} | p (permutation) | p (Holm) "
        "| least possible p | Cohen's d | Hedges' g | runs | steps |",
        "|---|" + "---:|" * 12,
    ]
    for t in report.mean_tests:
        cells = [t.metric, f"{t.baseline_mean:.4f}", f"{t.candidate_mean:.4f}", f"{t.delta:+.4f}"]
        cells += [_span(t.ci_low, t.ci_high), _span(t.t_ci_low, t.t_ci_high)]
        cells += [_num(x) for x in (t.p_value, t.p_adjusted, t.attainable_p, t.cohens_d, t.hedges_g)]
        lines.append(f"| {' | '.join(cells)} | {t.n_candidate} + {t.n_baseline} | {t.n_steps} |")
    lines += [
        "",
        "Tests are over run means; effect sizes are in units of the spread between runs. With few runs the "
        "bootstrap interval is too narrow; the t interval is not.",
        "",
        "## Correctness Rate Test (descriptive)",
        "",
    ]
    rate = report.rate_test
    if rate is None:
        lines.append("Not available: the runs did not log how many completions were sampled and right.")
    else:
        lines += ["| | correct | completions | rate |", "|---|---:|---:|---:|"]
        lines += [
            f"| {arm} | {rate[f'{arm}_success']} | {rate[f'{arm}_total']} | {rate[f'{arm}_rate']:.4f} |"
            for arm in ("baseline", "candidate")
        ]
        lines += ["", f"Fisher exact p = {_num(rate['p_value'])} over pooled completions: {rate['note']}."]
    lines += [
        "",
        "## Sample Size Estimates (80 % power)",
        "",
        "| metric | at | effect | per arm | per arm, upper spread | unit |",
        "|---|---|---:|---:|---:|---|",
    ]
    for e in report.sample_size_estimates:
        lines.append(
            f"| {e['metric']} | {e['basis']} | {e['effect']:+.4f} | {_whole(e['n_per_arm_80pct'])} "
            f"| {_whole(e['n_per_arm_80pct_upper_sd'])} | {e['unit']} |"
        )
    lines += ["", "## Warnings", "", *[f"- {warning}" for warning in report.warnings], ""]
    return "\n".join(lines)


def litmus_markdown(result: Litmus) -> str:
    """The gate's answer as Markdown."""
    lines = [
        "# Litmus",
        "",
        f"**{result.status}**: {result.reason}.",
        "",
        f"Unit of replication: {UNIT}.",
        "",
        "## Evidence",
        "",
    ]
    lines += [f"- required: {_plain(result.evidence)}"]
    lines += [f"- {failure}" for failure in result.evidence_failures] or ["- all requirements met"]
    lines += [
        "",
        "## Threshold Checks",
        "",
        "| metric | baseline | candidate | lift | interval | threshold | passed | test | runs |",
        "|---|---:|---:|---:|---:|---:|---|---|---:|",
    ]
    for c in result.checks:
        span = "not available" if c.ci_low is None else f"[{c.ci_low:+.4f}, {c.ci_high:+.4f}]"
        word = {True: "yes", False: "no", None: "open"}[c.passed]
        lines.append(
            f"| {c.metric} | {c.baseline:.4f} | {c.candidate:.4f} | {c.delta:+.4f} | {span} | {c.threshold:+g} "
            f"| {word} | {c.test} | {c.n_candidate} + {c.n_baseline} |"
        )
    lines += [
        "",
        "## Runs",
        "",
        "| arm | run | steps | completions | mean_reward | correct_rate |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for arm, facts in (("baseline", result.baseline), ("candidate", result.candidate)):
        for f in facts:
            values = " | ".join("missing" if f[m] is None else f"{f[m]:.4f}" for m in ("mean_reward", "correct_rate"))
            lines.append(f"| {arm} | {f['run']} | {f['steps']} | {f['completions']} | {values} |")
    if result.warnings:
        lines += ["", "## Warnings", "", *[f"- {warning}" for warning in result.warnings]]
    return "\n".join([*lines, ""])


def _num(value: float | None) -> str:
    return "not available" if value is None else f"{value:.3g}"


def _whole(value: int | None) -> str:
    return "not available" if value is None else str(value)


def _span(low: float | None, high: float | None) -> str:
    return "not available" if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"


def _plain(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())
