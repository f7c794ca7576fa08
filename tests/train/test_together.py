"""All that a run may have, in one cohort: an interruption changes no bit of any of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from finetrial.model.config import ModelConfig
from finetrial.train.cohort import train_cohort
from finetrial.train.runs import RunData
from finetrial.train.term_config import AnchorConfig
from tiny import run_data
from train.test_set_diversity import model, varied
from train.test_variants import numbers_of
from train.test_watch import guarded, mixed

STEPS = 9
CLOCKS = ("seconds", "sample_time_s")


def cohort(folder: Path) -> list[RunData]:
    """Plain; anchored, mixed and guarded; DFT with a cut anchor, stopped early; sets by a share; DoRA from PiSSA."""
    wild = {"learning_rate": 0.2, "schedule": "constant", "warmup_ratio": 0.0, "max_grad_norm": 0}
    first = mixed(run_data(folder, "held", 2, **{**wild, "learning_rate": 1.0}), [[0, 0.1], [1, 0.6]], "tokens")
    second = run_data(folder, "cut", 3, token_weighting="dft", **wild)
    held = AnchorConfig(coef=0.5, kind="js", start_step=1, warmup_steps=3, decay_steps=3, final_coef=0.1)
    cut = AnchorConfig(coef=0.2, top_k=7, tail_tokens=2, cap=0.5)
    dora = ModelConfig(lora_rank=3, dora=True, init="pissa")
    return [
        run_data(folder, "plain", 1, save_every=3),
        replace(guarded(first), anchor=held),
        replace(guarded(second, patience=1, threshold=9.0), anchor=cut),
        varied(folder, "varied", 4, gradient_share=0.3, every_n_steps=2),
        run_data(folder, "dora", 5, model=dora, lora_plus_ratio=4.0, weight_decay=0.1),
    ]


def told(runs: list[RunData], results: list) -> list:
    rows = [[json.loads(line) for line in run.metrics.read_text().splitlines()] for run in runs]
    steps = [[{key: value for key, value in row.items() if key not in CLOCKS} for row in mine] for mine in rows]
    kept = [numbers_of(result.adapter).tolist() for result in results]
    last = [None if result.last is None else numbers_of(result.last).tolist() for result in results]
    sets = (runs[3].folder / "emergence" / "generations.jsonl").read_text()
    return [steps, kept, last, sets, [result.ledger for result in results]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list:
    folder = tmp_path_factory.mktemp("whole")
    runs = cohort(folder)
    results = train_cohort(model(), runs, STEPS, folder / "checkpoint")
    assert [result.status for result in results] == ["done"] * 5
    assert results[1].last is not None
    assert results[2].ledger.stopped_at == 2
    return told(runs, results)


@pytest.mark.parametrize("cuts", [(4,), (7, 8), (3, 5)])
def test_an_interrupted_cohort_goes_on_bit_for_bit(whole: list, tmp_path: Path, cuts: tuple[int, ...]) -> None:
    class Gone:
        def __init__(self, at: int) -> None:
            self.at = at

        def update(self, done: int, _: float | None) -> None:
            if done == self.at:
                raise OSError("the machine is gone")

    runs = cohort(tmp_path)
    for cut in cuts:
        with pytest.raises(OSError, match="the machine is gone"):
            train_cohort(model(), runs, STEPS, tmp_path / "checkpoint", Gone(cut))  # type: ignore[arg-type]
    results = train_cohort(model(), runs, STEPS, tmp_path / "checkpoint")
    assert told(runs, results) == whole
