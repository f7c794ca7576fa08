"""What each auxiliary term of a loss does to the gradient: its norm, its share and its direction.

The share of a term is ‖g_term‖ / (‖g_main‖ + Σ ‖g_auxiliary‖), each gradient taken alone, with its weight, before the
clip. A term whose gradient is exactly 0 teaches nothing, whatever its value is. Terms that ride on the main rows
(anchor, entropy, divergence of a policy) are measured at some updates only, by backward passes of their own beside
the one that trains; rows of a term of their own have a gradient of their own in every update.

Shapes: N runs, P numbers of one adapter.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from finetrial.train.lesson import MAIN, Objective, Report, Row
from finetrial.train.runs import Ledger, RunData

PROBES = 3
"""First updates of a term at which it is measured; after them at every power of four."""
WEAK, STRONG = 0.01, 0.9
"""Shares below and above which a term is worth a warning. A divergence from the base grows as the adapter moves, so
it is weak only if it never gets that far."""
FROM_BASE = ("anchor", "kl")
"""Terms that are divergences from the base: without a gradient until the adapter has moved, small until it is far."""
NOISE = 1e-6
"""Share below which a gradient is rounding, whose direction means nothing."""
DECAY = 0.9
"""Of the moving averages of norms that set a term's factor."""


@dataclass
class TermState:
    """What is known of an auxiliary term of a run; a checkpoint keeps it."""

    acted: int = 0
    """Updates in which it acted."""
    probes: list[dict[str, Any]] = field(default_factory=list)
    """Per measured update: step (1, 2, ...), norm, share, cosine with the main gradient (None where one of the two is
    no more than rounding), and whether the adapter had `moved`: before, a divergence from the base has no gradient."""
    rest_norm: float | None = None
    """Moving average of the norm of everything else; set where the term has a target."""
    term_norm: float | None = None
    """Moving average of its own norm, at a factor of 1."""

    @property
    def dead(self) -> bool:
        """Whether its gradient was exactly 0 at all measured updates of an adapter that had moved."""
        judged = [probe["norm"] for probe in self.probes if probe["moved"]]
        return self.acted >= PROBES and bool(judged) and not any(judged)


def is_probed(acted: int) -> bool:
    """Whether a term that has acted in so many updates is measured in the next one."""
    count = acted + 1
    return count <= PROBES or (count.bit_count() == 1 and count.bit_length() % 2 == 1)


