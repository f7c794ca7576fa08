"""What a run learns from in one step, and what its rows pull the adapters towards.

Whatever the objective, a step is rows of tokens, and a loss is a function of the log-probabilities that the pass
gives them. Its slope with respect to each log-probability is a number per token, so one backward pass through the
model, weighted with these numbers, serves all runs of a pass, each with its own loss.

Shapes: S rows of a pass, M supervised tokens of a pass, m those of one run or row.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetrial.model.distribution import TokenStats
from finetrial.model.loss import Stream
from finetrial.train.batches import Place, layout
from finetrial.train.policy_loss import Rows, policy_loss
from finetrial.train.rl_config import LossConfig
from finetrial.train.runs import RunData
from finetrial.train.term_config import AnchorConfig

MAIN = "main"
"""The term of the loss that a run is trained for; every other one is auxiliary."""


@dataclass(frozen=True)
class Objective:
    """What a run's rows are worth to it, the same in every step."""

    name: str
    """Of the run, for messages."""
    policy: LossConfig | None
    """None for supervised rows."""
    dft: bool
    """Whether a supervised token's loss weighs as much as the adapter finds it likely."""
    temperature: float
    """At which the policy samples, and at which its probabilities are taken; 1 for supervised rows."""
    anchor: AnchorConfig | None
    """None where it never acts."""

    @classmethod
    def of(cls, run: RunData) -> "Objective":
        """The objective of a run."""
        rl = None if run.practice is None else run.practice.rl
        return cls(
            name=run.name,
            policy=None if rl is None else rl.loss,
            dft=rl is None and run.train.token_weighting == "dft",
            temperature=1.0 if rl is None else rl.sampling.temperature,
            anchor=run.anchor if run.anchor is not None and run.anchor.coef else None,
        )


@dataclass(frozen=True)
class PolicyTokens:
    """What a policy loss knows of a completion's tokens besides their log-probability under the adapter."""

    advantage_m: np.ndarray
    sampler_logp_m: np.ndarray
    """Under the distribution that the completion was drawn from."""
    old_logp_m: np.ndarray | None
    """Under the adapter before the step's first update; None where this is the first, whose own it is."""
    base_logp_m: np.ndarray | None
    """Under the frozen base."""


@dataclass(frozen=True)
class Row:
    """One sequence of an update."""

    stream: Stream
    weight: float
    """Of each supervised token's loss; the denominator is that of the run's whole update."""
    policy: PolicyTokens | None = None
    """None: the loss is the negative log-likelihood."""
    term: str = MAIN
    """Which term of the loss the row belongs to; of an auxiliary one the loss is weight · negative log-likelihood with
    a weight of either sign, and no reported loss counts it."""


@dataclass(frozen=True)
class Lesson:
    """One run's rows of one step."""

    updates: tuple[tuple[Row, ...], ...]
    """Rows of each optimiser update; an update without rows is left out."""
    rows: int
    """Rows or completions that the step stands for."""
    tokens: int
    """Tokens of these rows, without padding."""
    supervised_tokens: int
    facts: Mapping[str, Any]
    """For the row of metrics."""
    logs: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """File name -> further lines that tell of the step."""
    sampling_s: float = 0.0
    """Seconds of sampling and grading, which the cohort shares."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Auxiliary term of some rows -> the share of the gradient's norm that it should have. The loop then multiplies the
    term's gradient with what gives that share; the rows weigh as for a factor of 1."""


@dataclass(frozen=True)
class Anchored:
    """The tokens of a pass that an anchor holds (M,)."""

    mask_M: Tensor
    """bool: whether it does."""
    weight_M: Tensor
    """float64 coefficient times share of the update; 0 where it does not."""
    cap_M: Tensor
    """float64 divergence beyond which a token pulls no more; infinite where there is no cap."""

    def pull(self, divergence_C: Tensor, which: slice = slice(None)) -> Tensor:
        """Weights of the tokens' divergences: none beyond the cap, whose value is constant there."""
        return torch.where(divergence_C <= self.cap_M[which], self.weight_M[which], 0.0)

    def pick(self, index_M: Tensor | None) -> "Anchored":
        """Some of the tokens, in that order; None for all."""
        if index_M is None:
            return self
        return Anchored(*(part.index_select(0, index_M) for part in (self.mask_M, self.weight_M, self.cap_M)))


