"""Adapters in PEFT's file format: `adapter_config.json` and `adapter_model.safetensors`.

Shapes: I input and O output features of a linear layer, R rank. PEFT stores A as (R, I) and B as (O, R).
"""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetrial.errors import UserError
from finetrial.model.adapters import Adapter
from finetrial.model.config import ModelConfig
from finetrial.model.targets import target_modules

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
REBASED = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations of PEFT that change the base: such an adapter means something on that changed base alone."""

BYTES_PER_NUMBER = 4
"""Adapters are stored as float32."""

MAGNITUDE = ".lora_magnitude_vector"

UNSUPPORTED = (
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "lora_bias",
    "fan_in_fan_out",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
)
"""Fields of PEFT's LoraConfig that change what the weights mean; an adapter that uses one is refused."""


def save_peft(adapter: Adapter, folder: Path, base: str, revision: str | None = None) -> None:
    """Write `adapter` so that PEFT, vLLM (where it knows DoRA, if there are magnitudes) and the hub take it as it is.

    What started from factors of the base (PiSSA, OLoRA) is written with its frozen half: a LoRA of twice the trained
    rank at the same scale, for the plain base. Nothing needs converting afterwards.

    Args:
        adapter: what to write.
        folder: created where missing; its two files are overwritten.
        base: name or path of the base model, for the record in the configuration.
        revision: commit of a hub base.
    """
    from peft import LoraConfig, TaskType  # several seconds to import, and only this function needs it

    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # PEFT divides by the rank whatever the number's type
        use_rslora=adapter.rslora,
        use_dora=adapter.magnitudes is not None,
        lora_dropout=adapter.dropout,
        target_modules=adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets),
        task_type=TaskType.CAUSAL_LM,
        inference_mode=True,
        base_model_name_or_path=base,
        revision=revision,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    tensors = {}
    for path, (a_IR, b_RO) in adapter.weights.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = a_IR.T.contiguous()
        tensors[f"{PREFIX}{path}.lora_B.weight"] = b_RO.T.contiguous()
    for path, m_O in (adapter.magnitudes or {}).items():
        tensors[f"{PREFIX}{path}{MAGNITUDE}"] = m_O
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def saved_bytes(model: nn.Module, config: ModelConfig) -> int:
    """Bytes of the tensors that `save_peft` writes of an adapter of this configuration, in float32; the file has a
    header of a few kilobytes besides. PiSSA and OLoRA have twice the rank, DoRA a magnitude per output feature.

    Raises:
        UserError: as `target_modules`.
    """
    rank = config.lora_rank * (1 if config.init == "lora" else 2)
    linears = target_modules(model, config.targets).values()
    numbers = sum(rank * (one.in_features + one.out_features) for one in linears)
    magnitudes = sum(one.out_features for one in linears) if config.dora else 0
    return BYTES_PER_NUMBER * (numbers + magnitudes)


def load_peft(folder: Path) -> Adapter:
    """Read a LoRA or DoRA adapter that PEFT, TRL or finetrial wrote.

    Raises:
        UserError: a file is missing, the adapter is neither plain LoRA nor DoRA or is meant for a changed base, or its
            tensors do not pair up.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name}; expected a folder that PEFT's save_pretrained wrote")
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA":
        raise UserError(f"{folder / CONFIG}: peft_type is {config.get('peft_type')!r}, expected 'LORA'")
    used = [field for field in UNSUPPORTED if config.get(field)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if used:
        raise UserError(f"{folder / CONFIG}: uses {', '.join(used)}; finetrial stacks plain LoRA and DoRA adapters")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.startswith(REBASED):
        raise UserError(
            f"{folder / CONFIG}: init_lora_weights is {init!r}, so the weights belong to a base that was changed; save "
            "it with PEFT's path_initial_model_for_weight_conversion, which makes of it an adapter of the plain base"
        )
    weights, magnitudes = _tensors(folder / WEIGHTS)
    if bool(config.get("use_dora")) != bool(magnitudes) or (magnitudes and set(magnitudes) != set(weights)):
        raise UserError(
            f"{folder}: use_dora is {bool(config.get('use_dora'))} and {len(magnitudes)} of {len(weights)} layers have "
            f"a '{MAGNITUDE[1:]}'; expected one for every layer with DoRA and none without"
        )
    targets = config["target_modules"]
    return Adapter(
        rank=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        rslora=bool(config.get("use_rslora", False)),
        dropout=float(config.get("lora_dropout", 0.0)),
        targets=targets if isinstance(targets, str) else tuple(sorted(targets)),
        weights=weights,
        magnitudes=magnitudes or None,
    )


def _tensors(file: Path) -> tuple[dict[str, tuple], dict[str, Tensor]]:
    """Module path -> (A_IR, B_RO), and module path -> m_O."""
    tensors = load_file(file)
    halves: dict[str, dict[str, str]] = {}
    magnitudes = {}
    for name in tensors:
        if name.startswith(PREFIX) and name.endswith(MAGNITUDE):
            magnitudes[name.removeprefix(PREFIX).removesuffix(MAGNITUDE)] = tensors[name].float()
            continue
        path, _, half = name.removeprefix(PREFIX).rpartition(".lora_")
        if not name.startswith(PREFIX) or half not in ("A.weight", "B.weight"):
            raise UserError(f"{file}: unexpected tensor '{name}', expected '{PREFIX}<layer>.lora_A.weight' or B")
        halves.setdefault(path, {})[half[0]] = name
    weights = {}
    for path, pair in halves.items():
        if set(pair) != {"A", "B"}:
            raise UserError(f"{file}: layer '{path}' has only lora_{'/'.join(pair)}, expected both A and B")
        weights[path] = tuple(tensors[pair[half]].float().T.contiguous() for half in "AB")
    return weights, magnitudes
