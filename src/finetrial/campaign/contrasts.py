"""`[[contrasts]]`: names, suites and metrics checked before anything is trained, and what is compared by default."""

from collections.abc import Mapping, Sequence

from finetrial.analyze.contrast import Contrast, Tradeoff
from finetrial.analyze.metrics import pass_at
from finetrial.campaign.conditions import Condition
from finetrial.campaign.settings import BASE, HELD_OUT, INSTRUMENTS, EvaluationConfig, File
from finetrial.errors import UserError, nearest
from finetrial.evaluate.reward_config import RewardModelConfig
from finetrial.grade.config import GraderConfig
from finetrial.train.stopping_config import WATCHED, StoppingConfig

METRICS = {
    "perplexity": ("nll", "log_perplexity", "bits_per_byte", "kl_to_base", "kl_from_base"),
    "tasks": ("correct", "completion_tokens", "correct_relaxed"),
    "choice": ("acc", "acc_norm", "gold_logp", "acc_letter", "gold_logp_letter"),
    "conversation": ("score", "completion_tokens"),
    "lm_eval": ("acc", "acc_norm", "exact_match"),
}
"""What suites of each kind measure, the first by default. `pass@k` is derived from `correct`; `correct_relaxed` is
there for choices, and suites of tasks with several samples measure texts too (`EvaluationConfig.metrics`). Graders of
other kinds give other metrics (`graded_as`), and a task of lm-evaluation-harness gives those of its own."""


def graded_as(kind: str, grader: GraderConfig | RewardModelConfig | None) -> tuple[str, ...]:
    """Names of the grades of a suite of kind `tasks` or `conversation`: what its grader gives, in its own unit.

    `correct` is a share from 0 to 1. A reward model's `reward` has a unit of its own, and its map's `score` that of the
    map; of conversations a judge's `score` lies on the judge's scale.
    """
    if isinstance(grader, RewardModelConfig):
        return ("reward", "score") if grader.map else ("reward",)
    return ("score",) if kind == "conversation" and grader is not None and grader.kind == "judge" else ("correct",)


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
    for tradeoff in file.analysis.tradeoffs:
        _check_tradeoff(tradeoff, file, [*names, BASE], kinds, place)
    _check_labels(file, contrasts, kinds, primary, place)
    _check_watched(conditions, contrasts, kinds, file, place)
    seen: set[str] = set()
    for contrast in contrasts:
        if contrast.name in seen:
            raise UserError(f"{place}: [[contrasts]] {contrast.name!r} is declared twice")
        seen.add(contrast.name)
        _check_snapshot(contrast, conditions, place)
    return contrasts


def _check_tradeoff(tradeoff: Tradeoff, file: File, names: Sequence[str], kinds: Mapping[str, str], place: str) -> None:
    """Refuse aims on suites or metrics that are not measured."""
    where = f"{place}: [[analysis.tradeoffs]] {tradeoff.name!r}"
    if tradeoff.baseline not in names:
        raise UserError(f"{where}: baseline {tradeoff.baseline!r} is no condition{nearest(tradeoff.baseline, names)}")
    for axis in (tradeoff.x_axis, tradeoff.y_axis):
        for suite in axis.suites:
            if suite not in kinds:
                raise UserError(
                    f"{where}: suite {suite!r} is not evaluated{nearest(suite, kinds)}; there are {[*kinds]}"
                )
            _check_metric(axis.metric, where, [suite], kinds[suite], file)


def _check_labels(
    file: File, contrasts: Sequence[Contrast], kinds: Mapping[str, str], primary: str, place: str
) -> None:
    """Refuse labels of a suite that no judge grades, or that no contrast is on."""
    suites = [table.suite for table in file.analysis.labels]
    for suite in suites:
        where = f"{place}: [[analysis.labels]] suite {suite!r}"
        if suite not in kinds:
            raise UserError(f"{where} is not evaluated{nearest(suite, kinds)}; there are {[*kinds]}")
        if suites.count(suite) > 1:
            raise UserError(f"{where} stands there twice; put its labels into one file")
        declared = next((one.grader for one in file.suites if one.name == suite), None)
        grader = file.tasks.grader if suite == HELD_OUT else declared
        if grader is None or grader.kind != "judge":
            raise UserError(f"{where}: people's labels correct a judge; expected a suite with grader kind 'judge'")
        metric = graded_as(kinds[suite], grader)[0]
        if not any((one.suite, one.minus_suite, one.metric or primary) == (suite, None, metric) for one in contrasts):
            raise UserError(f"{where}: no contrast is on it under {metric!r}, so there is nothing to correct")


def _check_watched(
    conditions: Sequence[Condition], contrasts: Sequence[Contrast], kinds: Mapping[str, str], file: File, place: str
) -> None:
    """Refuse a guard that watches what cannot be watched, and contrasts and trade-offs on what one watches.

    The watched items choose when a run stops and which of its adapters is kept, so a run's values on them are better
    than they would be on others like them.
    """
    for one in conditions:
        if one.stopping is None:
            continue
        suite, where = one.stopping.suite, f"{place}: [stopping] of {one.name}"
        if suite not in kinds:
            raise UserError(f"{where}: suite {suite!r} is not evaluated{nearest(suite, kinds)}; there are {[*kinds]}")
        _check_watchable(one.stopping, kinds, file, where)
        for contrast in contrasts:
            if suite in {(on or "").partition("@")[0] for on in (contrast.suite, contrast.minus_suite)}:
                raise UserError(
                    f"{place}: [[contrasts]] {contrast.name!r} is on suite {suite!r}, which [stopping] of {one.name} "
                    "watches: its items choose that run's adapter, so its values there are too good; compare on "
                    "another suite, or watch another"
                )
        for tradeoff in file.analysis.tradeoffs:
            if suite in (*tradeoff.x_axis.suites, *tradeoff.y_axis.suites):
                raise UserError(
                    f"{place}: [[analysis.tradeoffs]] {tradeoff.name!r} is on suite {suite!r}, which [stopping] of "
                    f"{one.name} watches: its items choose that run's adapter, so it stands too well there; take "
                    "another suite, or watch another"
                )


