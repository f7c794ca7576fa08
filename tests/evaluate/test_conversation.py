"""Conversations of several turns: own answers in the context, one batch per turn."""

import pytest
from test_perplexity import filled

from finetrial.data.dialogues import TEMPERATURES, Dialogue
from finetrial.errors import UserError
from finetrial.evaluate.conversation import converse
from finetrial.generate.config import SamplingConfig
from finetrial.model.base import load_base
from finetrial.model.config import ModelConfig

GREEDY = SamplingConfig(max_tokens=12, temperature=0)
DIALOGUES = [
    Dialogue("81", "writing", ("Write about the sea.", "Now shorter.", "And again.")),
    Dialogue("101", "math", ("What is 2 + 2?", "And plus 3?"), ("4", "7")),
    Dialogue("102", "math", ("Say yes.",)),
]


@pytest.fixture(scope="module")
def base():
    return load_base(ModelConfig(), device="cpu")


def held(base, adapters, dialogues=DIALOGUES, sampling=GREEDY, **options):
    return converse(base.model, adapters, dialogues, base.tokenizer, base.stop_ids, sampling, **options)


def test_every_turn_has_the_models_own_answers_before_it(base):
    adapters = [filled(base.model, 1)]
    have = held(base, adapters)
    assert [[len(sample[0]) for sample in model] for model in have.answers] == [[3, 2, 1]] * 2
    for g, mine in enumerate(have.answers):
        for dialogue, (answers,) in zip(DIALOGUES, mine, strict=True):
            for turn in range(len(dialogue.turns)):
                said = [
                    text
                    for pair in zip(dialogue.turns, [one.text for one in answers[:turn]], strict=False)
                    for text in pair
                ]
                roles = ["user", "assistant"] * turn
                messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
                messages.append({"role": "user", "content": dialogue.turns[turn]})
                # a dialogue of one turn whose history is given as it stands must be answered alike
                prompt = base.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                assert alone(base, adapters, prompt, None if g == 0 else 0) == answers[turn].text
    assert have.answers[0] != have.answers[1]
    assert have.first_prompt == base.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Write about the sea."}], tokenize=False, add_generation_prompt=True
    )


def alone(base, adapters, prompt, adapter) -> str:
    import numpy as np

    from finetrial.generate.sample import Request, sample
    from finetrial.model.adapters import AdapterStack
    from finetrial.model.loss import head_of

    ids = np.array(base.tokenizer.encode(prompt, add_special_tokens=False))
    head = head_of(base.model)
    with AdapterStack(base.model, adapters) as stack:
        request = Request(ids, adapter, (0,), GREEDY)
        return sample(base.model, head, stack, base.tokenizer, [request], base.stop_ids)[0][0].text


def test_noise_is_that_of_dialogue_turn_and_sample(base):
    """Neither neighbours nor the number of models nor the order changes what is sampled."""
    sampling = SamplingConfig(max_tokens=12, temperature=1.0)
    together = held(base, [filled(base.model, 1)], sampling=sampling, samples=2)
    apart = held(base, [], DIALOGUES[1:2], sampling=sampling, samples=2)
    assert together.answers[0][1] == apart.answers[0][0]
    assert apart.answers[0][0][0] != apart.answers[0][0][1]
    mixed = held(base, [], sampling=sampling, temperatures=TEMPERATURES)
    assert mixed.answers[0][1] == held(base, [], temperatures=TEMPERATURES).answers[0][1]
    assert mixed.answers[0][0][0][0] != held(base, []).answers[0][0][0][0]


def test_what_outgrows_the_context_is_missing_for_that_turn_alone(base):
    context = base.model.config.max_position_embeddings
    long = Dialogue("long", "", ("Say yes.", "sea " * context, "Again."))
    (first, second, third) = held(base, [], [long, DIALOGUES[2]]).answers[0][0][0]
    assert first is not None
    assert second is third is None
    with pytest.raises(UserError, match="fills the base's context"):
        held(base, [], [Dialogue("long", "", ("sea " * context,))])
    with pytest.raises(UserError, match="no dialogues"):
        held(base, [], [])
