"""How many rows of one sampling pass are fastest, by the Universal Scalability Law (no torch here).

Gunther (2007, Guerrilla Capacity Planning; arXiv:0808.1431): p rows at once give the throughput

    X(p) = λ C(p),    C(p) = p / (1 + σ (p - 1) + κ p (p - 1)),

with λ the tokens per second of a single row, σ in [0, 1] the share of the work that rows queue for (contention), and
κ >= 0 what each pair of rows costs (coherency: caches that overflow, memory that is moved). Without coherency more
rows are never slower and there is no peak; with it X is largest at p* = √((1 - σ) / κ).

Everything here is a description of this machine and a suggestion to execution. It never changes what is computed,
but another number of rows rounds differently.

Shapes: O observations, P distinct numbers of rows.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, sqrt
from typing import Any, Literal

import numpy as np
from scipy.optimize import nnls

LEAST_DISTINCT = 3
"""Numbers of rows that three unknowns need."""

LEAST_SPREAD = 2.0
"""The largest number of rows must be at least so many times the smallest, or curvature cannot be told from noise."""

LITTLE_GAIN = 0.5
"""Below this gain (see `UslFit.gain`) doubling the rows gives less than √2 times the throughput."""

NEGLIGIBLE = 1e-9
"""A coherency term below this share of the time of the largest pass is rounding."""

Regime = Literal["warmup", "scaling", "saturating", "retrograde"]
"""Where a number of rows lies on the curve:

