"""Looks of a campaign: what they decide, whom they stop, and that nothing shows or changes between them."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from finetrial.analyze.judge import judge
from finetrial.analyze.table import OutcomeTable
from finetrial.campaign import interim
from finetrial.campaign.describe import progress
from finetrial.campaign.execute import RunOptions, make_plan, run
from finetrial.campaign.folder import Folder
from finetrial.campaign.measures import likelihood
from finetrial.campaign.spec import Spec, load_spec, resolve
from finetrial.errors import UserError
from finetrial.records import Outcome
from finetrial.report.build import build, gather
from finetrial.report.facts import twin

SEEDS = tuple(range(1, 9))
GAINS = {"a": 1.0, "b": 1.02, "c": 3.0, "idle": 1.0}
"""True improvement over the base; `c` is far better than all others."""


def spec(looks: dict[str, Any] | None = None, contrasts: Sequence[tuple[str, str]] = (), **analysis: Any) -> Spec:
    pairs = contrasts or [("c", "a"), ("b", "a")]
    return resolve(
        {
            "campaign": {
                "name": "simulated",
                "primary_metric": "nll",
                "seeds": list(SEEDS),
                "conditions": [{"name": name} for name in GAINS],
            },
            "looks": {"seeds": [4, 8]} if looks is None else looks,
            "analysis": analysis,
            "contrasts": [{"candidate": c, "baseline": b, "suite": "gold", "better": "higher"} for c, b in pairs],
        }
    )


def table(n_seeds: int, noise: float = 0.1, gains: dict[str, float] = GAINS, tilt: float = 0.0) -> OutcomeTable:
    """Outcomes of the base and of the first seeds of every condition; a seed's numbers do not depend on n_seeds.

    With `tilt`, `idle` is better on every other item and worse on the rest, by that much.
    """
    rows = [Outcome("base", None, "gold", f"q{i}", 0, "nll", 0.0) for i in range(6)]
    for k, (condition, gain) in enumerate(gains.items()):
        for seed in SEEDS[:n_seeds]:
            rng = np.random.default_rng([k, seed])
            level = gain + noise * rng.standard_normal()
            values = level + 0.3 * noise * rng.standard_normal(6)
            values += tilt * np.array([1, -1] * 3) * (condition == "idle")
            rows += [Outcome(condition, seed, "gold", f"q{i}", 0, "nll", float(v)) for i, v in enumerate(values)]
    return OutcomeTable.read(rows)


def taken_all(plan: Spec, **world: Any) -> list[interim.Look]:
    taken: list[interim.Look] = []
    for n_seeds in interim.sizes(plan):
        taken.append(interim.take(plan, n_seeds, table(n_seeds, **world), taken, ()))
    return taken


def test_a_decided_contrast_keeps_the_finding_of_its_look() -> None:
    plan = spec()
    first, last = taken_all(plan)
    level = interim.schedule_of(plan, "declared").looks[0].level
    assert [finding.contrast for finding in first.findings] == ["c vs a on gold"]
    (decided,) = first.findings
    alone = judge(table(4), plan.contrasts, plan.analysis.model_copy(update={"alpha": level}), primary_metric="nll")[0]
    assert (decided.ci_adjusted, decided.p_adjusted, decided.n_seeds) == (alone.ci_adjusted, alone.p_adjusted, (4, 4))
    assert decided.reason.startswith("decided at 4 seeds at level 0.0031")
    assert first.levels == {"declared": level}
    assert [finding.contrast for finding in last.findings] == ["b vs a on gold"]
    assert last.findings[0].n_seeds == (8, 8)
    assert "% interval" in last.findings[0].reason  # the rejected one has left Holm's family: the full level
    assert last.findings[0].family_size == 2
    assert last.findings[0].correction.startswith("Holm, alpha spent over 2 looks")


def test_a_condition_goes_on_while_an_undecided_contrast_names_it() -> None:
    first, last = taken_all(spec())
    assert set(first.stopped) == {"c"}  # a is the baseline of the undecided one; no contrast names idle
    assert "c vs a on gold CONFIRMED" in first.stopped["c"]
    assert last.stopped == {}


def test_everything_stops_when_everything_is_decided() -> None:
    plan = spec(contrasts=[("c", "a"), ("c", "b")])
    (first,) = [interim.take(plan, 4, table(4), (), ())]
    assert set(first.stopped) == {"a", "b", "c"}
    assert interim.undecided(plan, [first]) == []


def test_no_look_is_taken_where_none_is_planned() -> None:
    with pytest.raises(UserError, match="no look is planned at 5 seeds; looks are at 4, 8"):
        interim.take(spec(), 5, table(5), (), ())


def test_a_failed_check_ends_the_campaign_as_invalid() -> None:
    first = interim.take(spec(), 4, table(4), (), ["the adapters are twins"])
    assert {finding.verdict for finding in first.findings} == {"INVALID"}
    assert set(first.stopped) == {"a", "b", "c"}


def test_futile_contrasts_are_given_up_and_still_count_in_their_family() -> None:
    """Every run says that `idle` is worse, but items disagree so much that no interval excludes the margin."""
    plan = spec({"seeds": [7, 8], "futility": True, "span": 0.9}, [("b", "a"), ("idle", "a")], margin=0.4)
    gains = {"a": 1.0, "b": 1.4, "c": 3.0, "idle": 0.27}
    first, last = taken_all(plan, noise=0.04, gains=gains, tilt=1.5)
    given_up = {finding.contrast: finding for finding in first.findings}
    assert set(given_up) == {"idle vs a on gold"}
    assert given_up["idle vs a on gold"].verdict == "INCONCLUSIVE"
    assert "futile" in given_up["idle vs a on gold"].reason
    assert set(first.stopped) == {"idle"}
    assert "over a family of 2" in last.findings[0].reason


def test_a_difference_beyond_the_declared_span_makes_no_bet() -> None:
    plan = spec({"seeds": [7, 8], "futility": True, "span": 0.5}, [("idle", "a")], margin=0.4)
    outcomes = table(7, noise=0.04, gains={"a": 1.0, "idle": 0.27}, tilt=1.5)
    assert interim.take(plan, 7, outcomes, (), ()).findings == ()


def test_holm_over_looks_shares_alpha_among_the_contrasts() -> None:
    """Crossing at any look, at each step of Holm: at most alpha / r for r contrasts left (simulated p-values)."""
    rng = np.random.default_rng(8)
    trials, r_of = 200_000, (1, 2, 3)
    levels = [
        look.level
        for look in interim.schedule_of(spec(contrasts=[("c", "a"), ("b", "a"), ("idle", "a")]), "declared").looks
    ]
    difference = rng.standard_normal((trials, 8))
    p = np.stack([np.asarray(stats.ttest_1samp(difference[:, :n], 0, axis=1))[1] for n in (4, 8)], axis=1)
    for r in r_of:
        crossed = (p <= np.array(levels) / r).any(1).mean()
        error = np.sqrt(0.05 / r / trials)
        assert crossed <= 0.05 / r + 3 * error
    assert levels[0] < levels[1] < 0.05


def test_looks_survive_the_manifest() -> None:
    plan = spec()
    entry = json.loads(json.dumps(taken_all(plan)[0].entry(SEEDS, {"runs": 4})))
    assert entry["seeds"] == [1, 2, 3, 4]
    assert entry["findings"][0]["verdict"] == "CONFIRMED"
    manifest = {"spec": plan.model_dump(mode="json"), "looks": {"planned": [4, 8], "taken": []}}
    assert interim.next_look(manifest) == "next look at 4 of 8 seeds"
    manifest["looks"]["taken"].append(entry)
    assert interim.next_look(manifest) == "next look at 8 of 8 seeds"
    assert interim.next_look({"spec": plan.model_dump(mode="json")}) is None


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"looks": {"seeds": [2, 8]}}, r"\[looks\] looks at 2, 8 of 8 seeds: .*the first at least 3"),
        ({"looks": {"seeds": [4, 6]}}, "the last all 8"),
        ({"looks": {"fractions": [0.5, 0.5, 1.0]}}, "expected ascending numbers"),
        ({"looks": {}}, "give fractions or seeds, one of them"),
        ({"looks": {"seedz": [4, 8]}}, r"unknown key 'seedz' \(did you mean 'seeds'\?\)"),
        ({"looks": {"seeds": [4, 8]}, "analysis": {"correction": "dunnett"}}, "expected 'holm' or 'none'"),
        ({"looks": {"seeds": [4, 8], "futility": True}}, "nll has no known range; give span"),
        ({"looks": {"seeds": [4, 8]}, "contrasts": []}, "there is nothing to decide at a look"),
    ],
)
def test_looks_that_decide_nothing_are_refused(tables: dict[str, Any], message: str) -> None:
    raw = {
        "campaign": {
            "primary_metric": "nll",
            "seeds": list(SEEDS),
            "conditions": [{"name": "a"}, {"name": "b"}],
        },
        "contrasts": [{"candidate": "a", "baseline": "b", "suite": "gold", "better": "higher"}],
    }
    with pytest.raises(UserError, match=message):
        resolve({**raw, **tables})


LOOKS = """
[looks]
seeds = [3, 4]