@dataclass
class Tally:
    """Sums over the tokens of a run's update; rows of the main term, unless a field says otherwise."""

    tokens: int = 0
    nll: float = 0.0
    """Of supervised tokens."""
    weighted: float | None = None
    """Of supervised tokens, each times the probability of its target; None where the loss is not weighed so."""
    policy: float = 0.0
    """Weighted losses of a policy."""
    clipped: float = 0.0
    ratio: float = 0.0
    drift: float = 0.0
    """Of ratio - 1 - log ratio, an estimate of KL(old policy || policy)."""
    base_kl: float | None = None
    """Of the configured estimate of the divergence from the base; None where the base was not asked."""
    anchored: int = 0
    """Tokens that an anchor holds."""
    anchor: float = 0.0
    """Their divergences from the base, uncapped."""
    capped: int = 0
    """How many of them lie beyond the cap."""
    terms: dict[str, float] = field(default_factory=dict)
    """Auxiliary term -> the weighted losses of its rows."""

    @property
    def loss(self) -> float:
        """The update's loss: nats per supervised token, or the policy's; no auxiliary term is in it, and 0 where there
        is nothing else."""
        return self.policy + self.nll / self.tokens if self.tokens else 0.0


@dataclass
class Report:
    """A run's updates of one step."""

    tallies: list[Tally] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """What was measured of the gradients of auxiliary terms, for the row of metrics."""

    def add(self, tally: Tally, norm: float) -> None:
        """Enter an update that was made."""
        self.tallies.append(tally)
        self.norms.append(norm)

    @property
    def loss(self) -> float | None:
        """Mean over the updates with rows of the main term; None where there was none."""
        losses = [tally.loss for tally in self.tallies if tally.tokens]
        return sum(losses) / len(losses) if losses else None

    @property
    def norm(self) -> float | None:
        """Mean gradient norm, before the clip."""
        return sum(self.norms) / len(self.norms) if self.norms else None

    def per_token(self, name: str) -> float | None:
        """Mean over tokens of a tally's sum; None where there was none, or nothing was measured."""
        tokens = sum(tally.tokens for tally in self.tallies)
        found = [value for tally in self.tallies if (value := getattr(tally, name)) is not None]
        return sum(found) / tokens if tokens and found else None


def per_token(values_S: Sequence[float], counts_S: Sequence[int], device: torch.device) -> Tensor | None:
    """A row's temperature at each of its tokens (M,); None where all are 1."""
    if all(value == 1.0 for value in values_S):
        return None
    return torch.tensor(values_S, device=device).repeat_interleave(torch.tensor(counts_S, device=device))


def passes(rows_N: Sequence[Sequence[Row]], budget: int, device: str) -> Iterator[tuple[str, list[Place]]]:
    """Passes of an update, each of rows of one term: the term and the rows' places; runs lie side by side.

    Args:
        rows_N: rows of each run.
        budget: most padded tokens of a pass.
        device: `cpu` or `cuda`.
    """
    for term in sorted({row.term for rows in rows_N for row in rows}, key=lambda term: (term != MAIN, term)):
        mine = [[place for place, row in enumerate(rows) if row.term == term] for rows in rows_N]
        lengths = [[rows[place].stream.tokens for place in own] for rows, own in zip(rows_N, mine, strict=True)]
        for places in layout(lengths, budget, device):
            yield term, [replace(at, place=mine[at.run][at.place]) for at in places]


def likelihood_weight(share_M: Tensor, nll_M: Tensor, dft_M: Tensor | bool) -> Tensor:
    """Weights (M,) of supervised tokens' negative log-likelihoods, constants of the gradient.

    A token's share of its update; with DFT (Wu et al. 2025, arXiv:2508.05629, equation 9) times the probability that
    the adapter gives it. Beside an anchor of kind `ref_student` that is ASFT (arXiv:2509.23753, equation 6).
    """
    if isinstance(dft_M, bool):
        return share_M * nll_M.neg().exp() if dft_M else share_M
    return torch.where(dft_M, share_M * nll_M.neg().exp(), share_M)


@dataclass(frozen=True)
class Pull:
    """Losses of a pass and their weights, as `AdapterStack.backward` takes them."""

    losses: list[tuple[Tensor, Tensor]]
    """Of everything that the pass is there for."""
    apart: dict[str, tuple[Tensor, Tensor]]
    """Auxiliary term -> its part of that: `entropy` and `kl` of a policy, where they are asked for."""


