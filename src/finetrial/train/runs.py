"""What goes into a cohort and what comes out of it: the nouns of training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from finetrial.grade.grade import Grader
from finetrial.model.adapters import Adapter
from finetrial.model.config import ModelConfig
from finetrial.model.render import Rendered
from finetrial.records import Task
from finetrial.train.config import TrainConfig
from finetrial.train.rl_config import RLConfig


@dataclass(frozen=True)
class Practice:
    """What a run of reinforcement learning practises on."""

    tasks: Sequence[Task]
    """In the order of their ids; the loop shuffles."""
    prompts: Sequence[np.ndarray]
    """int64 tokens of each task's prompt, generation prompt included."""
    grader: Grader
    rl: RLConfig
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class RunData:
    """One run of a cohort: what it learns from and how."""

    condition: str
    seed: int
    rows: Sequence[Rendered]
    """In the order of their ids; the loop shuffles. Empty for a run that practises."""
    train: TrainConfig
    model: ModelConfig
    folder: Path
    """Gets `metrics.jsonl`, one object per step, and what else the objective writes; continued on resume and
    replaced otherwise."""
    key: str
    """Identity of the run; a checkpoint of other runs is refused."""
    practice: Practice | None = None
    """Set where the run samples its own completions instead of reading rows."""
    snapshots: frozenset[int] = frozenset()
    """Steps after which the adapter is kept as it is then, in `snapshots/step-<n>` of its folder."""

    @property
    def name(self) -> str:
        """How messages call the run."""
        return f"{self.condition} seed {self.seed}"

    @property
    def metrics(self) -> Path:
        """One JSON object per step."""
        return self.folder / "metrics.jsonl"


@dataclass
class Ledger:
    """What a run has really consumed; a checkpoint keeps it."""

    steps: int = 0
    """Steps gone through; a step of supervised rows counts if it had a supervised token."""
    updates: int = 0
    """Optimiser updates: one per step of supervised rows; several, or none, per step of practice."""
    rows: int = 0
    """Rows (or completions) of those steps; a row of a second epoch counts again."""
    tokens: int = 0
    """Tokens read by the model, without padding."""
    supervised_tokens: int = 0
    loss: float | None = None
    """Of the last step that had one, in nats per supervised token (of a policy: its loss)."""
    quarantined_at: int | None = None
    """Step (1, 2, ...) whose loss or gradient was not finite; the adapter is as it was before that update."""
    reason: str | None = None
    sampled_tokens: int = 0
    """Tokens of completions that the run drew."""
    graded: int = 0
    """Completions with a grade."""
    correct: int = 0
    """Completions graded above 0.5."""
    missing_grades: int = 0
    """Completions for which the grader gave none."""
    prompts_drawn: int = 0
    """Prompts taken from the run's order, those replaced by dynamic sampling included."""
    sepa: dict[str, Any] | None = None
    """State of the pooling schedule."""


@dataclass(frozen=True)
class TrainResult:
    """What became of a run."""

    condition: str
    seed: int
    status: Literal["done", "quarantined"]
    reason: str | None
    ledger: Ledger
    distinct_rows: int
    """Rows (or prompts) of its data that the planned steps visit at least once."""
    truncated_rows: int
    """Rows of its data that were cut at the maximum length."""
    unsupervised_rows: int
    """Rows of its data without a supervised token, which teach nothing."""
    seconds: float
    """Wall time of the cohort's steps, which its runs share, over all resumed parts."""
    adapter: Adapter = field(repr=False)
