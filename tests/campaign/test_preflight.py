"""The check before a campaign: what puts a run into quarantine there is told, whichever step it was."""

from pathlib import Path
from typing import Any

import pytest

from finetrial.campaign.preflight import Check, preflight
from finetrial.campaign.spec import load_spec
from finetrial.generate.decode import NotFinite
from finetrial.train import rollouts


def failed(path: Path, tmp_path: Path, *overrides: str) -> list[Check]:
    found = preflight(load_spec(path, overrides), tmp_path / "logs", lambda _: None)
    return [check for check in found if not check.passed and not check.check.startswith("seeds")]


def breaking(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """The logits of one sampling are not finite."""
    real, calls = rollouts.sample, []

    def sample(*given: Any, **named: Any) -> Any:
        calls.append(0)
        if len(calls) == call:
            raise NotFinite(0)
        return real(*given, **named)

    monkeypatch.setattr(rollouts, "sample", sample)


def test_practice_that_is_not_finite_at_once_fails(
    practice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, call=1)
    (check,) = failed(practice, tmp_path)
    assert check.check == "grpo+none: one step of practice is finite"
    assert "logits are not finite at step 1" in check.detail


def test_practice_that_is_not_finite_later_fails(
    practice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A condition with an auxiliary term is practised for a few steps."""
    breaking(monkeypatch, call=2)
    (check,) = failed(practice, tmp_path, "rl.loss.entropy_coef=0.1")
    assert check.check == "grpo+none: its first 3 steps go through"
    assert "logits are not finite at step 2" in check.detail


def test_sets_whose_measure_tells_nothing_apart_fail(campaign: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def one(text, meta):\n    return 'same'\n")
    sets = f'{{ score = "clusters", clusters = "{tmp_path}/mine.py:one", sampling = {{ max_tokens = 4 }} }}'
    campaign.write_text(campaign.read_text().replace('name = "topq"', f'name = "topq"\nset_diversity = {sets}'))
    (check,) = failed(campaign, tmp_path)
    assert check.check == "topq: its first 3 steps go through"
    assert "whichever completion is left out; it tells nothing apart" in check.detail
