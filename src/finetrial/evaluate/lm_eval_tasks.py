"""Tasks of lm-evaluation-harness: found, loaded, and refused where no model here could answer them (extra lm-eval)."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetrial.errors import UserError, nearest
from finetrial.generate.config import SamplingConfig

try:
    import datasets
    from lm_eval.api import task as harness_task
    from lm_eval.models.utils import (
        handle_stop_sequences,
        normalize_gen_kwargs,
        resolve_max_length,
    )
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml
except ImportError as error:
    raise UserError("lm-evaluation-harness is not installed; pip install 'finetrial[lm-eval]' brings it") from error

LOG = logging.getLogger("lm_eval")

FEWSHOT_SEED = 1234
"""Of the harness's choice of examples in the prompt; its own default."""

GENERATION = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "min_p")
"""What a task may ask of generation."""


def load_tasks(
    tasks: Sequence[Any],
    task_manager: Any = None,
    num_fewshot: int | None = None,
    fewshot_seed: int = FEWSHOT_SEED,
    include_path: str | None = None,
) -> dict[str, Any]:
    """The harness's tasks (`tasks`: name -> task) and groups, with their examples in the prompt settled.

    Args:
        tasks, task_manager, num_fewshot, fewshot_seed: as for `evaluate_all`.
        include_path: folder with further tasks, for the default manager.

    Raises:
        UserError: a name that is no task, or a task that cannot be loaded (its data is not there, say).
    """
    loaded = _found(tasks, task_manager, include_path)
    for task in loaded["tasks"].values():
        given = task.get_config("num_fewshot")
        if given is None or (num_fewshot is not None and given != 0):  # 0 in a task's own configuration stays
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=fewshot_seed)
    return loaded


def _found(tasks: Sequence[Any], task_manager: Any, include_path: str | None) -> dict[str, Any]:
    """Load tasks; the index of the harness's own, which takes seconds, is made only where others do not suffice."""
    wanted: list[Any] = []
    folders: list[str | Path] = [include_path] if include_path else []
    for one in tasks:  # the harness finds groups by name alone
        path = Path(one) if isinstance(one, str) else None
        if path is not None and path.is_file() and (group := _group_in(path)):
            folders.append(path.parent)
            one = group
        wanted.append(one)
    names = [one for one in wanted if isinstance(one, str)]
    with quiet():
        try:
            return {**(task_manager or TaskManager(include_path=folders, include_defaults=False)).load(wanted)}
        except Exception as error:  # tasks are code of others, in YAML, Jinja and Python: anything may go wrong
            if task_manager is not None:
                raise _not_loaded(names, task_manager, error) from error
        manager = TaskManager(include_path=folders)
        try:
            return {**manager.load(wanted)}
        except Exception as error:
            raise _not_loaded(names, manager, error) from error


def _group_in(path: Path) -> str | None:
    """Name of the group that a YAML file declares, if it does."""
    try:
        return load_yaml(path, resolve_func=False).get("group")
    except Exception as error:
        raise UserError(f"lm-evaluation-harness cannot read {path}: {type(error).__name__}: {error}") from error


def _not_loaded(names: Sequence[str], manager: Any, error: Exception) -> UserError:
    unknown = [name for name in names if name not in manager.task_index and not Path(name).is_file()]
    if unknown:
        return UserError(
            f"lm-evaluation-harness knows no task {unknown[0]!r}{nearest(unknown[0], manager.all_tasks)}; expected a "
            "name (see `lm-eval ls tasks`), or the path of a YAML file"
        )
    what = ", ".join(names) or "the tasks"
    return UserError(f"lm-evaluation-harness cannot load {what}: {type(error).__name__}: {error}")


def refuse_unanswerable(name: str, task: Any, tokenizer: Any, config: Any) -> None:
    """Refuse a task that could not be answered, before anything is spent on it.

    Args:
        name: of the task.
        task: loaded.
        tokenizer: of the base.
        config: of the base's model (a transformers `PretrainedConfig`).

    Raises:
        UserError: it runs programs that models write, shows pictures or sounds, or wants completions that cannot be
            drawn or do not fit the base's context.
    """
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(
            f"task {name} runs what models write, without a sandbox; expected kind = 'tasks' with a grader of kind "
            "'code', which has one"
        )
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"task {name} shows pictures or plays sounds; the base reads text alone")
    if task.OUTPUT_TYPE == "generate_until":
        try:
            sampling, _ = sampling_of(task.get_config("generation_kwargs") or {}, str(tokenizer.eos_token))
        except UserError as error:
            raise UserError(f"task {name}: {error}") from error
        context = resolve_max_length(config, tokenizer)
        if sampling.max_tokens >= context:
            raise UserError(
                f"task {name}: max_gen_toks is {sampling.max_tokens}, which leaves no room for a prompt within the "
                f"base's context of {context}"
            )


def is_sampled(task: Any) -> bool:
    """Whether a task's completions are drawn with noise."""
    options = task.get_config("generation_kwargs") if task.OUTPUT_TYPE == "generate_until" else None
    return options is not None and sampling_of(options, "")[0].temperature > 0


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
def quiet() -> Iterator[None]:
    """Within the block the harness tells errors alone, and neither it nor its data show bars of their own."""
    bars, level, told = harness_task.tqdm, LOG.level, datasets.utils.are_progress_bars_disabled()
    setattr(harness_task, "tqdm", lambda items, **_: items)  # noqa: B010  (its type has no such value)
    LOG.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            for library in ("lm_eval", "sklearn"):  # of classes that no document of a small set has, and the like
                warnings.filterwarnings("ignore", module=library)
            yield
    finally:
        harness_task.tqdm = bars
        LOG.setLevel(level)
        if not told:
            datasets.enable_progress_bars()


def sampling_of(options: dict[str, Any], eos: str) -> tuple[SamplingConfig, list[str]]:
    """How a task wants its completions, and all texts that end one."""
    wanted: dict[str, Any] = {**normalize_gen_kwargs(options)}
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