[analysis]
correction = "holm"

[[contrasts]]
name = "trained"
candidate = "fast"
baseline = "idle"
suite = "random"

[[contrasts]]
name = "selected"
candidate = "topq"
baseline = "random"
suite = "gold"

[[campaign.conditions]]
name = "fast"
selection = { strategy = "random", n = 12 }
training = { learning_rate = 0.02, max_steps = 12 }

[[campaign.conditions]]
name = "idle"
selection = { strategy = "random", n = 12 }
training = { learning_rate = 1e-6 }
"""


@pytest.fixture
def looked(campaign: Path) -> Path:
    """The tiny campaign with four seeds, two looks, and two further conditions that differ beyond doubt."""
    text = campaign.read_text().replace("seeds = [1, 2, 3]", "seeds = [1, 2, 3, 4]")
    campaign.write_text(text[: text.index("[[contrasts]]")] + LOOKS)
    return campaign


def launch(path: Path, logs: Path, *overrides: str, said: list[str] | None = None) -> Folder:
    return run(load_spec(path, overrides), RunOptions(logs=logs), (said if said is not None else []).append)


def finetrial(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "finetrial", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def statuses(folder: Folder) -> dict[str, str]:
    manifest = folder.manifest()
    assert manifest is not None
    return {f"{entry['condition']}_s{entry['seed']}": entry["status"] for entry in manifest["runs"]}


def test_a_campaign_stops_what_is_decided_and_says_what_it_saved(looked: Path, tmp_path: Path) -> None:
    said: list[str] = []
    folder = launch(looked, tmp_path / "logs", said=said)
    manifest = folder.manifest()
    assert manifest is not None
    first, last = manifest["looks"]["taken"]
    assert [finding["contrast"] for finding in first["findings"]] == ["trained"], said
    assert [finding["contrast"] for finding in last["findings"]] == ["selected"]
    assert {name for name, status in statuses(folder).items() if status == "stopped"} == {"fast_s4", "idle_s4"}
    assert not (folder.path / "runs" / "fast_s4").exists()
    assert first["saved"]["runs"] == 2
    assert first["saved"]["steps"] == 12 + 3
    assert first["saved"]["tokens"] > 0
    assert first["saved"]["seconds"] > 0
    findings = {finding.contrast: finding for finding in gather(folder.path).findings}
    assert (findings["trained"].verdict, findings["trained"].n_seeds) == ("CONFIRMED", (3, 3))
    assert findings["selected"].n_seeds == (4, 4)
    assert json.loads(json.dumps(asdict(findings["trained"]))) == first["findings"][0]
    report = build(folder.path)
    shown = report.html.read_text()
    assert "decided at 3 seeds" in shown
    assert "Planned looks" in shown
    assert json.loads(report.json.read_text())["looks"]["taken"][0]["saved"]["runs"] == 2
    state = progress(folder)
    assert state["matrix"]["fast"]["4"] == "stopped"
    assert state["next_look"] is None

    _, decided, _ = make_plan(load_spec(looked), RunOptions(logs=tmp_path / "logs"), lambda _: None)
    assert {run.name for run in decided.runs if run.decision == "STOPPED"} == {"fast_s4", "idle_s4"}
    assert decided.pending == ()

    before = (folder.path / "outcomes.parquet").read_bytes()
    again = launch(looked, tmp_path / "logs").manifest()
    assert again is not None
    assert again["looks"]["taken"] == [first | {"saved": again["looks"]["taken"][0]["saved"]}, last]
    assert (folder.path / "outcomes.parquet").read_bytes() == before
    with pytest.raises(UserError, match="changing looks afterwards would break the error rate"):
        launch(looked, tmp_path / "logs", "looks.seeds=[4]")
    with pytest.raises(UserError, match="changing contrasts afterwards"):
        launch(looked, tmp_path / "logs", "contrasts.selected.margin=0.001")
    looked.write_text(looked.read_text().replace("[looks]\nseeds = [3, 4]\n", ""))
    with pytest.raises(UserError, match="changing looks afterwards"):
        launch(looked, tmp_path / "logs")


def test_nothing_shows_between_looks_and_a_killed_campaign_ends_the_same(
    looked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCut(Exception):
        pass

    whole = launch(looked, tmp_path / "whole")
    real = likelihood.perplexity
    calls = 0

    def cut(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fatal:
            raise PowerCut
        return real(*arguments, **options)

    monkeypatch.setattr(likelihood, "perplexity", cut)
    fatal = 1  # everything of the first look is trained, nothing measured
    with pytest.raises(PowerCut):
        launch(looked, tmp_path / "cut")
    folder = Folder(tmp_path / "cut", "tiny")
    report = gather(folder.path)
    assert (report.findings, report.cells) == ((), ())
    assert set(report.unjudged) == {"trained", "selected"}
    assert progress(folder)["next_look"] == "next look at 3 of 4 seeds"
    assert "Nothing has been decided yet: next look at 3 of 4 seeds" in build(folder.path).html.read_text()
    told = twin(report)
    assert told["contrasts"] == []
    assert told["looks"]["next"] == "next look at 3 of 4 seeds"

    fatal = calls + 3  # one call per suite of the first look, then the first of the second look
    with pytest.raises(PowerCut):
        launch(looked, tmp_path / "cut")
    assert [finding.contrast for finding in gather(folder.path).findings] == ["trained"]
    assert progress(folder)["next_look"] == "next look at 4 of 4 seeds"
    page = build(folder.path).html.read_text()
    assert "next look at 4 of 4 seeds" in page
    verdict = finetrial("verdict", str(folder.path), "--json")
    shown = json.loads(verdict.stdout)
    assert verdict.returncode == 20
    assert ([c["contrast"] for c in shown["contrasts"]], shown["not_evaluated_yet"]) == (["trained"], ["selected"])
    compared = finetrial("compare", str(folder.path))
    assert compared.returncode == 2
    assert "nothing is compared between planned looks; next look at 4 of 4 seeds" in compared.stderr
    assert {seed.seed for cell in gather(folder.path).cells for seed in cell.seeds} == {None, 1, 2, 3}

    fatal = 0
    launch(looked, tmp_path / "cut")
    one, two = gather(whole.path), gather(folder.path)
    assert one.findings == two.findings
    assert statuses(whole) == statuses(folder)
    assert (whole.path / "outcomes.parquet").read_bytes() == (folder.path / "outcomes.parquet").read_bytes()


def test_looks_change_no_key(looked: Path, tmp_path: Path) -> None:
    options = RunOptions(logs=tmp_path / "logs")
    _, decided, _ = make_plan(load_spec(looked), options, lambda _: None)
    plain = looked.with_name("plain.toml")
    plain.write_text(looked.read_text().replace("[looks]\nseeds = [3, 4]\n", "").replace('"tiny"', '"plain"'))
    _, without, _ = make_plan(load_spec(plain), options, lambda _: None)
    assert [run.key for run in decided.runs] == [run.key for run in without.runs]


def test_labels_of_people_may_come_after_a_look() -> None:
    one: dict[str, Any] = {
        "campaign": "c", "runs": [{"train_key": "k"}], "suites": {}, "seeds": [1, 2, 3],
        "spec": {"looks": {}, "contrasts": [], "analysis": {"alpha": 0.05, "labels": []}},
        "looks": {"taken": [{"n_seeds": 3}]},
    }  # fmt: skip
    labelled = {**one, "spec": {**one["spec"], "analysis": {"alpha": 0.05, "labels": [{"suite": "s", "source": "f"}]}}}
    assert interim.carried(one, labelled) == one["looks"]["taken"]
    with pytest.raises(UserError, match="changing analysis afterwards"):
        interim.carried(one, {**one, "spec": {**one["spec"], "analysis": {"alpha": 0.01, "labels": []}}})