def weight_for_share(share: float, main_norm: float, term_norm: float) -> float:
    """Factor f with f · term_norm / (main_norm + f · term_norm) = share; 0 for a term without a gradient.

    Raises:
        ValueError: the share is not inside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; it must lie inside (0, 1)")
    return share / (1 - share) * main_norm / term_norm if term_norm else 0.0


class Gradients:
    """A cohort's gradients of an update, by term.

    Args:
        grad_NP: what the optimiser takes; the main rows' gradient, terms that ride on them included, lands here.
        ledgers: of the runs.
    """

    def __init__(self, grad_NP: Tensor, ledgers: Sequence[Ledger]):
        self.grad_NP, self.ledgers = grad_NP, ledgers
        self.rows_NP: dict[str, Tensor] = {}
        """Of rows of an auxiliary term."""
        self.riding_NP: dict[str, Tensor] = {}
        """Of auxiliary terms of the main rows, parts of `grad_NP`; measured only."""
        self.acting: list[set[str]] = []
        self.due: list[set[str]] = []
        self.found: list[dict[str, TermState]] = []

    def begin(self, acting: Sequence[set[str]]) -> None:
        """Begin an update in which these auxiliary terms of each run act; what is in quarantine is measured no more."""
        self.acting = list(acting)
        self.due = [
            {t for t in terms if self.ledgers[n].quarantined_at is None and is_probed(self.state(n, t).acted)}
            for n, terms in enumerate(self.acting)
        ]
        self.grad_NP.zero_()
        for buffers in (self.rows_NP, self.riding_NP):
            for buffer_NP in buffers.values():
                buffer_NP.zero_()

    @property
    def probing(self) -> bool:
        """Whether a term has to be measured in this update."""
        return any(self.due)

    def acts(self, term: str) -> bool:
        """Whether a term acts in this update of any run."""
        return any(term in terms for terms in self.acting)

    def state(self, n: int, term: str) -> TermState:
        """What is known of a term of run `n`."""
        return TermState(**self.ledgers[n].terms.get(term, {}))

    def of(self, term: str) -> Tensor:
        """Where the gradient of rows of this term belongs."""
        if term == MAIN:
            return self.grad_NP
        return self.rows_NP.setdefault(term, torch.zeros_like(self.grad_NP))

    def apart(self, term: str) -> Tensor:
        """Where the gradient of an auxiliary term of the main rows is measured."""
        return self.riding_NP.setdefault(term, torch.zeros_like(self.grad_NP))

    def combine(self, shares: Sequence[Mapping[str, float]], step: int) -> None:
        """Add the gradients of auxiliary rows to `grad_NP`, each at its factor, and measure the terms that are due.

        Args:
            shares: per run, the share that rows of a term should have; without one their factor is 1.
            step: 1, 2, ...
        """
        self.found = [{term: self.state(n, term) for term in sorted(terms)} for n, terms in enumerate(self.acting)]
        main_NP = self.grad_NP.clone() if self.probing else None
        norms = {term: _norms(riding_NP) for term, riding_NP in self.riding_NP.items()} if self.probing else {}
        rest_N = _norms(self.grad_NP) if self.rows_NP else []
        for term, rows_NP in self.rows_NP.items():
            own_N, factor_N = _norms(rows_NP), [1.0] * len(self.found)
            for n, states in enumerate(self.found):
                if term in states and term in shares[n]:
                    factor_N[n] = _factor(states[term], shares[n][term], rest_N[n], own_N[n])
            rows_NP.mul_(rows_NP.new_tensor(factor_N)[:, None])
            self.grad_NP.add_(rows_NP)
            norms[term] = [factor * own for factor, own in zip(factor_N, own_N, strict=True)]
        if main_NP is not None:
            for riding_NP in self.riding_NP.values():
                main_NP.sub_(riding_NP)
            self._measure(main_NP, norms, step)
        for states in self.found:
            for state in states.values():
                state.acted += 1

    def _measure(self, main_NP: Tensor, norms: Mapping[str, Sequence[float]], step: int) -> None:
        """Norm, share and cosine of the terms that are due."""
        main_N = _norms(main_NP)
        every = self.rows_NP | self.riding_NP
        dots = {term: (main_NP.double() * grad_NP.double()).sum(dim=1).tolist() for term, grad_NP in every.items()}
        for n, states in enumerate(self.found):
            total = main_N[n] + sum(norms[term][n] for term in states)
            for term in self.due[n]:
                norm = norms[term][n]
                share, size = norm / total if total else None, main_N[n] * norm
                probe = {
                    "step": step,
                    "norm": norm,
                    "share": share,
                    "cosine": dots[term][n] / size if size and share and share > NOISE else None,
                    "moved": self.ledgers[n].updates > 0,
                }
                states[term].probes.append(probe)

    def teaches(self, n: int, report: Report, step: int) -> bool:
        """Enter what `combine` found of run `n` into its ledger and report; False, and quarantine, where a term of it
        teaches nothing."""
        ledger = self.ledgers[n]
        for term, state in self.found[n].items():
            ledger.terms[term] = asdict(state)
            if term in self.due[n]:
                probe = state.probes[-1]
                report.facts |= {f"grad_{name}_{term}": probe[name] for name in ("norm", "share", "cosine")}
            if state.dead:
                steps = ", ".join(str(probe["step"]) for probe in state.probes if probe["moved"])
                ledger.quarantined_at = step
                ledger.reason = f"the gradient of the term '{term}' is exactly 0 (steps {steps}): it teaches nothing"
        return ledger.quarantined_at is None


def _norms(grad_NP: Tensor) -> list[float]:
    return torch.linalg.vector_norm(grad_NP, dim=1).tolist()


def _factor(state: TermState, share: float, rest_norm: float, term_norm: float) -> float:
    """A term's factor from moving averages of the norms, of which this update's are the newest."""
    if not term_norm:
        return 0.0
    for name, norm in (("rest_norm", rest_norm), ("term_norm", term_norm)):
        before = getattr(state, name)
        setattr(state, name, norm if before is None else DECAY * before + (1 - DECAY) * norm)
    assert state.rest_norm is not None
    assert state.term_norm is not None
    return weight_for_share(share, state.rest_norm, state.term_norm)


def acting(objective: Objective, rows: Sequence[Row], anchored: bool) -> set[str]:
    """Auxiliary terms that act in an update of a run."""
    terms = {row.term for row in rows} - {MAIN}
    if anchored:
        terms.add("anchor")
    policy = objective.policy
    if policy is not None and any(row.policy is not None for row in rows):
        terms |= {"entropy"} if policy.entropy_coef else set()
        terms |= {"kl"} if policy.kl_coef and policy.kl_in == "loss" else set()
    return terms


def auxiliary_terms(run: RunData) -> set[str]:
    """Auxiliary terms that a run has, whether or not they ever act."""
    terms = {"anchor"} if run.anchor is not None and run.anchor.coef else set()
    if run.sets is not None and run.sets.config.weight != 0:
        terms.add("set_diversity")
    if run.practice is not None:
        loss = run.practice.rl.loss
        terms |= {"entropy"} if loss.entropy_coef else set()
        terms |= {"kl"} if loss.kl_coef and loss.kl_in == "loss" else set()
    return terms


def term_facts(terms: Mapping[str, Mapping[str, Any]], expected: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """What a run's record says of its auxiliary terms: every measured update, the median share, and a warning where
    the share never reaches `WEAK` or its median is above `STRONG`.

    The median is over updates of an adapter that had moved.

    Args:
        terms: `Ledger.terms`.
        expected: terms that should have acted.
    """
    facts = {}
    for term in sorted({*terms, *expected}):
        state = TermState(**terms.get(term, {}))
        shares = [probe["share"] for probe in state.probes if probe["moved"] and probe["share"] is not None]
        facts[term] = {
            "acted": state.acted,
            "share": statistics.median(shares) if shares else None,
            "warning": _warning(term, state, shares),
            "probes": state.probes,
        }
    return facts


def _warning(term: str, state: TermState, shares: Sequence[float]) -> str | None:
    if not state.acted:
        return f"the term '{term}' never acted"
    if not shares:
        return f"the term '{term}' was never measured after a first update"
    if max(shares) < WEAK:
        return f"the term '{term}' never has {WEAK:.0%} of the gradient, at most {max(shares):.2%}: it hardly teaches"
    if (share := statistics.median(shares)) > STRONG:
        return f"the term '{term}' has {share:.1%} of the gradient, above {STRONG:.0%}: little else is learnt"
    return None
