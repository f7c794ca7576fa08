"""The check before a campaign: what puts a run into quarantine there is told, whichever step it was."""

from pathlib import Path
from typing import Any

import pytest

from finetrial.campaign.execute import RunOptions, make_plan, run
from finetrial.campaign.preflight import Check, adapter_bytes, preflight
from finetrial.campaign.spec import load_spec
from finetrial.generate.decode import NotFinite
from finetrial.model.base import load_base
from finetrial.model.peft_format import WEIGHTS, saved_bytes
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


def test_sets_that_have_nothing_to_gain_are_a_warning(campaign: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "SEEN = []\n\ndef own(text, meta):\n    SEEN.append(text)\n    return len(SEEN)\n\n"
        "def fine(text, meta):\n    return 1\n"
    )
    functions = f'clusters = "{tmp_path}/mine.py:own", quality = "{tmp_path}/mine.py:fine"'
    sets = f'{{ score = "clusters", {functions}, sampling = {{ max_tokens = 4 }} }}'
    campaign.write_text(campaign.read_text().replace('name = "topq"', f'name = "topq"\nset_diversity = {sets}'))
    told = {one.check: one for one in preflight(load_spec(campaign), tmp_path / "logs", lambda _: None)}
    check = told["topq: sets of completions can gain diversity"]
    assert check.passed
    assert check.warning
    assert "24 of 24 sets are at the maximum of diversity; at the first step mean diversity 1, mean" in check.detail
    assert told["topq: the term 'set_diversity' has a gradient"].passed
    assert "random: sets of completions can gain diversity" not in told


VARIANTS = """
[[campaign.conditions]]
name = "pissa"
selection = { strategy = "random", n = 12 }
model = { init = "pissa", lora_rank = 3 }

[[campaign.conditions]]
name = "olora"
selection = { strategy = "random", n = 12 }
model = { init = "olora", targets = ["q_proj", "down_proj"] }

[[campaign.conditions]]
name = "dora"
selection = { strategy = "random", n = 12 }
model = { dora = true }

[evaluation]
every = 2
"""


def test_disk_is_reckoned_by_the_bytes_that_are_written(campaign: Path, tmp_path: Path) -> None:
    """The numbers of every adapter file, at its end and at its snapshot, in the store and in the campaign's folder."""
    campaign.write_text(campaign.read_text() + VARIANTS)
    spec = load_spec(campaign)
    options = RunOptions(logs=tmp_path / "logs")
    folder = run(spec, options, lambda _: None)
    _, decided, _ = make_plan(spec, options, lambda _: None)
    base = load_base(spec.model)
    for condition in spec.conditions:
        for place in ("adapter", "snapshots/step-2"):
            file = folder.run(f"{condition.name}_s1") / place / WEIGHTS
            assert numbers(file) == saved_bytes(base.model, condition.model), (condition.name, place)
    files = [*(tmp_path / "logs").rglob(WEIGHTS)]
    assert len(files) == 2 * 2 * 5 * 3
    assert sum(map(numbers, files)) == adapter_bytes(spec, decided, base)


def numbers(file: Path) -> int:
    """Bytes of a file of safetensors behind its header."""
    return file.stat().st_size - 8 - int.from_bytes(file.read_bytes()[:8], "little")
