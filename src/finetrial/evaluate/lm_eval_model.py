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
from finetrial.errors import UserError, nearest
from finetrial.evaluate.choice import ChoiceItem, choice_scores, encode_pairs, encode_texts, prefix_id
from finetrial.generate.config import SamplingConfig
from finetrial.generate.sample import Request, sample
from finetrial.model.adapters import Adapter, AdapterStack
from finetrial.model.base import Base
from finetrial.model.loss import head_of

try:
    from lm_eval import evaluator, utils  # pyright: ignore[reportMissingImports]
    from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
    from lm_eval.models.utils import (  # pyright: ignore[reportMissingImports]
        handle_stop_sequences,
        normalize_gen_kwargs,
        postprocess_generated_text,
        resolve_max_length,
    )
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise UserError("lm-evaluation-harness is not installed; pip install 'finetrial[lm-eval]' brings it") from error

BASE = "base"
"""Under this name the results of the base are returned."""

FEWSHOT_SEED = 1234
"""Of the harness's choice of examples in the prompt; its own default."""

GENERATION = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "min_p")
"""What a task may ask of generation."""

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
    """

    backend = "causal"

    def __init__(
        self, base: Base, adapters: Sequence[Adapter], batch_tokens: int = 8192, rows: int = 256, seed: int = 0
    ):
        super().__init__()
        self.base, self.adapters = base, tuple(adapters)
        self.tokenizer = base.tokenizer
        self.batch_tokens, self.rows, self.seed = batch_tokens, rows, seed
        self.max_length: int = resolve_max_length(base.model.config, base.tokenizer)
        self.digests = ["", *map(digest_of, self.adapters)]
        self.shown = self.digests[0]
        self.answers: dict[tuple[str, Any], Any] = {}
        """(digest of the adapter, request) -> answer."""
        self._device = base.device

    def show(self, adapter: int | None) -> None:
        """Stand for this adapter, or for the base."""
        self.shown = self.digests[0 if adapter is None else 1 + adapter]

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
        asked = [("loglikelihood", *request.args) for request in requests]
        new = self._unanswered(asked)
        self._keep(new, self._scores(encode_pairs([(context, text) for _, context, text in new], self.tokenizer)))
        return self._answered(asked)

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        pairs = [(np.array(front, np.int64), np.array(back, np.int64)) for _, front, back in requests]
        return self._scores(pairs)[self.digests.index(self.shown)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nats of each text, read in windows of the context's length that score every token once."""
        asked = [("loglikelihood_rolling", *request.args) for request in requests]
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
            mine = [utils.make_disjoint_window(window) for window in windows]
            pairs += [(np.array(front, np.int64), np.array(back, np.int64)) for front, back in mine]
            counts.append(len(mine))
        found = [iter(scores) for scores in self._scores(pairs)]
        self._keep(new, [[sum(nats for nats, _ in itertools.islice(mine, n)) for n in counts] for mine in found])
        return self._answered(asked)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """A completion of each context; a request that is made again is another sample of it."""
        seen: Counter[tuple[str, str]] = Counter()
        asked = []
        for context, options in (request.args for request in requests):
            name = repr(sorted(options.items()))
            asked.append(("generate_until", context, name, seen[context, name]))
            seen[context, name] += 1
        options_of = {key: request.args[1] for key, request in zip(asked, requests, strict=True)}
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
            return [[] for _ in self.digests]
        items = []
        for g, group in enumerate(groups.values()):
            fronts, backs = zip(*group.values(), strict=True)
            items.append(ChoiceItem(f"context {g}", fronts[0], backs, (0,) * len(backs), 0))
        scores = choice_scores(self.base.model, self.adapters, items, self.batch_tokens)
        found = {
            (front, back): list(zip(one.logp_GO[:, o].tolist(), one.greedy_GO[:, o].tolist(), strict=True))
            for (front, group), one in zip(groups.items(), scores, strict=True)
            for o, back in enumerate(group)
        }
        return [[found[place][model] for place in places] for model in range(len(self.digests))]

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
            return [[] for _ in self.digests]
        contexts = [context for _, context, *_ in asked]
        ids_of = encode_texts(contexts, self.tokenizer)
        eos = str(self.tokenizer.decode([self.eot_token_id]))
        stops, prompts, settings = [], [], []
        for context, mine in zip(contexts, options, strict=True):
            sampling, until = _sampling(mine, eos)
            room = self.max_length - sampling.max_tokens
            if room < 1:
                raise UserError(f"max_gen_toks is {sampling.max_tokens}; the base's context holds {self.max_length}")
            if len(ids_of[context]) > room:
                log.warning("a context of %d tokens is cut to %d on the left", len(ids_of[context]), room)
            stops.append(until)
            settings.append(sampling)
            prompts.append(np.array(ids_of[context][-room:], np.int64))
        models: list[int | None] = [None, *range(len(self.adapters))]
        requests = [
            Request(prompt_T, model, (seeds.derive(self.seed, "lm-eval", *map(str, key)),), sampling)
            for model in models
            for key, prompt_T, sampling in zip(asked, prompts, settings, strict=True)
        ]
        head = head_of(self.base.model)
        with AdapterStack(self.base.model, self.adapters) as stack, torch.inference_mode():
            found = sample(self.base.model, head, stack, self.tokenizer, requests, self.base.stop_ids, self.rows)
        texts = [one.text for (one,) in found]
        return [
            [postprocess_generated_text(text, stop, None) for text, stop in zip(mine, stops, strict=True)]
            for mine in (texts[m * len(asked) : (m + 1) * len(asked)] for m in range(len(models)))
        ]


