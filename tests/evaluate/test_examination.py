"""Examination on tasks: whose answers they are, what noise they share, and what a missing grade stays."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from finetrial.errors import UserError
from finetrial.evaluate.completions import write
from finetrial.evaluate.tasks import Answer, prompt_ids
from finetrial.evaluate.tasks import examine as graded
from finetrial.generate.config import SamplingConfig
from finetrial.grade.config import GraderConfig
from finetrial.grade.grade import Grader, grader
from finetrial.model.adapters import Adapter, AdapterStack, fresh_adapter
from finetrial.model.base import Base, load_base
from finetrial.model.config import ModelConfig
from finetrial.model.loss import head_of
from finetrial.records import Grade, Task
from finetrial.seeds import stream

SAMPLING = SamplingConfig(max_tokens=6, temperature=1.0)


class Counting(Grader):
    """Grades by the number of characters, and gives no grade to tasks about 3."""

    def __init__(self) -> None:
        super().__init__(GraderConfig(kind="exact"), "exact")

    def grade(self, tasks: Sequence[Task], texts: Sequence[str]) -> list[Grade]:
        return [
            Grade(None, "no idea") if task.reference == "3" else Grade(min(1.0, len(text) / 100))
            for task, text in zip(tasks, texts, strict=True)
        ]


def tasks(count: int = 4) -> list[Task]:
    return [Task(f"t{i}", f"g{i}", ({"role": "user", "content": f"Say {i}."},), str(i)) for i in range(count)]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(ModelConfig(base=str(tiny_base)), "cpu")


def moved(base: Base, seed: int) -> Adapter:
    """An adapter that changes the model a lot."""
    adapter = fresh_adapter(base.model, ModelConfig(lora_rank=2), seed)
    for name, (_, b_RO) in adapter.weights.items():
        b_RO.copy_(b_RO.new_tensor(stream(seed, name).standard_normal(b_RO.shape)))
    return adapter


def examine(of: Base, adapters: Sequence[Adapter], items: Sequence[Task], **options: object) -> list:
    settings: dict = {"sampling": SAMPLING, "samples": 2, "grader": Counting(), **options}
    models = [*([None] if settings.pop("base", True) else []), *range(len(adapters))]
    prompts, head = prompt_ids(items, of.tokenizer), head_of(of.model)
    with AdapterStack(of.model, adapters) as stack:
        return graded(of.model, head, stack, models, items, prompts, of.tokenizer, of.stop_ids, **settings)


def texts(answers: list[list[Answer]]) -> list[list[str]]:
    return [[answer.text for answer in mine] for mine in answers]


def test_answers_come_by_model_item_and_sample_and_the_base_comes_first(base: Base) -> None:
    answers = examine(base, [moved(base, 1), moved(base, 2)], tasks())
    assert [[len(mine) for mine in of] for of in answers] == [[2] * 4] * 3
    alone = examine(base, [], tasks())
    assert texts(answers[0]) == texts(alone[0])
    assert texts(answers[1]) != texts(answers[0])
    assert all(1 <= answer.tokens <= 6 for of in answers for mine in of for answer in mine)
    assert [mine[0].grade.value is None for mine in answers[0]] == [False, False, False, True]


def test_what_is_written_is_what_is_graded(base: Base) -> None:
    adapters = [moved(base, 1)]
    prompts = prompt_ids(tasks(), base.tokenizer)
    written = write(base.model, adapters, tasks(), prompts, base.tokenizer, base.stop_ids, SAMPLING, 2)
    answers = examine(base, adapters, tasks())
    assert [texts(of) for of in written] == [texts(of) for of in answers]
    half = write(base.model, adapters, tasks()[2:], prompts[2:], base.tokenizer, base.stop_ids, SAMPLING, 2, base=False)
    assert texts(half[0]) == texts(written[1][2:])


def test_without_the_base_only_adapters_are_examined(base: Base) -> None:
    one = moved(base, 1)
    assert texts(examine(base, [one], tasks(), base=False)[0]) == texts(examine(base, [one], tasks())[1])


def test_noise_belongs_to_item_and_sample_alone(base: Base) -> None:
    untouched = fresh_adapter(base.model, ModelConfig(lora_rank=2), 0)  # B is 0: the base itself
    answers = examine(base, [untouched], tasks())
    assert texts(answers[0]) == texts(answers[1])
    turned = examine(base, [untouched], tasks()[::-1])
    assert texts(turned[0])[::-1] == texts(answers[0])
    fewer = examine(base, [], tasks(), samples=1)
    assert [mine[:1] for mine in texts(answers[0])] == texts(fewer[0])
    assert texts(examine(base, [], tasks(), seed=1)[0]) != texts(answers[0])
    assert texts(answers[0])[0][0] != texts(answers[0])[0][1]


def test_greedy_answers_do_not_depend_on_the_seed(base: Base) -> None:
    greedy = SamplingConfig(max_tokens=6, temperature=0.0)
    one, two = (examine(base, [], tasks(), sampling=greedy, samples=1, seed=seed) for seed in (0, 1))
    assert texts(one[0]) == texts(two[0])


def test_a_grader_reads_what_was_written(base: Base) -> None:
    with grader(GraderConfig(kind="exact")) as exact:
        first = examine(base, [], tasks(1), grader=exact, samples=1)[0][0][0]
        asked = [Task("t0", "g0", ({"role": "user", "content": "Say 0."},), first.text)]
        again = examine(base, [], asked, grader=exact, samples=1)[0][0][0]
    assert (first.grade.value, again.grade.value) == (0.0, 1.0)


def test_nothing_to_examine_is_refused(base: Base) -> None:
    with pytest.raises(UserError, match="there are no tasks"):
        examine(base, [], [])


def test_progress_begins_at_nothing_so_that_the_first_batch_does_not_pass_for_one_completion(base: Base) -> None:
    seen: list[int] = []

    class Shown:
        def update(self, done: int) -> None:
            seen.append(done)

    examine(base, [], tasks(), progress=Shown())
    assert seen == [0, 8]
