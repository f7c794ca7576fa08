"""How much of an adapter's rank is used, and the best adapter of a smaller rank (LoRA-Squeeze, arXiv:2602.10993).

The change of a layer's weights is ΔW = s A B. Its singular values come from the thin factors alone: A = Q_A R_A,
B^T = Q_B R_B, and the small core R_A R_B^T = U S V^T has the singular values of A B. Keeping the k largest is the
best approximation of rank k (Eckart and Young), and keeps the share V(k) = Σ_{i≤k} S_i² / Σ S_i² of the layer's
energy ‖ΔW‖². V measures the change of weights: an evaluation says what a smaller rank does to a task.

An adapter that started from factors of the base (PiSSA, OLoRA) has twice its trained rank and is squeezed like any
other: ΔW is what it adds to the plain base. What DoRA changes has no small rank, since magnitudes rescale whole rows of
W: its adapters are refused.

Shapes: I input and O output features of a linear layer, R rank of the adapter, K the smaller rank, L adapted layers;
P = min(I, R), Q = min(O, R) and M = min(P, Q), which are R unless a layer has fewer features than that.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetrial.errors import UserError
from finetrial.model.adapters import Adapter
from finetrial.model.peft_format import CONFIG, load_peft, save_peft

NOTE = "retention measures the change of weights, not task quality: evaluate the squeezed adapter before you use it"


@dataclass(frozen=True)
class SqueezeReport:
    """Singular values of an adapter's layers and what each rank would keep of them."""

    rank: int
    """Rank of the adapter."""
    singular_values: Mapping[str, np.ndarray]
    """Module path -> the R singular values of ΔW = s A B, largest first."""

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Module paths, in the adapter's order."""
        return tuple(self.singular_values)

    @cached_property
    def energy_LR(self) -> np.ndarray:
        """Squared singular values."""
        return np.stack([self.singular_values[path] for path in self.layers]) ** 2

    @cached_property
    def retention_LR(self) -> np.ndarray:
        """V(k) for k = 1 .. R; a layer that changes nothing loses nothing and retains 1."""
        kept_LR = np.cumsum(self.energy_LR, axis=1)
        return np.divide(kept_LR, kept_LR[:, -1:], out=np.ones_like(kept_LR), where=kept_LR[:, -1:] > 0)

    @cached_property
    def share_L(self) -> np.ndarray:
        """Each layer's share of the energy of the whole adapter; zeros where nothing changes at all."""
        energy_L = self.energy_LR.sum(axis=1)
        return energy_L / energy_L.sum() if energy_L.any() else energy_L

    @property
    def zero_layers(self) -> list[str]:
        """Layers that change nothing, as all do before training."""
        return [path for path, energy_R in zip(self.layers, self.energy_LR, strict=True) if not energy_R.any()]

    def at(self, rank: int) -> dict[str, Any]:
        """What `rank` keeps: the mean over layers, the worst layer, and the share of the whole adapter's energy.

        Raises:
            UserError: the rank is below 1 or above the adapter's.
        """
        _check_rank(rank, self.rank)
        retention_L = self.retention_LR[:, rank - 1]
        worst = int(np.lexsort(self.retention_LR[:, :rank].T)[0])  # least at this rank, ties by the rank below
        return {
            "rank": rank,
            "mean": float(retention_L.mean()),
            "min": float(retention_L[worst]),
            "worst_layer": self.layers[worst],
            "total": float(self.share_L @ retention_L) if self.share_L.any() else 1.0,
        }

    def facts(self) -> dict[str, Any]:
        """The report in JSON types: `ranks` (one object per rank) and `layers` (one per layer)."""
        return {
            "source_rank": self.rank,
            "ranks": [self.at(rank) for rank in range(1, self.rank + 1)],
            "layers": {
                path: {
                    "energy_share": float(self.share_L[i]),
                    "singular_values": self.singular_values[path].tolist(),
                    "retention": self.retention_LR[i].tolist(),
                }
                for i, path in enumerate(self.layers)
            },
            "zero_layers": self.zero_layers,
            "note": NOTE,
        }


@dataclass(frozen=True)
class Recommendation:
    """The smallest rank that keeps enough of every layer."""

    min_variance_retention: float
    source_rank: int
    rank: int
    """Smallest rank at which the mean and the worst layer both reach the threshold."""
    mean_rank: int
    """What the mean over layers alone would have said; smaller where it hides a bad layer."""
    mean: float
    """Mean retention at `rank`."""
    min: float
    """Retention of the worst layer at `rank`."""
    worst_layer: str
    """The layer that loses most at `rank`."""
    min_at_mean_rank: float
    """Retention of the worst layer if `mean_rank` were taken."""

    def facts(self) -> dict[str, Any]:
        """The recommendation in JSON types; `recommended_rank` is what manifests carry."""
        return {
            "recommended_rank": self.rank,
            "source_rank": self.source_rank,
            "min_variance_retention": self.min_variance_retention,
            "mean": self.mean,
            "min": self.min,
            "worst_layer": self.worst_layer,
            "rank_by_mean_alone": self.mean_rank,
            "min_at_rank_by_mean_alone": self.min_at_mean_rank,
            "note": NOTE,
        }


