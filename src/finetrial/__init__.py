"""Clinical trials for LLM fine-tuning recipes: campaigns, seeds, and verdicts that hold.

The names below are the functions behind the commands. They are imported when first used, so that judging results
needs no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "load_spec": "finetrial.campaign.spec",
    "resolve": "finetrial.campaign.spec",
    "RunOptions": "finetrial.campaign.execute",
    "make_plan": "finetrial.campaign.execute",
    "run": "finetrial.campaign.execute",
    "preflight": "finetrial.campaign.preflight",
    "open_folder": "finetrial.campaign.folder",
    "progress": "finetrial.campaign.describe",
    "gather": "finetrial.report.build",
    "build": "finetrial.report.build",
    "OutcomeTable": "finetrial.analyze.table",
    "Contrast": "finetrial.analyze.contrast",
    "AnalysisConfig": "finetrial.analyze.contrast",
    "judge": "finetrial.analyze.judge",
}

__all__ = [*_HOME]  # pyright: ignore[reportUnsupportedDunderAll]  # resolved by __getattr__


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'finetrial' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
