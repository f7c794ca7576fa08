"""What is known of each metric: which direction is better, its unit, and its range where it has one."""

import re
from dataclasses import dataclass
from typing import Literal

from finetrial.errors import UserError, nearest

Direction = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """Direction, unit and range of a metric. A bound of None means that values have no limit on that side."""

    better: Direction
    unit: str
    low: float | None = None
    high: float | None = None


_PROPORTION = Metric("higher", "proportion", 0.0, 1.0)

METRICS: dict[str, Metric] = {
    "nll": Metric("lower", "nats per token", 0.0),
    "loss": Metric("lower", "nats per token", 0.0),
    "log_perplexity": Metric("lower", "nats per token", 0.0),
    "bits_per_byte": Metric("lower", "bits per byte", 0.0),
    "kl_to_base": Metric("lower", "nats per token", 0.0),
    "kl_from_base": Metric("lower", "nats per token", 0.0),
    "completion_tokens": Metric("lower", "tokens", 0.0),
    "perplexity": Metric("lower", "perplexity", 1.0),
    "brier": Metric("lower", "squared error", 0.0),
    "self_bleu": Metric("lower", "BLEU", 0.0, 1.0),
    "duplicate_share": Metric("lower", "proportion", 0.0, 1.0),
    "degenerate": Metric("lower", "proportion", 0.0, 1.0),
    "violation": Metric("lower", "proportion", 0.0, 1.0),
    "correct": _PROPORTION,
    "correct_rate": _PROPORTION,
    "accuracy": _PROPORTION,
    "acc": _PROPORTION,
    "acc_norm": _PROPORTION,
    "acc_letter": _PROPORTION,
    "acc_bytes": _PROPORTION,
    "acc_mutual_info": _PROPORTION,
    "gold_logp": Metric("higher", "nats", None, 0.0),
    "gold_logp_letter": Metric("higher", "nats", None, 0.0),
    "correct_relaxed": _PROPORTION,
    "exact_match": _PROPORTION,
    "em": _PROPORTION,
    "f1": _PROPORTION,
    "resolved": _PROPORTION,
    "success": _PROPORTION,
    "win_rate": _PROPORTION,
    "distinct": _PROPORTION,
    "type_token_ratio": _PROPORTION,
    "rouge": _PROPORTION,
    "ead": Metric("higher", "ratio to expected", 0.0),
    "vendi": Metric("higher", "effective samples", 1.0),
    "semantic_diversity": Metric("higher", "cosine distance", 0.0, 2.0),
    "log_det_bonus": Metric("higher", "nats", 0.0),
    "diversity": Metric("higher", "diversity"),
    "entropy": Metric("higher", "nats"),
    "reward": Metric("higher", "reward"),
    "mean_reward": Metric("higher", "reward"),
    "score": Metric("higher", "points"),
    "judge_score": Metric("higher", "points"),
}
"""Every metric whose direction is known. `pass@k`, and `distinct_n` (and `distinct_n_matched`), `ead_n`, `self_bleu_n`
and `rouge_n`, are known for every k and n."""

_PASS_AT_K = re.compile(r"pass@([1-9]\d*)")
_ORDER_N = re.compile(r"(distinct|ead|self_bleu|rouge)[_-](?:[1-9]\d*|l)(?:_matched)?")


def pass_at(metric: str) -> int | None:
    """k where `metric` is `pass@k`, else None."""
    match = _PASS_AT_K.fullmatch(metric)
    return int(match[1]) if match else None


def known(metric: str) -> Metric | None:
    """What is known of `metric`, or None; `exact_match,strict` is `exact_match` of answers that were read one way."""
    metric = metric.partition(",")[0]
    if pass_at(metric) is not None:
        return _PROPORTION
    order = _ORDER_N.fullmatch(metric)
    return METRICS.get(order[1] if order else metric)


def direction(metric: str, declared: Direction | None = None) -> Direction:
    """Which direction of `metric` is better: as declared, else as known.

    Raises:
        UserError: nothing is declared and the metric is unknown.
    """
    if declared is not None:
        return declared
    fact = known(metric)
    if fact is None:
        raise UserError(
            f"metric '{metric}': whether higher or lower is better is not known{nearest(metric, METRICS)}; "
            "set `better` to 'higher' or 'lower' in the contrast"
        )
    return fact.better
