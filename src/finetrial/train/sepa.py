"""Schedule of selective entropy pooling (SEPA): how strongly execution tokens are pooled at a step.

The strength stays 0 until the gate opens: once the share of right completions has reached `correct_rate_gate`. The
gate never closes again. Nothing is scheduled while it is closed: a ramp begins when the gate opens (or after the
delay, whichever is later), and the automatic schedule begins to watch the variance then, so that a late gate does
not make the strength jump.
"""

from dataclasses import dataclass, replace

from finetrial.train.rl_config import SepaConfig


@dataclass(frozen=True)
class SepaState:
    """What the schedule remembers between steps; `dataclasses.asdict` is JSON and `SepaState(**facts)` reads it."""

    steps: int = 0
    """Steps observed."""
    opened_at: int | None = None
    """The step whose observation opened the gate; None while it is closed."""
    updates: int = 0
    """Variances observed since the gate opened."""
    ema: float | None = None
    """Moving average of the variance of execution tokens' uncertainty."""
    first_variance: float | None = None
    """Its value after `warmup_steps` updates."""

    @property
    def gate_open(self) -> bool:
        """Whether the gate has opened; a gate of 0 counts as open only from the first observation on."""
        return self.opened_at is not None


def sepa_lambda(config: SepaConfig, state: SepaState, step: int, steps: int) -> float:
    """Strength in [0, 1] at `step` (counted from 1) of a run of `steps`.

    linear: min(max(step - start, 0) / ramp, 1), start = max(delay, step at which the gate opened).
    auto: max(linear, 1 - min(ema / first_variance / threshold, 1)): pooling grows as execution settles down. A first
    variance of 0 leaves nothing to pool and counts as no strength.
    Without a value in the configuration the ramp takes half of the run's steps and the delay a tenth, rounded down.
    """
    opened_at = 0 if config.correct_rate_gate == 0 else state.opened_at
    if opened_at is None:
        return 0.0
    ramp = config.steps if config.steps is not None else max(steps // 2, 1)
    delay = config.delay_steps if config.delay_steps is not None else steps // 10
    linear = min(max(step - max(delay, opened_at), 0) / ramp, 1.0)
    if config.schedule == "linear" or not state.first_variance or state.ema is None:
        return linear
    return max(linear, 1.0 - min(state.ema / state.first_variance / config.threshold, 1.0))


def observe(
    config: SepaConfig, state: SepaState, correct_rate: float | None, execution_variance: float | None
) -> SepaState:
    """The state after a step; call once per step, it acts from the next step on.

    Args:
        config: the schedule.
        state: before the step.
        correct_rate: share of right completions among the graded ones; None where nothing was graded.
        execution_variance: variance of the uncertainty of execution tokens before pooling; None where there were none.
    """
    was_open = state.gate_open or config.correct_rate_gate == 0
    state = replace(state, steps=state.steps + 1)
    if config.correct_rate_gate == 0 and state.opened_at is None:
        state = replace(state, opened_at=0)
    elif state.opened_at is None and correct_rate is not None and correct_rate >= config.correct_rate_gate:
        state = replace(state, opened_at=state.steps)
    if not was_open or execution_variance is None:
        return state
    ema = execution_variance
    if state.ema is not None:
        ema = config.ema * state.ema + (1 - config.ema) * execution_variance
    state = replace(state, ema=ema, updates=state.updates + 1)
    return replace(state, first_variance=ema) if state.updates == config.warmup_steps else state
