"""Which layers of a model an adapter is for."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from finetrial.errors import UserError, nearest

ALL_LINEAR = "all-linear"


def target_modules(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """Path -> linear layer for `targets`, in the model's order; `all-linear` is every one but the output head.

    Raises:
        UserError: a target matches nothing, matches something that is no plain `nn.Linear` (Conv1D of GPT-2,
            quantised layers), or is the output head.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    modules = dict(model.named_modules())
    linear = {path: module for path, module in modules.items() if type(module) is nn.Linear and module is not head}
    if tuple(targets) == (ALL_LINEAR,):
        if not linear:
            raise UserError(f"model.targets: {type(model).__name__} has no nn.Linear layers (Conv1D, quantised?)")
        return linear
    chosen = set()
    for target in targets:
        matches = [path for path in modules if path == target or path.endswith(f".{target}")]
        if not matches:
            leaves = sorted({path.rpartition(".")[2] for path in linear})
            raise UserError(
                f"model.targets: no layer is called '{target}'{nearest(target, leaves)}; there are {leaves}"
            )
        for path in matches:
            if path not in linear:
                kind = "the output head" if modules[path] is head else f"a {type(modules[path]).__name__}"
                raise UserError(f"model.targets: '{target}' is {kind}; adapters need an nn.Linear inside the model")
            chosen.add(path)
    return {path: module for path, module in linear.items() if path in chosen}


def peft_targets(model: nn.Module, paths: Mapping[str, Any], targets: tuple[str, ...]) -> tuple[str, ...]:
    """The shortest names that select exactly `paths` when matched at the end of a module's path."""
    if targets != (ALL_LINEAR,):
        return targets
    leaves = {path.rpartition(".")[2] for path in paths}
    matched = {path for path, _ in model.named_modules() if path.rpartition(".")[2] in leaves}
    return tuple(sorted(leaves)) if matched == set(paths) else tuple(sorted(paths))
