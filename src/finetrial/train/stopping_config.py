"""Configuration of early stopping and of the choice among a run's checkpoints (no torch here)."""

from typing import Literal

from pydantic import Field, model_validator

from finetrial.records import Config

WATCHED = {
    "perplexity": ("nll", "log_perplexity", "bits_per_byte", "kl_to_base", "kl_from_base"),
    "tasks": ("correct", "completion_tokens", "correct_relaxed"),
    "choice": ("acc", "acc_norm", "gold_logp", "acc_letter", "gold_logp_letter"),
}
"""Kind of suite -> metrics that a guard can watch on it, the first by default; of tasks also `pass@k`, and what is
measured of the completions' texts where the suite measures that in the end. A guard measures inside the training loop,
in the cohort's own stack: conversations, reward models and tasks of lm-evaluation-harness have drivers of their own,
which it has no access to."""


class StoppingConfig(Config):
    """`[stopping]`: a guard that measures each run while it trains, stops it, and chooses the adapter that is kept.

    The frozen base is measured first, in the same way. Runs are measured every `every` steps and at their end; a run
    that is over before `every` steps was never guarded, which its record and the campaign's checks say.
    """

    suite: str = Field(
        description="suite of [split], [tasks] or [[suites]] that is watched; no contrast or trade-off may use it"
    )
    metric: str | None = Field(
        default=None,
        description="default: what suites of that kind measure first; of tasks also pass@k and metrics of texts "
        "(distinct_2, self_bleu_4, degenerate, rouge_l, vendi, ...), where the suite measures them",
    )
    every: int = Field(default=10, ge=1, description="steps from one measurement to the next")
    patience: int | None = Field(
        default=None,
        ge=1,
        description="stop after so many measurements in a row without improvement, the first to beat being the base's; "
        "unset: never for that",
    )
    threshold: float = Field(default=0.0, ge=0, description="an improvement is more than this better than the best")
    floor: float | None = Field(
        default=None, ge=0, description="stop as soon as the metric is worse than the base's by more than this"
    )
    select: Literal["best", "last", "within_floor"] = Field(
        default="best",
        description="which adapter is kept and evaluated: the best that was measured, the last, or the latest measured "
        "one within the floor, which is what a guard of old skills wants (the last where none was)",
    )
    items: int | None = Field(
        default=None, ge=1, description="measure on so many items of the suite, the same for all runs; unset for all"
    )

    @model_validator(mode="after")
    def _does_something(self) -> "StoppingConfig":
        if self.patience is None and self.floor is None and self.select == "last":
            raise ValueError("it would do nothing: give patience or floor to stop by, or select = 'best'")
        if self.select == "within_floor" and self.floor is None:
            raise ValueError("select = 'within_floor' needs a floor")
        if self.threshold and self.patience is None:
            raise ValueError("threshold says what patience takes for an improvement; give patience, too")
        return self

    def due(self, step: int, steps: int) -> bool:
        """Whether a run of `steps` steps is measured after step `step` (1, 2, ...)."""
        return step % self.every == 0 or (step == steps > self.every)
