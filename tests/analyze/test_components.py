"""Variance components and what is known of metrics."""

import numpy as np
import pytest

from finetrial import seeds
from finetrial.analyze.components import components
from finetrial.analyze.metrics import direction, known, pass_at
from finetrial.analyze.table import OutcomeTable
from finetrial.errors import UserError
from finetrial.records import Outcome

TRUE = {"seed": 0.04, "item": 1.0, "recipe_item": 0.5, "interaction": 0.09 + 0.25 / 4, "sampling": 0.25}


def simulated(n_seeds: int, items: int, samples: int, seed_sd: float = 0.2) -> OutcomeTable:
    rng = seeds.stream(n_seeds, "components", items)
    item = rng.normal(size=items)
    rows = []
    for condition in "ab":
        own = rng.normal(size=items) * np.sqrt(0.5 / 2)
        for s in range(n_seeds):
            cell = item + own + rng.normal() * seed_sd + rng.normal(size=items) * 0.3
            values = cell[:, None] + rng.normal(size=(items, samples)) * 0.5
            rows += [
                Outcome(condition, s, "t", f"i{i:04d}", k, "score", float(v)) for (i, k), v in np.ndenumerate(values)
            ]
    return OutcomeTable.read(rows)


def test_components_recover_what_was_simulated() -> None:
    table = simulated(60, 200, 4)
    a, b = (table.dense(c, "t", "score") for c in "ab")
    found = components(a, b, a.values_SI, b.values_SI)
    for name, value in found.as_dict().items():
        assert value == pytest.approx(TRUE[name], rel=0.3), name
    assert set(found.as_dict()) == set(TRUE)
    assert found.truncated == ()


def test_a_negative_estimate_is_shown_as_zero_and_named() -> None:
    table = simulated(3, 8, 1, seed_sd=0.0)
    dense = table.dense("a", "t", "score")
    flat = dense.values_SI - dense.values_SI.mean(1, keepdims=True)
    found = components(dense, dense, flat, flat)
    assert found.seed == 0.0
    assert "seed" in found.truncated
    assert found.sampling is None
    assert "sampling" not in found.as_dict()


def test_missing_cells_hardly_move_the_components() -> None:
    table = simulated(40, 100, 1)
    a, b = (table.dense(c, "t", "score") for c in "ab")
    whole = components(a, b, a.values_SI, b.values_SI).as_dict()
    drop = seeds.stream(0, "drop").random((2, *a.values_SI.shape)) < 0.2
    part = components(a, b, np.where(drop[0], np.nan, a.values_SI), np.where(drop[1], np.nan, b.values_SI)).as_dict()
    for name in ("seed", "item", "interaction"):
        assert part[name] == pytest.approx(whole[name], rel=0.25), name


def test_a_frozen_base_adds_no_seed_component() -> None:
    rows = [Outcome("a", s, "t", f"i{i}", 0, "score", float(s + i)) for s in (0, 2) for i in range(5)]
    rows += [Outcome("base", None, "t", f"i{i}", 0, "score", float(i)) for i in range(5)]
    table = OutcomeTable.read(rows)
    a, b = table.dense("a", "t", "score"), table.dense("base", "t", "score")
    assert components(a, b, a.values_SI, b.values_SI).seed == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("metric", "better"),
    [("nll", "lower"), ("bits_per_byte", "lower"), ("perplexity", "lower"), ("correct", "higher"), ("reward", "higher"),
     ("pass@10", "higher"), ("accuracy", "higher"), ("score", "higher"), ("distinct_2", "higher"),
     ("ead_1", "higher"), ("self_bleu_4", "lower"), ("vendi", "higher"), ("semantic_diversity", "higher"),
     ("type_token_ratio", "higher"), ("duplicate_share", "lower"),
     ("degenerate", "lower"), ("kl_to_base", "lower"), ("rouge_l", "higher"), ("distinct_2_matched", "higher")],
)  # fmt: skip
def test_directions(metric: str, better: str) -> None:
    assert direction(metric) == better
    assert direction(metric, "lower") == "lower"


def test_unknown_metrics_ask_for_their_direction() -> None:
    with pytest.raises(UserError, match=r"metric 'acuracy'.*did you mean 'accuracy'"):
        direction("acuracy")
    assert known("sparkle") is None
    assert pass_at("pass@0") is None
    assert pass_at("pass@16") == 16
