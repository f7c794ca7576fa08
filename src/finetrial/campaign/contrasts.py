"""`[[contrasts]]`: names, suites and metrics checked before anything is trained, and what is compared by default."""

from collections.abc import Mapping, Sequence

from finetrial.analyze.contrast import Contrast
from finetrial.analyze.metrics import pass_at
from finetrial.campaign.conditions import Condition
from finetrial.campaign.settings import BASE, HELD_OUT, EvaluationConfig, File
from finetrial.errors import UserError, nearest

METRICS = {
    "perplexity": ("nll", "log_perplexity", "bits_per_byte"),
    "tasks": ("correct", "completion_tokens"),
}
"""What suites of each kind measure, the first by default; `pass@k` is derived from `correct`."""


def suite_kinds(file: File, pool: bool, tasks: bool) -> dict[str, str]:
    """Name -> kind of every suite: drawn from the pool, held out of the tasks, declared."""
    drawn = dict.fromkeys(file.split.names if pool else (), "perplexity")
    held = {HELD_OUT: "tasks"} if tasks else {}
    return {**drawn, **held, **{suite.name: suite.kind for suite in file.suites}}


def resolved(
    file: File, conditions: Sequence[Condition], kinds: Mapping[str, str], primary: str, place: str
) -> tuple[Contrast, ...]:
    """The declared contrasts; without any, those of a campaign on tasks: each against the first and the base.

    Raises:
        UserError: a contrast names a condition, suite or metric that does not exist, or is declared twice.
    """
    names = [condition.name for condition in conditions]
    declared = file.contrasts or _by_default(conditions, kinds)
    contrasts = tuple(_contrast(contrast, file, names, kinds, primary, place) for contrast in declared)
    seen: set[str] = set()
    for contrast in contrasts:
        if contrast.name in seen:
            raise UserError(f"{place}: [[contrasts]] {contrast.name!r} is declared twice")
        seen.add(contrast.name)
        _check_snapshot(contrast, conditions, place)
    return contrasts


def _check_snapshot(contrast: Contrast, conditions: Sequence[Condition], place: str) -> None:
    """Refuse a snapshot that a run of known length never makes: at its end the suite itself is examined."""
    for suite in (contrast.suite, contrast.minus_suite or ""):
        name, _, step = suite.partition("@")
        for one in conditions:
            steps = one.training.max_steps
            named = one.name in (contrast.candidate, contrast.baseline)
            if step and named and steps is not None and int(step) >= steps:
                raise UserError(
                    f"{place}: [[contrasts]] suite {suite!r}: {one.name} ends after {steps} steps; expected an "
                    f"earlier step, or {name!r} for the end"
                )


def _by_default(conditions: Sequence[Condition], kinds: Mapping[str, str]) -> tuple[Contrast, ...]:
    if HELD_OUT not in kinds or not any(condition.rl for condition in conditions):
        return ()
    first, *others = [condition.name for condition in conditions]
    pairs = [*((other, first) for other in others), *((name, BASE) for name in (first, *others))]
    return tuple(Contrast(candidate=a, baseline=b, suite=HELD_OUT, family="default") for a, b in pairs)


def _contrast(
    contrast: Contrast, file: File, names: Sequence[str], kinds: Mapping[str, str], primary: str, place: str
) -> Contrast:
    for role in ("candidate", "baseline"):
        name = getattr(contrast, role)
        if name not in (*names, BASE):
            raise UserError(f"{place}: [[contrasts]] {role} {name!r} is no condition{nearest(name, [*names, BASE])}")
    if contrast.candidate == contrast.baseline:
        raise UserError(f"{place}: [[contrasts]] {contrast.candidate!r} is compared with itself")
    suites = [suite for suite in (contrast.suite, contrast.minus_suite) if suite is not None]
    found = [_kind(suite, contrast, file, kinds, place) for suite in suites]
    if contrast.suite == contrast.minus_suite:
        raise UserError(f"{place}: [[contrasts]] suite {contrast.suite!r} minus itself is nothing")
    if len(set(found)) > 1:
        raise UserError(
            f"{place}: [[contrasts]] {contrast.suite!r} is of kind {found[0]} and {contrast.minus_suite!r} of kind "
            f"{found[1]}: they share no metric"
        )
    metric = contrast.metric or (file.campaign.primary_metric or METRICS[found[0]][0])
    where = "[[contrasts]] metric" if contrast.metric else "[campaign] primary_metric"
    _check_metric(metric, where, contrast, found[0], file, place)
    on = f"{contrast.suite} minus {contrast.minus_suite}" if contrast.minus_suite else contrast.suite
    name = contrast.name or f"{contrast.candidate} vs {contrast.baseline} on {on}"
    return contrast.model_copy(update={"name": name, "metric": contrast.metric if metric == primary else metric})


def _kind(suite: str, contrast: Contrast, file: File, kinds: Mapping[str, str], place: str) -> str:
    """Kind of a suite, or of a snapshot `suite@step` of one."""
    if suite in kinds:
        return kinds[suite]
    name, _, step = suite.partition("@")
    every = file.evaluation.every
    if kinds.get(name) == "tasks" and every and step.isdigit() and int(step) and int(step) % every == 0:
        if BASE in (contrast.candidate, contrast.baseline):
            raise UserError(f"{place}: [[contrasts]] suite {suite!r}: the base has no steps; compare on {name!r}")
        return "tasks"
    raise UserError(
        f"{place}: [[contrasts]] suite {suite!r} is not evaluated{nearest(suite, kinds)}; there are {[*kinds]}"
    )


def _check_metric(metric: str, where: str, contrast: Contrast, kind: str, file: File, place: str) -> None:
    if kind == "tasks" and (k := pass_at(metric)) is not None:
        for name in [suite.partition("@")[0] for suite in (contrast.suite, contrast.minus_suite) if suite]:
            samples = _evaluation(name, file).samples
            if k > samples:
                raise UserError(
                    f"{place}: {where} {metric!r} needs {k} samples of every item; suite {name!r}: samples is {samples}"
                )
        return
    if metric not in METRICS[kind]:
        known = [*METRICS[kind], *(["pass@k"] if kind == "tasks" else [])]
        raise UserError(
            f"{place}: {where} {metric!r} is not measured on suites of kind {kind}{nearest(metric, known)}; "
            f"there are {', '.join(known)}"
        )


def _evaluation(suite: str, file: File) -> EvaluationConfig:
    """What is in force for a suite."""
    declared = next((one for one in file.suites if one.name == suite), None)
    return file.evaluation if declared is None else file.evaluation.of(declared)
