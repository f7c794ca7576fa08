"""Any task of lm-evaluation-harness for a base and N adapters, whose requests are answered in one pass (extra lm-eval).

The harness evaluates one model at a time. `StackLM` is such a model for each of N + 1 in turn: what the first of them
is asked is answered for all, and the others find their answers. An answer is kept under the digest of its adapter and
the request, inside the object that holds the base, so no model is ever given another's. (The harness's own
`use_cache` keeps answers under the request alone and is refused.)
"""

import contextlib
import dataclasses
import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from finetrial import seeds
from finetrial.errors import UserError
from finetrial.evaluate.choice import ChoiceItem, choice_scores, encode_pairs, encode_texts, prefix_id
from finetrial.evaluate.lm_eval_tasks import FEWSHOT_SEED, chat, load_tasks, quiet, sampling_of
from finetrial.evaluate.progress import Progress
from finetrial.generate.decode import NotFinite
from finetrial.generate.sample import Request, sample
from finetrial.model.adapters import Adapter, AdapterStack
from finetrial.model.base import Base
from finetrial.model.loss import head_of

# isort: split
# Behind the module that names the extra where the harness is missing.
from lm_eval import evaluator, utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    postprocess_generated_text,
    resolve_max_length,
)

BASE = "base"
"""Under this name the results of the base are returned."""

Pair = tuple[np.ndarray, np.ndarray]
"""Tokens of a context and of its continuation."""

log = logging.getLogger(__name__)


