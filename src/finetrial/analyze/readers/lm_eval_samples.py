"""lm-evaluation-harness sample logs (`--log_samples`): `<output>/<model>/samples_<task>_<time>.jsonl`.

Written against lm-eval 0.4.13: every line has `doc_id`, `doc_hash`, `prompt_hash`, `filter`, `metrics` (names) and the
metrics' values under those names. One line is one item; the task is the suite.

The run comes from the nearest folder called `<condition>_s<seed>`, or from a mapping of folder names; otherwise the
folder (lm-eval names it after the model) is the condition, a checkpoint without a seed.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetrial.analyze.readers.shared import Foreign, as_number, json_lines, run_of
from finetrial.errors import UserError

_NAME = re.compile(r"samples_(?P<task>.+?)(?:_\d{4}-\d\d-\d\dT[\d.-]+)?\.jsonl")


def read(paths: Sequence[Path], mapping: Mapping[str, str]) -> Foreign:
    """Outcomes of all sample files at or below `paths`.

    Raises:
        UserError: a line lacks what a sample has, or one document differs between conditions.
    """
    files = [f for path in paths for f in (sorted(path.rglob("samples_*.jsonl")) if path.is_dir() else [path])]
    foreign = Foreign("lm-evaluation-harness samples")
    document: dict[tuple[str, str], tuple[str, Path]] = {}
    prompts: dict[tuple[str, str], str] = {}
    changed_prompts: set[str] = set()
    not_numbers: set[str] = set()
    for file in files:
        match = _NAME.fullmatch(file.name)
        if match is None:
            raise UserError(f"{file}: expected a name like samples_TASK_TIME.jsonl")
        task, run = match["task"], run_of(file, mapping) or (file.parent.name, None)
        for line, row in enumerate(json_lines(file), 1):
            if "doc_id" not in row or "metrics" not in row:
                missing = "doc_id" if "doc_id" not in row else "metrics"
                raise UserError(f"{file}:{line}: no '{missing}'; expected a sample of lm-evaluation-harness")
            item, content = str(row["doc_id"]), str(row.get("doc_hash", ""))
            first, where = document.setdefault((task, item), (content, file))
            if first != content:
                raise UserError(
                    f"{file}:{line}: document {item} of {task} is not the one in {where} (doc_hash {content[:12]} and "
                    f"{first[:12]}): the conditions were not measured on the same items"
                )
            if prompts.setdefault((task, item), str(row.get("prompt_hash", ""))) != str(row.get("prompt_hash", "")):
                changed_prompts.add(task)
            kept = row.get("filter", "none")
            for metric in row["metrics"]:
                name, value = metric if kept == "none" else f"{metric},{kept}", row.get(metric)
                if isinstance(value, (list, tuple, dict, str)):
                    not_numbers.add(name)
                else:
                    foreign.add(run, task, item, 0, name, as_number(value))
    if changed_prompts:
        foreign.notes.append(
            f"prompts differ between files for {', '.join(sorted(changed_prompts))} (chat template or examples): a "
            "difference may be the prompt's"
        )
    if not_numbers:
        foreign.notes.append(f"metrics that are no number per item are left out: {', '.join(sorted(not_numbers))}")
    return foreign