def pull(
    rows: Sequence[Row],
    adapter_S: Sequence[int],
    counts_S: Sequence[int],
    stats: TokenStats,
    objectives: Sequence[Objective],
    tallies: Sequence[Tally],
    anchored: Anchored | None = None,
    apart: bool = False,
) -> Pull:
    """What a pass's rows pull at; adds to the runs' tallies.

    Args:
        rows: the pass's rows, ordered by run.
        adapter_S: run of each row.
        counts_S: supervised tokens of each row.
        stats: what the pass gave.
        objectives: per run.
        tallies: per run.
        anchored: the tokens that anchors hold; their divergences are in `stats`.
        apart: whether a policy's own auxiliary terms are wanted apart as well.
    """
    weight_M = torch.empty_like(stats.nll_M)
    bonus_M = None if stats.entropy_M is None else torch.zeros_like(stats.nll_M)
    kl_M = torch.zeros_like(stats.nll_M) if apart else None
    start = 0
    for (n, term), members in itertools.groupby(range(len(rows)), key=lambda s: (adapter_S[s], rows[s].term)):
        mine = list(members)
        counts = torch.tensor([counts_S[s] for s in mine])
        end = start + int(counts.sum())
        weight_S = torch.tensor([rows[s].weight for s in mine], dtype=torch.float64)
        share_m = weight_S.repeat_interleave(counts).to(weight_M.device)
        nll_m, tally, objective = stats.nll_M[start:end].detach(), tallies[n], objectives[n]
        config = objective.policy
        if term == MAIN:
            tally.tokens += end - start
        if term != MAIN:
            weight_M[start:end] = share_m
            tally.terms[term] = tally.terms.get(term, 0.0) + float((share_m.double() * nll_m.double()).sum())
        elif config is None:
            weight_M[start:end] = likelihood_weight(share_m, nll_m, objective.dft)
            tally.nll += float(nll_m.double().sum())
            if objective.dft:
                weighted_m = nll_m.double() * nll_m.double().neg().exp()
                tally.weighted = (tally.weighted or 0.0) + float(weighted_m.sum())
        else:
            tokens = _policy_rows([rows[s] for s in mine], counts, -nll_m)
            found = policy_loss(config, -nll_m, tokens, share_m)
            weight_M[start:end] = -found.slope_M
            if bonus_M is not None:
                assert stats.entropy_M is not None
                bonus_M[start:end] = -config.entropy_coef * share_m
                tally.policy += float((bonus_M[start:end].double() * stats.entropy_M[start:end].detach()).sum())
            if kl_M is not None and config.kl_coef and config.kl_in == "loss":
                idle = replace(tokens, advantage_M=torch.zeros_like(tokens.advantage_M))
                kl_M[start:end] = -policy_loss(config, -nll_m, idle, share_m).slope_M
            ratio_m = found.ratio_M.double()
            tally.policy += float(found.loss_M.double().sum())
            tally.clipped += float(found.clipped_M.sum())
            tally.ratio += float(ratio_m.sum())
            tally.drift += float((ratio_m - 1 - ratio_m.log()).sum())
            if found.kl_M is not None:
                tally.base_kl = (tally.base_kl or 0.0) + float(found.kl_M.double().sum())
        if anchored is not None and stats.divergence_M is not None and term == MAIN:
            mask_m, divergence_m = anchored.mask_M[start:end], stats.divergence_M[start:end].detach().double()
            tally.anchored += int(mask_m.sum())
            tally.anchor += float(divergence_m.sum())
            tally.capped += int((divergence_m > anchored.cap_M[start:end]).sum())
        start = end
    losses = [(stats.nll_M, weight_M)]
    if bonus_M is not None and stats.entropy_M is not None:
        losses.append((stats.entropy_M, bonus_M))
    if anchored is not None and stats.divergence_M is not None:
        losses.append((stats.divergence_M, anchored.pull(stats.divergence_M.detach()).to(weight_M.dtype)))
    if stats.blend is not None:
        losses.append((stats.blend, torch.ones_like(stats.blend)))
    alone = {}
    if kl_M is not None:
        alone["kl"] = stats.nll_M, kl_M
        if bonus_M is not None and stats.entropy_M is not None:
            alone["entropy"] = stats.entropy_M, bonus_M
    return Pull([(loss, weight) for loss, weight in losses if loss.requires_grad], alone)


def _policy_rows(rows: Sequence[Row], counts: Tensor, logp_m: Tensor) -> Rows:
    policies = [row.policy for row in rows]

    def joined(name: str) -> Tensor | None:
        parts = [getattr(policy, name) for policy in policies]
        if any(part is None for part in parts):
            return None
        return torch.from_numpy(np.concatenate(parts)).to(logp_m.device, logp_m.dtype)

    advantage_m, sampler_logp_m = joined("advantage_m"), joined("sampler_logp_m")
    assert advantage_m is not None
    assert sampler_logp_m is not None
    old_logp_m = joined("old_logp_m")
    return Rows(
        advantage_M=advantage_m,
        old_logp_M=logp_m if old_logp_m is None else old_logp_m,
        sampler_logp_M=sampler_logp_m,
        ref_logp_M=joined("base_logp_m"),
        mask_M=torch.ones_like(logp_m, dtype=torch.bool),
        row_M=torch.arange(len(rows)).repeat_interleave(counts).to(logp_m.device),
    )
