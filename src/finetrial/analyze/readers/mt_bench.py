"""MT-Bench judgments as FastChat writes them: `model_judgment/*_single.jsonl` (grades) and `*_pair.jsonl` (duels).

A single judgment grades one turn of one question from 1 to 10; -1 means that no grade could be read, which is missing.
The question is the item, the turn the sample (MT-Bench averages the two turns), the metric `score`.

A duel asks twice, with the answers in both orders. As FastChat counts it, a model wins when both orders say so and
anything else is a tie (1, 0.5 or 0 of `win_rate`); an order without a readable answer makes the duel missing.

The category of a question comes from `question.jsonl`, looked for beside the judgments and one level up.
Zheng et al. 2023, "Judging LLM-as-a-judge with MT-Bench and Chatbot Arena" (arXiv 2306.05685).
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetrial.analyze.readers.shared import Foreign, json_lines
from finetrial.errors import UserError

_SCORES = {"model_1": (1.0, 0.0), "model_2": (0.0, 1.0), "tie": (0.5, 0.5)}


def recognises(path: Path) -> bool:
    """Whether `path` is a judgment file or a folder with some."""
    if path.is_dir():
        return bool(_files(path))
    if path.suffix != ".jsonl":
        return False
    with path.open(encoding="utf-8") as stream:
        line = next((line for line in stream if line.strip()), "")
    return '"judge"' in line and '"question_id"' in line


def read(paths: Sequence[Path]) -> Foreign:
    """Outcomes of all judgments at or below `paths`.

    Raises:
        UserError: a line is neither a grade nor a duel, or a duel has an unknown winner.
    """
    foreign = Foreign("MT-Bench judgments")
    files = [file for path in paths for file in (_files(path) if path.is_dir() else [path])]
    questions = next((q for path in paths for q in _question_files(path) if q.is_file()), None)
    category = {} if questions is None else {str(q["question_id"]): str(q["category"]) for q in json_lines(questions)}
    duels: Counter[str] = Counter()
    judges: set[str] = set()
    graded: dict[str, set[str]] = {}
    for file in files:
        for line, row in enumerate(json_lines(file), 1):
            judges.add(str((row.get("judge") or ["unknown"])[0]))
            before = len(foreign.columns["value"])
            if "score" in row:
                graded.setdefault(str(row["model"]), set()).add(str(row["question_id"]))
                _add_grade(foreign, row)
            elif "g1_winner" in row:
                duels[_add_duel(foreign, row, f"{file}:{line}")] += 1
            else:
                raise UserError(f"{file}:{line}: neither 'score' nor 'g1_winner'; expected an MT-Bench judgment")
            added = len(foreign.columns["value"]) - before
            foreign.label += [category.get(str(row["question_id"]), "unknown category")] * added
    if category:
        foreign.by = "category"
    else:
        foreign.notes.append("no question.jsonl beside the judgments: categories are not known")
    foreign.notes.append(f"judge: {', '.join(sorted(judges))}; its own variation between repeats is not in these data")
    _describe(foreign, duels, graded, len(category))
    return foreign


def _add_grade(foreign: Foreign, row: dict[str, Any]) -> None:
    score = float(row["score"])
    run, item = (str(row["model"]), None), str(row["question_id"])
    foreign.add(run, "mt_bench", item, int(row.get("turn", 1)) - 1, "score", None if score < 0 else score)


def _add_duel(foreign: Foreign, row: dict[str, Any], where: str) -> str:
    """Append one duel's two outcomes; returns what kind of duel it was."""
    winners = (row["g1_winner"], row["g2_winner"])
    for winner in winners:
        if winner not in (*_SCORES, "error"):
            raise UserError(f"{where}: winner {winner!r}; expected model_1, model_2, tie or error")
    if "error" in winners:
        first, second, kind = None, None, "missing"
    else:
        agree = winners[0] == winners[1]
        first, second = _SCORES[winners[0] if agree else "tie"]
        flipped = not agree and "tie" not in winners
        kind = "consistent" if agree else "flipped" if flipped else "half"
    item, sample = str(row["question_id"]), int(row.get("turn", 1)) - 1
    foreign.add((str(row["model_1"]), None), "mt_bench", item, sample, "win_rate", first)
    foreign.add((str(row["model_2"]), None), "mt_bench", item, sample, "win_rate", second)
    return kind


def _describe(foreign: Foreign, duels: Counter[str], graded: dict[str, set[str]], n_questions: int) -> None:
    """Notes on consistency and completeness."""
    total = sum(duels.values())
    if total:
        judged = total - duels["missing"]
        foreign.notes.append(
            f"{duels['consistent']} of {judged} duels have the same outcome in both orders; {duels['flipped']} name "
            f"the winner by its position and {duels['half']} a winner in one order only, counted as ties; "
            f"{duels['missing']} without a readable answer are missing"
        )
        seen = len(
            {
                item
                for item, m in zip(foreign.columns["item"], foreign.columns["metric"], strict=True)
                if m == "win_rate"
            }
        )
        if n_questions > seen:
            foreign.notes.append(
                f"{n_questions - seen} of {n_questions} questions have no duel at all; they are missing"
            )
    for model, questions in graded.items():
        if n_questions > len(questions):
            foreign.notes.append(f"{model}: {n_questions - len(questions)} of {n_questions} questions have no grade")
    if len(graded) == 1:
        foreign.notes.append(f"grades are there for {next(iter(graded))} only, so `score` cannot be compared")


def _files(folder: Path) -> list[Path]:
    """Judgment files in `folder`, in its `model_judgment` or its `data/mt_bench/model_judgment`."""
    places = [folder, folder / "model_judgment", folder / "mt_bench" / "model_judgment"]
    found = [file for place in places for kind in ("single", "pair") for file in sorted(place.glob(f"*_{kind}.jsonl"))]
    return [file for file in found if recognises(file)]


def _question_files(path: Path) -> list[Path]:
    """Where `question.jsonl` may be, nearest first."""
    folders = [path if path.is_dir() else path.parent]
    folders += [folders[0].absolute().parent, folders[0].absolute().parent.parent]
    return [place / "question.jsonl" for folder in folders for place in (folder, folder / "mt_bench")]
