"""The stages that need a model, in the one dict `STAGES`; the only place that knows engine and store alike.

`train` turns a cohort of runs into artefacts of the store, `evaluate` turns adapters and suites into outcomes.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from finetrial.campaign.folder import Folder
from finetrial.campaign.plan import STAGE_VERSIONS, Plan, Run, Suite
from finetrial.campaign.prepare import Prepared
from finetrial.campaign.spec import BASE, Spec
from finetrial.evaluate.perplexity import ItemScore, perplexity
from finetrial.evaluate.progress import Progress
from finetrial.identity import digest, file_digest, stage_key
from finetrial.model.adapters import AdapterStack, load_peft
from finetrial.model.base import Base, load_base
from finetrial.model.render import render_batch
from finetrial.records import Outcome
from finetrial.store import write_json
from finetrial.train.sft import RunData, train_cohort

Say = Callable[[str], None]


@dataclass(frozen=True)
class Machine:
    """The base, loaded once for a launch."""

    base: Base

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest says of the base."""
        return {}


STAGES: dict[str, Callable[..., Any]] = {}
