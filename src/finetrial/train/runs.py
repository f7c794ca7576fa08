"""What goes into a cohort and what comes out of it: the nouns of training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from finetrial.evaluate.choice import ChoiceItem
from finetrial.generate.config import SamplingConfig
from finetrial.grade.grade import Grader
from finetrial.judge.grader import JudgeGrader
from finetrial.model.adapters import Adapter
from finetrial.model.config import ModelConfig
from finetrial.model.render import Rendered
from finetrial.records import Task
from finetrial.train.config import TrainConfig
from finetrial.train.mixture_config import MixtureConfig
from finetrial.train.rl_config import RLConfig
from finetrial.train.stopping import Direction, Measured
from finetrial.train.stopping_config import StoppingConfig
from finetrial.train.term_config import AnchorConfig, SetDiversityConfig


@dataclass(frozen=True)
class Practice:
    """What a run of reinforcement learning practises on."""

    tasks: Sequence[Task]
    """In the order of their ids; the loop shuffles."""
    prompts: Sequence[np.ndarray]
    """int64 tokens of each task's prompt, generation prompt included."""
    grader: Grader | JudgeGrader
    rl: RLConfig
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class SetPrompts:
    """What a run of supervised fine-tuning draws sets of completions for."""

    config: SetDiversityConfig
    tasks: Sequence[Task]
    """One per distinct prompt of its rows, in the order of their ids; the reference is what the row answers."""
    prompts: Sequence[np.ndarray]
    """int64 tokens of each, generation prompt included."""
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class Mixture:
    """Further rows that are mixed into every batch of a run."""

    config: MixtureConfig
    parts: Mapping[str, Sequence[Rendered]]
    """Part -> its rows, in the order of their ids; each has something to learn."""


@dataclass(frozen=True)
class Questions:
    """Tasks that a guard watches, and how they are asked."""

    tasks: Sequence[Task]
    prompts: Sequence[np.ndarray]
    """int64 tokens of each, generation prompt included."""
    grader: Grader | JudgeGrader | None
    """None where what is watched needs no grades."""
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    sampling: SamplingConfig
    samples: int
    """Of each task."""
    seed: int
    """Of the sampling noise."""
    vocabulary: int
    """Of the base, for metrics of texts."""
    matched_words: int | None
    """Words that `distinct_n_matched` cuts samples to."""


@dataclass(frozen=True)
class Watch:
    """What a run is measured on while it trains, and the rule that it is judged by."""

    config: StoppingConfig
    metric: str
    better: Direction
    key: str
    """Identity of what is measured: runs with the same key share the base's value."""
    on: Mapping[str, Rendered] | Sequence[ChoiceItem] | Questions
    """Texts by id, whose likelihood is measured; questions whose options are weighed; or tasks, whose completions are
    graded or measured as texts."""


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
    sets: SetPrompts | None = None
    """Set where completions are drawn beside the rows, to be rewarded for differing or to be measured."""
    anchor: AnchorConfig | None = None
    """What holds the adapter near the base."""
    mixture: Mixture | None = None
    """Set where other rows are mixed into those of `rows`."""
    watch: Watch | None = None
    """Set where a guard measures the run, may stop it, and chooses its adapter."""
    snapshots: frozenset[int] = frozenset()
    """Steps after which the adapter is kept as it is then, in `snapshots/step-<n>` of its folder; a run that has ended
    keeps none of later steps."""

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
    parts: dict[str, dict[str, int]] = field(default_factory=dict)
    """With a mixture: part -> its `rows` and `tokens` (supervised ones) among those."""
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
    terms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Auxiliary term -> what was measured of its gradient (`gradient_share.TermState`)."""
    sets: dict[str, Any] | None = None
    """What became of the sets that the run drew (`set_log.SetLog`)."""

    baseline: float | None = None
    """The base's value of what is watched."""
    watched: list[dict[str, Any]] = field(default_factory=list)
    """Measurements of the guard (`stopping.Measured`)."""
    kept_step: int | None = None
    """Step of the one whose adapter is kept; None where that is the last adapter."""
    stopped_at: int | None = None
    """Step (1, 2, ...) after which the guard ended the run; it is in no pass after that."""
    stop_reason: str | None = None

    @property
    def training(self) -> bool:
        """Whether the run goes on: it is neither in quarantine nor stopped."""
        return self.quarantined_at is None and self.stopped_at is None

    @property
    def history(self) -> list[Measured]:
        """Measurements of the guard."""
        return [Measured(**one) for one in self.watched]


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
    """What is kept of the run: with a guard that selects, the best that it measured."""
    last: Adapter | None = field(default=None, repr=False)
    """The adapter at the end, where that is another one."""
    part_rows: Mapping[str, int] = field(default_factory=dict)
    """With a mixture: part -> how many different rows of it the run has read."""
