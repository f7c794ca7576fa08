"""The anchor: a divergence from the frozen base, added to the loss of the tokens that a run learns from.

There is no second model: the base is the same stack's rows without an adapter, and what it says of a row depends on
the row alone, so it is read once for all runs of a cohort and all epochs.

Shapes: S rows of a pass, M supervised tokens of a pass, m of one row, C of a chunk, H hidden features.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetrial.errors import UserError
from finetrial.model.adapters import AdapterStack
from finetrial.model.distribution import Divergence, Head, TokenStats, TopReference, token_stats, top_reference
from finetrial.model.loss import Batch, Stream, collate, supervised_hidden
from finetrial.train.batches import layout
from finetrial.train.lesson import MAIN, Anchored, Lesson, Objective, Report, Row, likelihood_weight
from finetrial.train.term_config import AnchorConfig

REFERENCE_BYTES = 2**30
"""Most that is kept of what the base said; a row beyond it is read anew wherever it comes up."""

Reference = Tensor | TopReference
"""Of one row: hidden states (m, H), or the likeliest tokens."""


def anchor_coefficient(config: AnchorConfig, step: int, steps: int) -> float:
    """Weight of the anchor in step `step` (0, 1, ..., steps - 1).

    0 before `start_step`; then coef · min(1, t / warmup_steps) with t = step - start_step, at once without a warm-up.
    Over the last `decay_steps` the weight falls on a line to `final_coef`, which the last step has.
    """
    since = step - config.start_step
    if since < 0 or not config.coef:
        return 0.0
    rise = min(1.0, since / config.warmup_steps) if config.warmup_steps else 1.0
    fall = max(0.0, 1 - (steps - 1 - step) / config.decay_steps) if config.decay_steps else 0.0
    return rise * (config.coef + (config.final_coef - config.coef) * fall)


class References:
    """What the base says of rows, by their content.

    A row that several steps may want is read by itself: then neither neighbours in a pass nor an interruption change a
    bit of it, and a kept reference is the one that a new reading would give. Completions are new in every step; they
    are read together and forgotten with the step.
    """

    def __init__(self, model: nn.Module, head: Head, stack: AdapterStack, budget: int, limit: int = REFERENCE_BYTES):
        self.model, self.head, self.stack, self.budget, self.limit = model, head, stack, budget, limit
        self.kept: dict[tuple[Any, ...], Reference] = {}
        self.passing: dict[tuple[Any, ...], Reference] = {}
        """Of this step only."""
        self.bytes = 0
        """Held by `kept`."""

    def read(self, wanted: Iterable[tuple[Row, AnchorConfig, float]]) -> None:
        """Make sure that the references of a step are there: rows, their anchors and temperatures."""
        self.passing = {}
        lone: dict[bytes, Stream] = {}
        together: dict[bytes, Stream] = {}
        forms: dict[bytes, set[tuple[int | None, float]]] = {}
        for row, config, temperature in wanted:
            key = _key(row.stream, config, temperature)
            if key not in self.kept:
                forms.setdefault(key[0], set()).add(key[1:])
                (lone if row.policy is None else together)[key[0]] = row.stream
        for rows, budget in ((lone, 1), (together, self.budget)):
            for content, hidden_mH in self._hidden(rows, budget):
                for k, temperature in forms[content]:
                    self._keep((content, k, temperature), self._cut(hidden_mH, k, temperature), rows is lone)

    def of(self, stream: Stream, config: AnchorConfig, temperature: float) -> Reference:
        """The reference of a row that was read in this step or is kept from an earlier one."""
        key = _key(stream, config, temperature)
        found = self.kept.get(key)
        return self.passing[key] if found is None else found

    def _hidden(self, rows: dict[bytes, Stream], budget: int) -> Iterable[tuple[bytes, Tensor]]:
        contents, device = list(rows), self.head.weight_VH.device
        for places in layout([[rows[content].tokens for content in contents]], budget, device.type):
            mine = [contents[at.place] for at in places]
            batch = collate([rows[content] for content in mine], device)
            with self.stack.rows([None] * len(mine)), torch.no_grad():
                parts = supervised_hidden(self.model, batch).split(batch.counts_S)
            yield from zip(mine, parts, strict=True)

    def _cut(self, hidden_mH: Tensor, k: int | None, temperature: float) -> Reference:
        if k is None:
            return hidden_mH
        warm_m = None if temperature == 1.0 else hidden_mH.new_full((len(hidden_mH),), temperature)
        return top_reference(hidden_mH, self.head, k, warm_m)

    def _keep(self, key: tuple[Any, ...], found: Reference, again: bool) -> None:
        tensors = [found] if isinstance(found, Tensor) else [found.ids_MK, found.logp_MK, found.tail_M]
        size = sum(tensor.nbytes for tensor in tensors)
        if again and self.bytes + size <= self.limit:
            self.kept[key] = found.clone() if isinstance(found, Tensor) else found
            self.bytes += size
        else:
            self.passing[key] = found


def _key(stream: Stream, config: AnchorConfig, temperature: float) -> tuple[bytes, int | None, float]:
    """Content of a row and the form in which its reference is wanted; hidden states have no temperature."""
    content = hashlib.blake2b(stream.ids_T.tobytes(), digest_size=20)
    content.update(stream.position_M.tobytes())
    return content.digest(), config.top_k, 1.0 if config.top_k is None else temperature


@dataclass(frozen=True)
class Group:
    """Tokens of a pass of which the same is asked."""

    index_M: Tensor | None
    """int64 which tokens; None for all of them."""
    kind: Divergence | None
    """None: no divergence."""
    js_beta: float
    reference: Reference | None
    blends: bool
    """Whether the weights of likelihood and divergence are functions of the two, so that one product serves both."""


class Anchors:
    """The anchors of a cohort.

    Raises:
        UserError: `top_k` leaves nothing of the base's vocabulary over.
    """

    def __init__(self, objectives: Sequence[Objective], references: References):
        self.objectives, self.references = objectives, references
        self.coef_N = [0.0] * len(objectives)
        for objective in objectives:
            vocabulary = len(references.head.weight_VH)
            if objective.anchor is not None and (objective.anchor.top_k or 0) >= vocabulary:
                raise UserError(
                    f"{objective.name}: [anchor] top_k is {objective.anchor.top_k}; expected a whole number from 1 to "
                    f"{vocabulary - 1}, one below the base's vocabulary of {vocabulary} (leave it out for all of it)"
                )

    def begin(self, step: int, steps: int, lessons: Sequence[Lesson]) -> None:
        """Set the weights of a step and have the base read its rows, those that it does not know yet."""
        anchors = [objective.anchor for objective in self.objectives]
        self.coef_N = [0.0 if config is None else anchor_coefficient(config, step, steps) for config in anchors]
        self.references.read(
            (row, config, objective.temperature)
            for objective, config, coef, lesson in zip(self.objectives, anchors, self.coef_N, lessons, strict=True)
            if config is not None and coef
            for update in lesson.updates
            for row in update
            if row.term == MAIN
        )

    def acts(self, n: int, rows: Sequence[Row]) -> bool:
        """Whether an update of run `n` is anchored."""
        return bool(self.coef_N[n]) and any(row.term == MAIN for row in rows)

    def of(self, rows: Sequence[Row], adapter_S: Sequence[int], counts_S: Sequence[int]) -> Anchored | None:
        """The anchored tokens of a pass; None where there are none.

        With `tail_tokens` these are the last ones of each row, however long its neighbours are.
        """
        if not any(self.coef_N[n] and row.term == MAIN for row, n in zip(rows, adapter_S, strict=True)):
            return None
        device = self.references.head.weight_VH.device
        weight_S, cap_S, held_S = np.zeros(len(rows)), np.full(len(rows), np.inf), np.zeros(len(rows), dtype=int)
        for s, (row, n, count) in enumerate(zip(rows, adapter_S, counts_S, strict=True)):
            config = self.objectives[n].anchor
            if config is not None and self.coef_N[n] and row.term == MAIN:
                weight_S[s] = self.coef_N[n] * row.weight
                cap_S[s] = np.inf if config.cap is None else config.cap
                held_S[s] = min(config.tail_tokens or count, count)
        mask_M = np.concatenate([np.arange(m) >= m - h for m, h in zip(counts_S, held_S, strict=True)])
        weight_M = np.where(mask_M, np.repeat(weight_S, counts_S), 0.0)
        return Anchored(
            mask_M=torch.from_numpy(mask_M).to(device),
            weight_M=torch.from_numpy(weight_M).to(device),
            cap_M=torch.from_numpy(np.repeat(cap_S, counts_S)).to(device),
        )

    def measure(
        self,
        hidden_MH: Tensor,
        rows: Sequence[Row],
        adapter_S: Sequence[int],
        batch: Batch,
        anchored: Anchored | None,
        temperature_M: Tensor | None,
        entropy: bool,
        blend: bool = True,
    ) -> TokenStats:
        """`token_stats` of a pass whose runs have different anchors or none; a token without one has divergence 0.

        Args:
            hidden_MH: at the supervised positions.
            rows: of the pass.
            adapter_S: run of each.
            batch: the rows as the model read them.
            anchored: what `of` gave.
            temperature_M: of each token.
            entropy: whether any run wants it.
            blend: whether likelihood and divergence may go through the head as one; then only their weighted sum is
                differentiable where they did.
        """
        head = self.references.head
        if anchored is None:
            return token_stats(hidden_MH, batch.target_M, head, temperature_M=temperature_M, entropy=entropy)
        share_M = torch.tensor([row.weight for row in rows], dtype=torch.float64, device=hidden_MH.device)
        share_M = share_M.repeat_interleave(torch.tensor(batch.counts_S, device=hidden_MH.device))
        dft_M = torch.tensor([self.objectives[n].dft for n in adapter_S], device=hidden_MH.device)
        dft_M = dft_M.repeat_interleave(torch.tensor(batch.counts_S, device=hidden_MH.device))
        groups = self._groups(rows, adapter_S, batch.counts_S, anchored, blend and not entropy)
        parts = []
        for group in groups:

            def pick(values_M: Tensor, index_M: Tensor | None = group.index_M) -> Tensor:
                return values_M if index_M is None else values_M.index_select(0, index_M)

            held, own_M, by_p_M = anchored.pick(group.index_M), pick(share_M), pick(dft_M)

            def weigh(
                which: slice,
                nll_C: Tensor,
                divergence_C: Tensor,
                held: Anchored = held,
                own_M: Tensor = own_M,
                by_p_M: Tensor = by_p_M,
            ) -> tuple[Tensor, Tensor]:
                return likelihood_weight(own_M[which], nll_C, by_p_M[which]), held.pull(divergence_C, which)

            parts.append(
                token_stats(
                    pick(hidden_MH),
                    pick(batch.target_M),
                    head,
                    temperature_M=None if temperature_M is None else pick(temperature_M),
                    entropy=entropy,
                    reference_MH=group.reference,
                    divergence=group.kind,
                    js_beta=group.js_beta,
                    weigh=weigh if group.blends else None,
                )
            )
        return _joined(groups, parts)

    def alone(
        self,
        hidden_MH: Tensor,
        rows: Sequence[Row],
        adapter_S: Sequence[int],
        batch: Batch,
        anchored: Anchored,
        temperature_M: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Divergences and their weights by themselves, for a backward pass that measures the anchor's gradient."""
        stats = self.measure(hidden_MH, rows, adapter_S, batch, anchored, temperature_M, entropy=False, blend=False)
        assert stats.divergence_M is not None
        return stats.divergence_M, anchored.pull(stats.divergence_M.detach()).to(stats.divergence_M.dtype)

    def _groups(
        self,
        rows: Sequence[Row],
        adapter_S: Sequence[int],
        counts_S: Sequence[int],
        anchored: Anchored,
        blend: bool,
    ) -> list[Group]:
        """Tokens by what is asked of them, in the order in which it first is."""
        places: dict[tuple[Any, ...], list[np.ndarray]] = {}
        references: dict[tuple[Any, ...], list[Reference]] = {}
        mask_M, start = anchored.mask_M.cpu().numpy(), 0
        for row, n, count in zip(rows, adapter_S, counts_S, strict=True):
            objective, here_m = self.objectives[n], mask_M[start : start + count]
            if not here_m.all():
                places.setdefault((None, 0.5, None, False), []).append(start + np.flatnonzero(~here_m))
            if here_m.any():
                config = objective.anchor
                assert config is not None
                ask = (config.kind, config.js_beta, config.top_k, blend and objective.policy is None)
                places.setdefault(ask, []).append(start + np.flatnonzero(here_m))
                found = self.references.of(row.stream, config, objective.temperature)
                references.setdefault(ask, []).append(_last(found, int(here_m.sum())))
            start += count
        device = self.references.head.weight_VH.device
        return [
            Group(
                index_M=None if len(places) == 1 else torch.from_numpy(np.concatenate(parts)).to(device),
                kind=ask[0],
                js_beta=ask[1],
                reference=None if ask[0] is None else _stacked(references[ask]),
                blends=ask[3],
            )
            for ask, parts in places.items()
        ]