def evaluate_all(
    base: Base,
    adapters: Mapping[str, Adapter],
    tasks: Sequence[Any],
    task_manager: Any = None,
    num_fewshot: int | None = None,
    fewshot_seed: int = FEWSHOT_SEED,
    batch_tokens: int = 8192,
    seed: int = 0,
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
        options: further arguments of `lm_eval.evaluate` (limit, apply_chat_template, log_samples, ...).

    Returns:
        Name -> what `evaluate` returns (`results`, `samples`, `configs`, ...).

    Raises:
        UserError: no tasks, an adapter called `base`, or a cache of the harness that takes one model for another.
    """
    if "use_cache" in options:
        raise UserError("use_cache keeps answers without the model that gave them; finetrial keeps them per adapter")
    if BASE in adapters:
        raise UserError(f"an adapter is called '{BASE}', which is the name of the base; rename it")
    if not tasks:
        raise UserError("there are no tasks to evaluate")
    loaded = load_tasks(tasks, task_manager, num_fewshot, fewshot_seed)
    lm = StackLM(base, list(adapters.values()), batch_tokens, seed=seed)
    found = {BASE: evaluator.evaluate(lm, loaded, **options)}
    with _same_requests(loaded["tasks"].values()) as renew:
        for n, name in enumerate(adapters):
            lm.show(n)
            renew()
            found[name] = evaluator.evaluate(lm, loaded, **options)
    return found


def load_tasks(
    tasks: Sequence[Any], task_manager: Any = None, num_fewshot: int | None = None, fewshot_seed: int = FEWSHOT_SEED
) -> dict[str, Any]:
    """The harness's tasks (`tasks`: name -> task) and groups, with their examples in the prompt settled.

    Args: as for `evaluate_all`.

    Raises:
        UserError: a name that is no task, or a task that cannot be loaded (its data is not there, say).
    """
    manager = task_manager or TaskManager()
    try:
        loaded = manager.load(list(tasks))
    except KeyError as error:
        wanted = next((str(one) for one in tasks if isinstance(one, str)), "")
        raise UserError(
            f"lm-evaluation-harness knows no task {wanted!r}{nearest(wanted, manager.all_tasks)}; expected a name (see "
            "`lm-eval ls tasks`), or the path of a YAML file"
        ) from error
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise UserError(f"lm-evaluation-harness cannot load {list(tasks)}: {error}") from error
    for task in loaded["tasks"].values():
        given = task.get_config("num_fewshot")
        if given is None or (num_fewshot is not None and given != 0):  # 0 in a task's own configuration stays
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=fewshot_seed)
    return loaded


def chat(tokenizer: Any, history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """A conversation as text; an unfinished last message of the assistant is left open."""
    return str(
        tokenizer.apply_chat_template(
            history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
    )


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


def _sampling(options: dict[str, Any], eos: str) -> tuple[SamplingConfig, list[str]]:
    """How a task wants its completions, and all texts that end one."""
    wanted = normalize_gen_kwargs(options)
    until = handle_stop_sequences(wanted.pop("until", None), eos=eos)
    strange = sorted(set(wanted) - set(GENERATION))
    if strange:
        raise UserError(
            f"generation_kwargs: {strange[0]!r} is not supported{nearest(strange[0], GENERATION)}; "
            f"there are {', '.join(GENERATION)}"
        )
    sampled = wanted.pop("do_sample", False)
    filters = {name: wanted[name] for name in ("top_p", "top_k", "min_p") if name in wanted}
    return SamplingConfig(
        max_tokens=wanted["max_gen_toks"],
        temperature=wanted.get("temperature", 1.0) if sampled else 0.0,
        stop=tuple(stop for stop in until if stop and stop != eos),
        **filters,
    ), until
