"""When a guarded run stops and which of its adapters is kept: pure functions of what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finetrial.train.stopping_config import StoppingConfig

Direction = Literal["higher", "lower"]


@dataclass(frozen=True)
class Measured:
    """One measurement of a run."""

    step: int
    """After which it was made."""
    value: float | None
    """None where nothing could be measured: neither an improvement nor a lack of one."""
    missing: int = 0
    """Items (or completions) without a value, which `value` leaves out."""


def best(history: Sequence[Measured], better: Direction) -> Measured | None:
    """The best measurement, the earlier of equals; None where nothing was measured."""
    found: Measured | None = None
    for one in history:
        if one.value is not None and (found is None or _gain(one.value, found.value, better) > 0):
            found = one
    return found


def kept(config: StoppingConfig, better: Direction, baseline: float, history: Sequence[Measured]) -> Measured | None:
    """The measurement whose adapter is kept so far; None where that is the last adapter, measured or not."""
    if config.select == "best":
        return best(history, better)
    if config.select == "last":
        return None
    return next(
        (one for one in reversed(history) if one.value is not None and _holds(config, better, baseline, one.value)),
        None,
    )


def reason_to_stop(
    config: StoppingConfig, metric: str, better: Direction, baseline: float, history: Sequence[Measured]
) -> str | None:
    """Why a run stops after the last of these measurements; None where it goes on.

    It stops when the last value is worse than the base's by more than `floor`, or when `patience` measurements in a
    row were no improvement: none was more than `threshold` better than the best before it, the base's value included.
    A measurement that gave no value stops nothing and counts for neither.

    Args:
        config: patience, threshold and floor.
        metric: what is measured, for the words.
        better: its direction.
        baseline: the base's value.
        history: measurements in the order of their steps.
    """
    values = [one.value for one in history if one.value is not None]
    if not values or history[-1].value is None:
        return None
    if not _holds(config, better, baseline, values[-1]):
        return f"{metric} {values[-1]:.6g} is worse than the base's {baseline:.6g} by more than {config.floor:g}"
    reference, waited = baseline, 0
    for value in values:
        improved = _gain(value, reference, better) > config.threshold
        reference, waited = (value, 0) if improved else (reference, waited + 1)
    if config.patience is not None and waited >= config.patience:
        more = f" by more than {config.threshold:g}" if config.threshold else ""
        often = "1 measurement" if waited == 1 else f"{waited} measurements"
        return f"{metric} did not improve on {reference:.6g}{more} in {often}"
    return None


def _holds(config: StoppingConfig, better: Direction, baseline: float, value: float) -> bool:
    """Whether a value is no further below the base's than the floor allows."""
    return config.floor is None or -_gain(value, baseline, better) <= config.floor


def _gain(value: float, reference: float | None, better: Direction) -> float:
    """How much better `value` is."""
    assert reference is not None
    return value - reference if better == "higher" else reference - value