def _check_watchable(stopping: StoppingConfig, kinds: Mapping[str, str], file: File, where: str) -> None:
    """Refuse what a guard cannot measure: suites of other kinds, and metrics that the suite does not have."""
    suite, kind = stopping.suite, kinds[stopping.suite]
    if kind not in WATCHED:
        there = [name for name, of in kinds.items() if of in WATCHED]
        raise UserError(
            f"{where}: suite {suite!r} of kind {kind} cannot be watched: inside the training loop suites of kind "
            f"{', '.join(WATCHED)} are measured; "
            + (f"expected one of {', '.join(there)}" if there else "declare one in [[suites]] or [split]")
        )
    known, metric = _measured(suite, kind, file), watched_metric(stopping, kind)
    metrics = tuple(name for name in known if name not in ("reward", "score"))
    if kind == "tasks" and "correct" in metrics and pass_at(metric) is not None:
        _check_metric(metric, f"{where}: metric", [suite], kind, file)
    elif metric not in metrics:
        listed = [*metrics, "pass@k"] if "correct" in metrics else metrics
        unset = "" if stopping.metric else " (the default)"
        texts = "; texts are measured where samples is above 1 or diversity = true, by embeddings with semantic = true"
        how = texts if kind == "tasks" and metric in INSTRUMENTS else ""
        raise UserError(
            f"{where}: metric {metric!r}{unset} cannot be watched on suites of kind {kind} like {suite!r}"
            f"{nearest(metric, listed)}; there are {', '.join(listed)}{how}"
        )


def watched_metric(stopping: StoppingConfig, kind: str) -> str:
    """What a guard measures on a suite of this kind."""
    return stopping.metric or WATCHED[kind][0]


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
    bare = [suite.partition("@")[0] for suite in suites]
    metric = contrast.metric or file.campaign.primary_metric or _measured(bare[0], found[0], file)[0]
    where = "[[contrasts]] metric" if contrast.metric else "[campaign] primary_metric"
    _check_metric(metric, f"{place}: {where}", bare, found[0], file)
    on = f"{contrast.suite} minus {contrast.minus_suite}" if contrast.minus_suite else contrast.suite
    name = contrast.name or f"{contrast.candidate} vs {contrast.baseline} on {on}"
    return contrast.model_copy(update={"name": name, "metric": contrast.metric if metric == primary else metric})


def _kind(suite: str, contrast: Contrast, file: File, kinds: Mapping[str, str], place: str) -> str:
    """Kind of a suite, or of a snapshot `suite@step` of one."""
    if suite in kinds:
        return kinds[suite]
    name, _, step = suite.partition("@")
    every = file.evaluation.every
    if name in kinds and every and step.isdigit() and int(step) and int(step) % every == 0:
        if BASE in (contrast.candidate, contrast.baseline):
            raise UserError(f"{place}: [[contrasts]] suite {suite!r}: the base has no steps; compare on {name!r}")
        return kinds[name]
    raise UserError(
        f"{place}: [[contrasts]] suite {suite!r} is not evaluated{nearest(suite, kinds)}; there are {[*kinds]}"
    )


def _check_metric(metric: str, where: str, suites: Sequence[str], kind: str, file: File) -> None:
    """Refuse a metric that one of these suites of one kind does not measure.

    What a task of the harness measures is not known before it is loaded; `prepare` asks for it.
    """
    if kind == "lm_eval":
        return
    for name in suites:
        known = _measured(name, kind, file)
        k = pass_at(metric) if kind == "tasks" and "correct" in known else None
        if k is not None:
            samples = _evaluation(name, file).samples
            if k > samples:
                raise UserError(
                    f"{where} {metric!r} needs {k} samples of every item; suite {name!r}: samples is {samples}"
                )
        elif metric not in known:
            listed = [*known, "pass@k"] if kind == "tasks" and "correct" in known else [*known]
            raise UserError(
                f"{where} {metric!r} is not measured on suites of kind {kind}{nearest(metric, listed)}; "
                f"there are {', '.join(listed)}"
            )


def _measured(suite: str, kind: str, file: File) -> tuple[str, ...]:
    """What is measured on a suite, the first by default."""
    if kind not in ("tasks", "conversation"):
        return METRICS[kind]
    declared = next((one for one in file.suites if one.name == suite), None)
    grades = graded_as(kind, declared.grader if declared is not None else None)
    texts = _evaluation(suite, file).metrics if kind == "tasks" else ()
    relaxed = ("correct_relaxed",) if kind == "tasks" and grades == ("correct",) else ()
    return (*grades, "completion_tokens", *relaxed, *texts)


def _evaluation(suite: str, file: File) -> EvaluationConfig:
    """What is in force for a suite."""
    declared = next((one for one in file.suites if one.name == suite), None)
    return file.evaluation if declared is None else file.evaluation.of(declared)