- `warmup`: not enough observations for a law.
- `scaling`: gain of at least 0.5; more rows pay.
- `saturating`: gain from 0 up to 0.5; more rows pay little.
- `retrograde`: negative gain, beyond the peak; more rows are slower. Impossible without coherency (κ = 0).
"""

Action = Literal["hold", "increase", "throttle"]
"""What the suggestion would do to the number of rows."""


def capacity(rows: float, sigma: float, kappa: float) -> float:
    """C(p): throughput of `rows` rows in units of the throughput of one."""
    return rows / (1 + sigma * (rows - 1) + kappa * rows * (rows - 1))


@dataclass(frozen=True)
class UslFit:
    """The law of one machine, model and length of completions."""

    rate: float
    """λ: tokens per second of one row."""
    sigma: float
    """σ: contention, in [0, 1]."""
    kappa: float
    """κ: coherency, at least 0."""

    @property
    def peak(self) -> float | None:
        """p*: rows of the largest throughput, at least 1; None where more rows are never slower (κ = 0)."""
        return max(1.0, sqrt((1 - self.sigma) / self.kappa)) if self.kappa > 0 else None

    def throughput(self, rows: float) -> float:
        """X(p) in tokens per second."""
        return self.rate * capacity(rows, self.sigma, self.kappa)

    def gain(self, rows: float) -> float:
        """d ln X / d ln p: 1 when twice the rows give twice the throughput, 0 at the peak, negative beyond it."""
        return (1 - self.sigma - self.kappa * rows**2) / (rows / capacity(rows, self.sigma, self.kappa))

    def regime(self, rows: float) -> Regime:
        """Where `rows` lies on the curve."""
        gain = self.gain(rows)
        return "retrograde" if gain < 0 else "saturating" if gain < LITTLE_GAIN else "scaling"


def fit_usl(rows_O: Sequence[float] | np.ndarray, throughput_O: Sequence[float] | np.ndarray) -> UslFit | None:
    """Fit the law to throughputs (tokens per second) that were measured with `rows_O` rows.

    p / X is linear in three numbers that cannot be negative: p / X = t + v p + w p (p - 1) with t = (1 - σ) / λ,
    v = σ / λ, w = κ / λ. Non-negative least squares therefore keeps σ in [0, 1] and κ >= 0 by construction. Each
    number of rows counts through the median of its observations (a hiccup moves nothing), with the square root of
    their count as weight, and errors are relative, as errors of timing are.

    Returns:
        The fit; None with fewer than three distinct numbers of rows, with all of them within a factor of two, or
        where no finite λ explains them.

    Raises:
        ValueError: a number of rows is below 1, or a throughput is not positive and finite.
    """
    rows_O, throughput_O = np.asarray(rows_O, dtype=float), np.asarray(throughput_O, dtype=float)
    if not (np.all(rows_O >= 1) and np.all(throughput_O > 0) and np.all(np.isfinite(rows_O * throughput_O))):
        raise ValueError("expected rows of at least 1 and throughputs that are positive and finite")
    rows_P, count_P = np.unique(rows_O, return_counts=True)
    if len(rows_P) < LEAST_DISTINCT or rows_P[-1] < LEAST_SPREAD * rows_P[0]:
        return None
    cost_P = rows_P / np.array([np.median(throughput_O[rows_O == rows]) for rows in rows_P])
    weight_P = np.sqrt(count_P) / cost_P
    terms_P3 = np.stack([np.ones_like(rows_P), rows_P, rows_P * (rows_P - 1)], axis=1)
    weighted_P3 = terms_P3 * weight_P[:, None]
    size_3 = np.linalg.norm(weighted_P3, axis=0)
    solution_3, _ = nnls(weighted_P3 / size_3, cost_P * weight_P)
    t, v, w = (solution_3 / size_3).tolist()
    if w * terms_P3[-1, 2] < NEGLIGIBLE * cost_P[-1]:
        w = 0.0
    return UslFit(rate=1 / (t + v), sigma=v / (t + v), kappa=w / (t + v)) if t + v > 0 else None


def choose_rows(fit: UslFit, most: int) -> int:
    """The number of rows from 1 to `most` with the largest predicted throughput; `most` where there is no peak.

    Args:
        fit: the law.
        most: rows that memory, or the number of completions that are wanted, allows at once.

    Raises:
        ValueError: `most` is below 1.
    """
    if most < 1:
        raise ValueError(f"most is {most}, expected at least 1")
    if fit.peak is None or fit.peak >= most:
        return most
    return max(floor(fit.peak), min(ceil(fit.peak), most), key=fit.throughput)


class Observations:
    """The last `window` measurements of how long so many rows took."""

    def __init__(self, window: int = 512):
        self.window = window
        self._seen: deque[tuple[int, float]] = deque(maxlen=window)

    def add(self, rows: int, seconds: float, tokens: int | None = None) -> None:
        """Note that `rows` rows at once made `tokens` tokens in `seconds` (one token each, a decoding step, if unset).

        Raises:
            ValueError: a number is not positive.
        """
        tokens = rows if tokens is None else tokens
        if rows < 1 or tokens < 1 or not (seconds > 0 and isfinite(seconds)):
            raise ValueError(f"{rows} rows, {tokens} tokens, {seconds} s: expected positive numbers")
        self._seen.append((rows, tokens / seconds))

    def __len__(self) -> int:
        return len(self._seen)

    def fit(self) -> UslFit | None:
        """The law of what is in the window; None while it says too little (`fit_usl`)."""
        return fit_usl([rows for rows, _ in self._seen], [pace for _, pace in self._seen])

    def next_rows(self, most: int) -> int:
        """Rows to try next: `choose_rows` once there is a law, and until then `most`, its half and its quarter."""
        fit = self.fit()
        if fit is not None:
            return choose_rows(fit, most)
        seen = {rows for rows, _ in self._seen}
        ladder = [max(1, most // share) for share in (1, 2, 4)]
        return next((rows for rows in ladder if rows not in seen), most)

    def state(self) -> dict[str, Any]:
        """JSON types from which `restore` makes the same object."""
        return {"window": self.window, "seen": [list(pair) for pair in self._seen]}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> "Observations":
        """The object that `state` was taken from."""
        restored = cls(int(state["window"]))
        restored._seen.extend((int(rows), float(pace)) for rows, pace in state["seen"])
        return restored


def fields(observations: Observations, rows: int, most: int, tokens: int, seconds: float) -> dict[str, Any]:
    """What a step of training reports about its sampling; None where the law is not known yet.

    Args:
        observations: of this run so far, this step included.
        rows: largest number of rows of one pass in this step.
        most: rows that would have been possible.
        tokens: all tokens that were generated in this step, whether or not anything was learned from them.
        seconds: that their generation took.

    Returns:
        `bp_warmup` (no law yet), `bp_regime` (`Regime`), `bp_action` (`Action`), `bp_p_star` (None also where there
        is no peak), `bp_sigma`, `bp_kappa`, `bp_throughput` (tokens per second), and `bp_utilization`, the throughput
        as a share of the largest that the law predicts up to `most` rows.
    """
    fit, throughput = observations.fit(), tokens / seconds
    if fit is None:
        regime, action, utilization = "warmup", "hold", None
    else:
        chosen = choose_rows(fit, most)
        regime = fit.regime(rows)
        action = "increase" if chosen > rows else "throttle" if chosen < rows else "hold"
        utilization = throughput / fit.throughput(chosen)
    return {
        "bp_warmup": fit is None,
        "bp_regime": regime,
        "bp_action": action,
        "bp_p_star": fit.peak if fit else None,
        "bp_sigma": fit.sigma if fit else None,
        "bp_kappa": fit.kappa if fit else None,
        "bp_utilization": utilization,
        "bp_throughput": throughput,
    }