def _last(reference: Reference, count: int) -> Reference:
    if isinstance(reference, Tensor):
        return reference[-count:]
    return TopReference(reference.ids_MK[-count:], reference.logp_MK[-count:], reference.tail_M[-count:])


def _stacked(references: Sequence[Reference]) -> Reference:
    hidden = [reference for reference in references if isinstance(reference, Tensor)]
    if hidden:
        return torch.cat(hidden)
    tops = [reference for reference in references if isinstance(reference, TopReference)]
    return TopReference(
        torch.cat([top.ids_MK for top in tops]),
        torch.cat([top.logp_MK for top in tops]),
        torch.cat([top.tail_M for top in tops]),
    )


def _joined(groups: Sequence[Group], parts: Sequence[TokenStats]) -> TokenStats:
    """Back into the order of the pass."""
    divergences = [torch.zeros_like(p.nll_M) if p.divergence_M is None else p.divergence_M for p in parts]
    entropies = [p.entropy_M for p in parts if p.entropy_M is not None]
    blends = [p.blend for p in parts if p.blend is not None]
    blend = torch.stack(blends).sum() if blends else None
    bound = any(p.lower_bound for p in parts)
    indexes = [group.index_M for group in groups if group.index_M is not None]
    if not indexes:
        return TokenStats(parts[0].nll_M, entropies[0] if entropies else None, divergences[0], bound, blend)
    order_M = torch.cat(indexes).argsort()

    def ordered(values: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(values)).index_select(0, order_M)

    nll_M, divergence_M = ordered([p.nll_M for p in parts]), ordered(divergences)
    return TokenStats(nll_M, ordered(entropies) if entropies else None, divergence_M, bound, blend)


def objective_facts(objective: Objective, coef: float, report: Report) -> dict[str, Any]:
    """What a step's row of metrics says of the anchor, the weighting of tokens and the terms' gradients.

    `anchor_kl` is in nats per anchored token, whatever the kind and before the cap; with `top_k` it is a lower bound,
    and `anchor_lower_bound` says so. `weighted_loss` is the loss of DFT, `loss` the plain one.

    Args:
        objective: of the run.
        coef: weight of its anchor in the step.
        report: of the step.
    """
    facts: dict[str, Any] = {}
    weighted = report.per_token("weighted")
    if weighted is not None:
        facts["weighted_loss"] = weighted
    if objective.anchor is not None:
        facts["anchor_coef"] = coef
        tokens = sum(tally.anchored for tally in report.tallies)
        if tokens:
            facts["anchor_kl"] = sum(tally.anchor for tally in report.tallies) / tokens
            facts["anchor_tokens"] = tokens
            if objective.anchor.cap is not None:
                facts["anchor_capped_share"] = sum(tally.capped for tally in report.tallies) / tokens
            if objective.anchor.top_k is not None:
                facts["anchor_lower_bound"] = True
    return facts | report.facts