class StackLM(TemplateLM):
    """A model of the harness that stands for one of N + 1 models at a time and answers for all.

    Args:
        base: plain; it is a plain base again after every call.
        adapters: may be empty.
        batch_tokens: most padded tokens of one batch.
        rows: most rows of one batch of generation.
        seed: of sampling noise, which is the same for every model.
        name: of what is shown while it works; empty for nothing.
        alone: whether the adapters alone are asked, not the base.

    Raises:
        NotFinite: while answering, a model's logits are not finite.
    """

    backend = "causal"

    def __init__(
        self,
        base: Base,
        adapters: Sequence[Adapter],
        batch_tokens: int = 8192,
        rows: int = 256,
        seed: int = 0,
        name: str = "",
        alone: bool = False,
    ):
        super().__init__()
        self.base, self.adapters = base, tuple(adapters)
        self.tokenizer = base.tokenizer
        self.batch_tokens, self.rows, self.seed, self.name = batch_tokens, rows, seed, name
        self.max_length: int = resolve_max_length(base.model.config, base.tokenizer)
        self.models: tuple[int | None, ...] = (*(() if alone else (None,)), *range(len(self.adapters)))
        self.digests = ["" if model is None else digest_of(self.adapters[model]) for model in self.models]
        self.shown = self.digests[0]
        self.answers: dict[tuple[str, Any], Any] = {}
        """(digest of the adapter, request) -> answer."""
        self._device = base.device

    def show(self, adapter: int | None) -> None:
        """Stand for this adapter, or for the base."""
        self.shown = self.digests[self.models.index(adapter)]

    @property
    def eot_token_id(self) -> Any:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What precedes a text without a context."""
        return prefix_id(self.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        """Part of the name under which the harness keeps prompts that were rendered by a chat template."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text; special tokens are added as the tokenizer does, never a second BOS token."""
        if add_special_tokens is not None:
            return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return encode_texts([string], self.tokenizer)[string]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text; an unfinished last message of the assistant is left open."""
        return chat(self.tokenizer, chat_history, add_generation_prompt)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(nats, whether greedy decoding writes it) of each continuation after its context."""
        asked: list[Any] = [("loglikelihood", *request.args) for request in requests]
        new = self._unanswered(asked)
        self._keep(new, self._scores(encode_pairs([(context, text) for _, context, text in new], self.tokenizer)))
        return self._answered(asked)

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        pairs = [(np.array(front, np.int64), np.array(back, np.int64)) for _, front, back in requests]
        return self._scores(pairs)[self.digests.index(self.shown)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nats of each text, read in windows of the context's length that score every token once."""
        asked: list[Any] = [("loglikelihood_rolling", *request.args) for request in requests]
        new = self._unanswered(asked)
        pairs: list[Pair] = []
        counts = []
        for _, text in new:
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            mine: list[Any] = [utils.make_disjoint_window(window) for window in windows]
            pairs += [(np.array(front, np.int64), np.array(back, np.int64)) for front, back in mine]
            counts.append(len(mine))
        found = [iter(scores) for scores in self._scores(pairs)]
        self._keep(new, [[sum(nats for nats, _ in itertools.islice(mine, n)) for n in counts] for mine in found])
        return self._answered(asked)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """A completion of each context; a request that is made again is another sample of it."""
        seen: Counter[tuple[str, str]] = Counter()
        asked: list[Any] = []
        wanted: list[Any] = [request.args for request in requests]
        for context, options in wanted:
            name = repr(sorted(options.items()))
            asked.append(("generate_until", context, name, seen[context, name]))
            seen[context, name] += 1
        options_of = {key: options for key, (_, options) in zip(asked, wanted, strict=True)}
        new = self._unanswered(asked)
        self._keep(new, self._completions(new, [options_of[key] for key in new]))
        return self._answered(asked)

    def _unanswered(self, asked: Sequence[Any]) -> list[Any]:
        return [key for key in dict.fromkeys(asked) if (self.shown, key) not in self.answers]

    def _keep(self, asked: Sequence[Any], answers: Sequence[Sequence[Any]]) -> None:
        """Remember the answers (model, request)."""
        for model, mine in zip(self.digests, answers, strict=True):
            self.answers.update(((model, key), answer) for key, answer in zip(asked, mine, strict=True))

    def _answered(self, asked: Sequence[Any]) -> list[Any]:
        return [self.answers[self.shown, key] for key in asked]

    def _scores(self, pairs: Sequence[Pair]) -> list[list[tuple[float, bool]]]:
        """(nats, greedy) of (model, pair). Continuations of the same context are weighed together."""
        groups: dict[bytes, dict[bytes, Pair]] = {}
        places = []
        for front_T, back_T in map(self._fitted, pairs):
            place = front_T.tobytes(), back_T.tobytes()
            groups.setdefault(place[0], {})[place[1]] = front_T, back_T
            places.append(place)
        if not groups:
            return [[] for _ in self.models]
        items = []
        for g, group in enumerate(groups.values()):
            fronts, backs = zip(*group.values(), strict=True)
            items.append(ChoiceItem(f"context {g}", fronts[0], backs, (0,) * len(backs), 0))
        total = sum(len(item.options) for item in items) * (1 + len(self.adapters))
        with self._progress(total) as progress:
            scores = choice_scores(self.base.model, self.adapters, items, self.batch_tokens, progress)
        for model in self.models:  # the harness would take the first of equally undefined options for the likeliest
            if not all(np.isfinite(one.logp_GO[_row(model)]).all() for one in scores):
                raise NotFinite(model)
        found = {
            (front, back): list(zip(one.logp_GO[:, o].tolist(), one.greedy_GO[:, o].tolist(), strict=True))
            for (front, group), one in zip(groups.items(), scores, strict=True)
            for o, back in enumerate(group)
        }
        return [[found[place][_row(model)] for place in places] for model in self.models]

    def _progress(self, total: int) -> contextlib.AbstractContextManager[Progress | None]:
        return Progress(self.name, total) if self.name else contextlib.nullcontext()

    def _fitted(self, pair: Pair) -> Pair:
        """Cut a context on the left until it fits with its continuation, as the harness does."""
        front_T, back_T = pair
        if len(back_T) > self.max_length:
            raise UserError(f"a continuation of {len(back_T)} tokens does not fit the context of {self.max_length}")
        excess = len(front_T) + len(back_T) - (self.max_length + 1)
        if excess > 0:
            log.warning("a context of %d tokens is cut by %d on the left", len(front_T), excess)
        return front_T[max(0, excess) :], back_T

    def _completions(self, asked: Sequence[Any], options: Sequence[dict[str, Any]]) -> list[list[str]]:
        """The completions of (model, request)."""
        if not asked:
            return [[] for _ in self.models]
        contexts = [context for _, context, *_ in asked]
        ids_of = encode_texts(contexts, self.tokenizer)
        eos = str(self.tokenizer.decode([self.eot_token_id]))
        stops, prompts, settings = [], [], []
        for context, mine in zip(contexts, options, strict=True):
            sampling, until = sampling_of(mine, eos)
            room = self.max_length - sampling.max_tokens
            if room < 1:
                raise UserError(f"max_gen_toks is {sampling.max_tokens}; the base's context holds {self.max_length}")
            if len(ids_of[context]) > room:
                log.warning("a context of %d tokens is cut to %d on the left", len(ids_of[context]), room)
            stops.append(until)
            settings.append(sampling)
            prompts.append(np.array(ids_of[context][-room:], np.int64))
        requests = [
            Request(prompt_T, model, (seeds.derive(self.seed, "lm-eval", *map(str, key)),), sampling)
            for model in self.models
            for key, prompt_T, sampling in zip(asked, prompts, settings, strict=True)
        ]
        model, stops_at = self.base.model, self.base.stop_ids
        head = head_of(model)
        with (
            AdapterStack(model, self.adapters) as stack,
            torch.inference_mode(),
            self._progress(len(requests)) as progress,
        ):
            found = sample(model, head, stack, self.tokenizer, requests, stops_at, self.rows, progress=progress)
        texts = [one.text for (one,) in found]
        return [
            [postprocess_generated_text(text, stop, None) for text, stop in zip(mine, stops, strict=True)]
            for mine in (texts[m * len(asked) : (m + 1) * len(asked)] for m in range(len(self.models)))
        ]


def _row(model: int | None) -> int:
    """Place of a model among those that `choice_scores` weighs, the base first."""
    return 0 if model is None else 1 + model


def evaluate_all(
    base: Base,
    adapters: Mapping[str, Adapter],
    tasks: Sequence[Any],
    task_manager: Any = None,
    num_fewshot: int | None = None,
    fewshot_seed: int = FEWSHOT_SEED,
    batch_tokens: int = 8192,
    seed: int = 0,
    name: str = "",
    alone: bool = False,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Results of the harness's `evaluate` for the base and for each adapter.

    Args:
        base: plain; it is a plain base again afterwards.
        adapters: name -> adapter; `base` is the base's own name.
        tasks: names, configurations or tasks, as `lm_eval.simple_evaluate` takes them.
        task_manager: finds tasks by name; the default knows the harness's own.
        num_fewshot: examples in the prompt; the default is each task's own number, 0 where it has none.
        fewshot_seed: of their choice; every model sees the same examples.
        batch_tokens: most padded tokens of one batch.
        seed: of sampling noise, where a task samples.
        name: of what is shown while it works; empty for nothing.
        alone: whether the adapters alone are evaluated, not the base.
        options: further arguments of `lm_eval.evaluate` (limit, apply_chat_template, log_samples, ...).

    Returns:
        Name -> what `evaluate` returns (`results`, `samples`, `configs`, ...).

    Raises:
        UserError: no tasks, no models, an adapter called `base`, or a cache of the harness that takes one model for
            another.
        NotFinite: logits of a model are not finite; nothing of any of them is returned.
    """
    if "use_cache" in options:
        raise UserError("use_cache keeps answers without the model that gave them; finetrial keeps them per adapter")
    if BASE in adapters:
        raise UserError(f"an adapter is called '{BASE}', which is the name of the base; rename it")
    if not tasks:
        raise UserError("there are no tasks to evaluate")
    if alone and not adapters:
        raise UserError("there are no adapters to evaluate")
    loaded = load_tasks(tasks, task_manager, num_fewshot, fewshot_seed)
    lm = StackLM(base, list(adapters.values()), batch_tokens, seed=seed, name=name, alone=alone)
    names: dict[int | None, str] = {None: BASE, **dict(enumerate(adapters))}
    first, *others = lm.models
    lm.show(first)
    with quiet():
        found: dict[str, Any] = {names[first]: evaluator.evaluate(lm, loaded, **options)}
        with _same_requests(loaded["tasks"].values()) as renew:
            for model in others:
                lm.show(model)
                renew()
                found[names[model]] = evaluator.evaluate(lm, loaded, **options)
    return found


@contextlib.contextmanager
def _same_requests(tasks: Iterable[Any]) -> Iterator[Callable[[], None]]:
    """Within the block tasks do not build their requests again; what is yielded empties those that they have.

    Rendering prompts takes the harness longer than a small model takes to answer them, and every model is asked the
    very same.
    """
    built = [(task, task.instances) for task in tasks]

    def renew() -> None:
        for task, requests in built:
            task._instances = [dataclasses.replace(one, resps=[], filtered_resps={}) for one in requests]

    for task, _ in built:
        task.build_all_requests = lambda **_: None
    try:
        yield renew
    finally:
        for task, _ in built:
            del task.build_all_requests


def digest_of(adapter: Adapter) -> str:
    """SHA-256 of everything that an adapter is."""
    hashed = hashlib.sha256()
    for field in dataclasses.fields(adapter):
        value = getattr(adapter, field.name)
        if not isinstance(value, Mapping):
            hashed.update(repr((field.name, value)).encode())
            continue
        for path, tensors in sorted(value.items()):
            for tensor in tensors if isinstance(tensors, tuple) else (tensors,):
                hashed.update(repr((field.name, path, tuple(tensor.shape))).encode())
                hashed.update(tensor.contiguous().numpy().tobytes())
    return hashed.hexdigest()
