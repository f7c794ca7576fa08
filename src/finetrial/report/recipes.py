"""What tells the conditions of a campaign apart: the settings in which they differ, and how their adapters are made."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finetrial.identity import canonical_json
from finetrial.model.config import ModelConfig
from finetrial.report.facts import Report
from finetrial.report.tables import Table, flat
from finetrial.report.terms import ANCHORS
from finetrial.report.theme import number
from finetrial.train.mixture_config import PartConfig

COLUMNS = ("model.init", "model.dora", "model.rslora", "model.lora_rank", "model.lora_alpha")
COLUMNS += ("training.lora_plus_ratio",)
"""Settings that the table of recipes tells in columns."""
INITS = {"pissa": "PiSSA", "olora": "OLoRA"}


def recipes(report: Report) -> Table:
    """A row per condition: what its adapters are and what sets it apart; none where recipes were not recorded whole."""
    whole = [condition for condition in report.section("spec", "conditions") or [] if "init" in model_of(condition)]
    apart = differences(whole)
    rows = []
    for condition in whole:
        model = ModelConfig.model_validate(model_of(condition))
        figures = [number(model.lora_rank), number(model.alpha), f"{model.scale:.4g}"]
        own = ", ".join(apart[condition["name"]]) or "—"
        rows.append([condition["name"], adapter_words(condition), *figures, own])
    return ["condition", "adapters", "rank", "alpha", "effective scale", "what sets it apart"], rows


def model_of(condition: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `[model]` table of a condition, empty where there is none."""
    return condition.get("model") or {}


def adapter_words(condition: Mapping[str, Any]) -> str:
    """How adapters begin and are trained: `LoRA`, or `PiSSA + DoRA + rsLoRA + LoRA+ (B at 8 × the rate of A)`."""
    model = model_of(condition)
    parts = [INITS[model["init"]]] if model["init"] in INITS else []
    parts += [word for key, word in (("dora", "DoRA"), ("rslora", "rsLoRA")) if model.get(key)]
    ratio = (condition.get("training") or {}).get("lora_plus_ratio") or 1.0
    return " + ".join([*parts, *([f"LoRA+ (B at {ratio:g} × the rate of A)"] if ratio != 1 else [])]) or "LoRA"


def differences(conditions: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """condition -> in words, its settings that are not those of most conditions, but for those with columns."""
    told: dict[str, list[str]] = {condition["name"]: [] for condition in conditions}
    for table in dict.fromkeys(key for condition in conditions for key in condition if key not in ("name", "question")):
        of = {condition["name"]: condition.get(table) for condition in conditions}
        having = {name: dict(_leaves(value, f"{table}.")) for name, value in of.items() if isinstance(value, Mapping)}
        unusual = _unusual(of)
        if table in WORDS:
            for name in having.keys() & unusual:
                told[name].append(WORDS[table](of[name]))
            continue
        for key in dict.fromkeys(key for leaves in having.values() for key in leaves if key not in COLUMNS):
            for name in _unusual({name: leaves.get(key) for name, leaves in having.items()}):
                told[name].append(f"{key} {_text(having[name].get(key))}")
        told |= {
            name: [*words, f"[{table}]"] for name, words in told.items() if len(having) < len(of) and name in having
        }
    return told


def _unusual(values: Mapping[str, Any]) -> set[str]:
    """Names whose value is not the most frequent one; all of them where values differ and none is more frequent."""
    written = {name: canonical_json(value) for name, value in values.items()}
    counted = Counter(written.values()).most_common()
    if len(counted) < 2:
        return set()
    usual = counted[0][0] if counted[0][1] > counted[1][1] else None
    return {name for name, value in written.items() if value != usual}


def _leaves(table: Mapping[str, Any], before: str) -> list[tuple[str, Any]]:
    """(dotted key, value) of a nested table."""
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        found += _leaves(value, f"{before}{key}.") if isinstance(value, Mapping) else [(f"{before}{key}", value)]
    return found


def _text(value: Any) -> str:
    if value is None:
        return "unset"
    return f"{value:g}" if isinstance(value, float) else flat(value)[0][1]


def _anchor(anchor: Mapping[str, Any]) -> str:
    return f"anchor {ANCHORS.get(anchor['kind'], anchor['kind'])}, coefficient {anchor['coef']:g}"


def _sets(sets: Mapping[str, Any]) -> str:
    if sets.get("gradient_share") is not None:
        return f"set diversity ({sets['score']}) at {sets['gradient_share']:.0%} of the gradient"
    weight = 1.0 if sets.get("weight") is None else sets["weight"]
    return f"set diversity ({sets['score']}), λ {weight:g}"


def _mixture(mixture: Mapping[str, Any]) -> str:
    parts = [PartConfig.model_validate(part) for part in mixture["parts"]]
    shares = [f"{part.name} {' → '.join(f'{share:.0%}' for _, share in part.points)}" for part in parts]
    return f"mixture of {mixture['unit']}: {', '.join(shares)}"


def _stopping(stopping: Mapping[str, Any]) -> str:
    patience = "" if stopping.get("patience") is None else f", patience {stopping['patience']}"
    floor = "" if stopping.get("floor") is None else f", floor {stopping['floor']:g}"
    return f"guard on {stopping['suite']} every {stopping['every']} steps{patience}{floor}"


WORDS: dict[str, Callable[[Any], str]] = {
    "anchor": _anchor,
    "set_diversity": _sets,
    "mixture": _mixture,
    "stopping": _stopping,
}
"""Tables that not every condition has, in words."""