def analyse(adapter: Adapter) -> SqueezeReport:
    """Singular values of every layer of `adapter`, in float64.

    Raises:
        UserError: the adapter has no layers or has magnitudes (DoRA), or a layer holds numbers that are not finite.
    """
    _check_plain(adapter)
    if not adapter.weights:
        raise UserError("the adapter has no layers: there is nothing to squeeze")
    values = {}
    for path, (a_IR, b_RO) in adapter.weights.items():
        _, s_M, _ = _decompose(path, a_IR, b_RO)
        values[path] = F.pad(adapter.scale * s_M, (0, adapter.rank - len(s_M))).numpy()
    return SqueezeReport(adapter.rank, values)


def recommend(report: SqueezeReport, min_variance_retention: float = 0.95) -> Recommendation:
    """The smallest rank whose mean and worst layer both retain at least `min_variance_retention`.

    The method's threshold is one on the mean over layers. The mean can sit above it while one layer has lost most of
    what it learned, so the worst layer must reach it too, which decides: a mean is never below the minimum.

    Raises:
        UserError: the threshold is not in (0, 1].
    """
    if not 0 < min_variance_retention <= 1:
        raise UserError(f"min_variance_retention {min_variance_retention}: expected a share above 0 and at most 1")
    min_R, mean_R = report.retention_LR.min(axis=0), report.retention_LR.mean(axis=0)
    rank = 1 + int(np.argmax(min_R >= min_variance_retention))
    mean_rank = min(rank, 1 + int(np.argmax(mean_R >= min_variance_retention)))
    there = report.at(rank)
    return Recommendation(
        min_variance_retention=min_variance_retention,
        source_rank=report.rank,
        rank=rank,
        mean_rank=mean_rank,
        mean=there["mean"],
        min=there["min"],
        worst_layer=there["worst_layer"],
        min_at_mean_rank=float(min_R[mean_rank - 1]),
    )


def squeeze(adapter: Adapter, rank: int) -> Adapter:
    """The adapter of `rank` that is nearest to `adapter`, layer by layer, at the same scale.

    A' = U √S and B' = √S V^T of the `rank` largest singular values. alpha' = alpha K / R, or alpha √(K / R) with
    rsLoRA, is a fraction where it must be: rounding it would rescale every layer. At the adapter's own rank there is
    nothing to approximate and the adapter is returned as it is. The state of an optimiser does not carry over.

    Raises:
        UserError: the rank is below 1 or above the adapter's, the adapter has magnitudes (DoRA), or a layer holds
            numbers that are not finite.
    """
    _check_plain(adapter)
    _check_rank(rank, adapter.rank)
    if rank == adapter.rank:
        return adapter
    share = rank / adapter.rank
    alpha = adapter.alpha * (sqrt(share) if adapter.rslora else share)
    squeezed = replace(adapter, rank=rank, alpha=alpha, weights={}, frozen=0)
    rounding = adapter.scale / squeezed.scale if adapter.scale else 1.0  # 1, but for the last bit of alpha
    weights = {}
    for path, (a_IR, b_RO) in adapter.weights.items():
        u_IM, s_M, v_MO = _decompose(path, a_IR, b_RO)
        root_K = (s_M[:rank] * rounding).sqrt()
        missing = rank - len(root_K)  # of a layer that has fewer features than the rank
        a_IK = F.pad(u_IM[:, :rank] * root_K, (0, missing))
        b_KO = F.pad(root_K[:, None] * v_MO[:rank], (0, 0, 0, missing))
        weights[path] = (a_IK.float().contiguous(), b_KO.float().contiguous())
    return replace(squeezed, weights=weights)


def squeeze_folder(source: Path, rank: int, target: Path) -> Adapter:
    """Squeeze the adapter in PEFT's format at `source` and write it, whole or not at all, to `target`.

    Raises:
        UserError: `target` exists, `source` is no plain LoRA adapter, or the rank is not possible.
    """
    if target.exists():
        raise UserError(f"{target} exists; name another folder")
    squeezed = squeeze(load_peft(source), rank)
    config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        save_peft(squeezed, partial, config.get("base_model_name_or_path") or "", config.get("revision"))
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return squeezed


def _decompose(path: str, a_IR: Tensor, b_RO: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (I, M), S (M) and V^T (M, O) of A B, without ever forming the product."""
    if not (a_IR.isfinite().all() and b_RO.isfinite().all()):
        raise UserError(f"adapter layer '{path}' holds numbers that are not finite; its training diverged")
    a_IP, a_PR = torch.linalg.qr(a_IR.double())
    b_OQ, b_QR = torch.linalg.qr(b_RO.double().T)
    u_PM, s_M, v_MQ = torch.linalg.svd(a_PR @ b_QR.T, full_matrices=False)
    return a_IP @ u_PM, s_M, v_MQ @ b_OQ.T


def _check_plain(adapter: Adapter) -> None:
    if adapter.magnitudes is not None:
        raise UserError(
            "a DoRA adapter cannot be squeezed: its magnitudes rescale whole rows of the base's weights, which no "
            "adapter of small rank does; expected a LoRA adapter without them"
        )


def _check_rank(rank: int, source: int) -> None:
    if not 1 <= rank <= source:
        raise UserError(f"rank {rank}: expected 1 to {source}, the rank of the adapter")
