"""The mask covers the assistant's text and its end-of-turn token, whatever the template; else the row is refused."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetrial.data.worlds import WORLDS
from finetrial.errors import UserError
from finetrial.model.config import ModelConfig
from finetrial.model.render import (
    GENERATION,
    Rendered,
    for_template,
    prompt_text,
    render,
    render_batch,
)
from finetrial.model.source import locate

FOLDER = locate(ModelConfig())

PLAIN = "".join(
    (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}",
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    )
)
"""ChatML as most models have it: no markers."""

STRIPPING = PLAIN.replace(
    "m.content", "(m.content if m.role != 'assistant' or loop.last else m.content.split('</think>')[-1])"
)
"""Like PLAIN, but earlier assistant turns lose their thinking."""

QUOTING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name + ' ' }}{{ c.function.arguments | tojson }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Passes arguments through `tojson`, as Qwen2.5 does."""

CONVERSATION = (
    {"role": "system", "content": "You add."},
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "2 + 3 = 5. Answer: 5"},
    {"role": "user", "content": "And 4?"},
    {"role": "assistant", "content": "\n5 + 4 = 9. Answer: 9"},
)

TRAJECTORY = (
    {"role": "user", "content": "Mend it."},
    {
        "role": "assistant",
        "content": "Look.",
        "tool_calls": [{"name": "read_file", "arguments": '{"path":  "a.py"}'}, {"name": "run_tests", "arguments": ""}],
    },
    {"role": "tool", "name": "read_file", "content": "x = 1"},
    {"role": "assistant", "content": None, "tool_calls": [{"name": "shell", "arguments": '{"command": "ls"}'}]},
    {"role": "tool", "name": "shell", "content": "a.py"},
    {"role": "assistant", "content": "Done."},
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER)


def with_template(template: str) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    tokenizer.chat_template = template
    return tokenizer


def supervised(row: Rendered, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts of the runs of supervised tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.mask_T.astype(int), [0]])))
    return [tokenizer.decode(row.ids_T[a:b].tolist()) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def test_mask_is_the_assistants_text_and_its_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    row = render(CONVERSATION, tokenizer, 200)
    assert supervised(row, tokenizer) == ["2 + 3 = 5. Answer: 5<|im_end|>", "\n5 + 4 = 9. Answer: 9<|im_end|>"]
    assert row.ids_T.dtype == np.int32
    assert row.mask_T.dtype == bool
    assert row.truncated == 0
    assert row.supervised_bytes == len("2 + 3 = 5. Answer: 5<|im_end|>\n5 + 4 = 9. Answer: 9<|im_end|>")
    ends = row.ids_T == tokenizer.eos_token_id
    assert ends.sum() == 5
    assert (ends & row.mask_T).sum() == 2


def test_whole_text_is_the_templates(tokenizer: PreTrainedTokenizerBase) -> None:
    row = render(TRAJECTORY, tokenizer, 500)
    expected = (
        "<|im_start|>user\nMend it.<|im_end|>\n"
        '<|im_start|>assistant\nLook.\n<tool_call>{"name": "read_file", "arguments": {"path":  "a.py"}}</tool_call>\n'
        '<tool_call>{"name": "run_tests", "arguments": }</tool_call><|im_end|>\n'
        "<|im_start|>tool\nx = 1<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>{"name": "shell", "arguments": {"command": "ls"}}</tool_call><|im_end|>\n'
        "<|im_start|>tool\na.py<|im_end|>\n"
        "<|im_start|>assistant\nDone.<|im_end|>\n"
    )
    assert tokenizer.decode(row.ids_T.tolist()) == expected
    assert len(supervised(row, tokenizer)) == 3


@pytest.mark.parametrize("world", WORLDS)
def test_worlds_render_within_their_promise(world: str, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = list(WORLDS[world](200, 11, "campaign"))
    batch = render_batch([row.messages for row in rows], tokenizer, 1024)
    assert not batch.refused
    for example, row in zip(rows, batch.rows, strict=True):
        assert row is not None
        assert row.truncated == 0
        turns = [m for m in example.messages if m["role"] == "assistant"]
        texts = supervised(row, tokenizer)
        assert len(texts) == len(turns)
        for text, turn in zip(texts, turns, strict=True):
            assert text.startswith(turn["content"])
            assert text.endswith("<|im_end|>")
            assert all(call["arguments"] in text for call in turn.get("tool_calls", ()))


def test_a_batch_equals_its_rows(tokenizer: PreTrainedTokenizerBase) -> None:
    batch = render_batch([CONVERSATION, TRAJECTORY], tokenizer, 40)
    for conversation, row in zip([CONVERSATION, TRAJECTORY], batch.rows, strict=True):
        alone = render(conversation, tokenizer, 40)
        assert row is not None
        assert np.array_equal(row.ids_T, alone.ids_T)
        assert np.array_equal(row.mask_T, alone.mask_T)
        assert (row.supervised_bytes, row.truncated) == (alone.supervised_bytes, alone.truncated)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(max_size=30), st.text(min_size=1, max_size=30)).filter(
            lambda pair: not any("<" in text or "\x00" in text for text in pair)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_text_survives_and_only_the_assistants_is_supervised(turns: list[tuple[str, str]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    messages = [
        {"role": role, "content": text}
        for pair in turns
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    row = render(messages, tokenizer, 4096)
    texts = supervised(row, tokenizer)
    assert texts == [f"{answer}<|im_end|>" for _, answer in turns]
    assert row.supervised_bytes == sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("answer", ["-", "- a list\n- of two", "  indented", "-1"])
def test_an_answer_begins_with_a_token_of_its_own(tokenizer: PreTrainedTokenizerBase, answer: str) -> None:
    """The tokenizer knows a token "\\n-"; a model that is asked with a prompt that ends in "\\n" cannot write it."""
    prompt = ({"role": "user", "content": "?"},)
    asked = tokenizer(prompt_text(prompt, tokenizer), add_special_tokens=False)["input_ids"]
    row = render((*prompt, {"role": "assistant", "content": answer}), tokenizer, 200)
    assert row.ids_T[: len(asked)].tolist() == asked
    assert np.array_equal(row.mask_T[: len(asked) + 1], [*[False] * len(asked), True])
    assert supervised(row, tokenizer) == [f"{answer}<|im_end|>"]
    joined = tokenizer(f"assistant\n{answer}")["input_ids"]
    assert "Ċ" not in tokenizer.convert_ids_to_tokens(joined)  # else nothing had to be cut


def test_a_tokenizer_that_cannot_be_cut_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    spaced = copy.deepcopy(tokenizer)
    backend = spaced.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("x")])
    with pytest.raises(UserError, match="a token reaches from the prompt into the assistant's turn '- a"):
        render((CONVERSATION[0], {"role": "assistant", "content": "- a"}), spaced, 200)


def test_truncation_is_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = render(CONVERSATION, tokenizer, 200)
    cut = render(CONVERSATION, tokenizer, len(whole.ids_T) - 5)
    assert cut.truncated == 5
    assert np.array_equal(cut.ids_T, whole.ids_T[:-5])
    assert np.array_equal(cut.mask_T, whole.mask_T[:-5])
    assert cut.supervised_bytes < whole.supervised_bytes


def test_a_row_that_loses_all_supervised_tokens_says_so(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="behind the cut at max_length = 9"):
        render(CONVERSATION, tokenizer, 9)


def test_rows_that_cannot_be_trained_on_have_reasons(tokenizer: PreTrainedTokenizerBase) -> None:
    batch = render_batch([(), CONVERSATION[:2], CONVERSATION], tokenizer, 200)
    assert batch.rows[0] is None
    assert batch.rows[1] is None
    assert batch.rows[2] is not None
    assert batch.refused == {0: "the conversation is empty", 1: "the conversation has no assistant turn"}
    with pytest.raises(UserError, match="no assistant turn"):
        render(CONVERSATION[:2], tokenizer, 200)


@pytest.mark.parametrize("conversation", [CONVERSATION, TRAJECTORY], ids=["conversation", "trajectory"])
def test_prefix_differencing_equals_the_markers(
    conversation: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> None:
    template = tokenizer.get_chat_template()
    unmarked = with_template(GENERATION.sub("", template).replace("{%- endgeneration %}", ""))
    assert not GENERATION.search(unmarked.get_chat_template())
    expected, row = render(conversation, tokenizer, 500), render(conversation, unmarked, 500)
    assert np.array_equal(row.ids_T, expected.ids_T)
    assert np.array_equal(row.mask_T, expected.mask_T)


def test_stock_chatml_is_masked_by_prefixes() -> None:
    tokenizer = with_template(PLAIN)
    row = render(CONVERSATION, tokenizer, 200)
    assert supervised(row, tokenizer) == ["2 + 3 = 5. Answer: 5<|im_end|>", "\n5 + 4 = 9. Answer: 9<|im_end|>"]


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    thinking = ({"role": "assistant", "content": "Hm</think>5"}, {"role": "assistant", "content": "Hm</think>9"})
    messages = (CONVERSATION[1], thinking[0], CONVERSATION[3], thinking[1])
    tokenizer = with_template(STRIPPING)
    with pytest.raises(UserError, match=r"row 1: message 1 \(assistant\) does not render the same"):
        render_batch([CONVERSATION, messages], tokenizer, 200)
    single = render(messages[:2], tokenizer, 200)
    assert supervised(single, tokenizer) == ["Hm</think>5<|im_end|>"]


def test_markers_without_the_end_of_turn_are_extended_to_it() -> None:
    template = PLAIN.replace(
        "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}",
        "{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}",
    )
    assert GENERATION.search(template)
    tokenizer = with_template(template)
    assert supervised(render(CONVERSATION, tokenizer, 200), tokenizer)[0] == "2 + 3 = 5. Answer: 5<|im_end|>"


def test_a_template_without_end_of_turn_is_refused() -> None:
    tokenizer = with_template(PLAIN.replace("<|im_end|>", ""))
    with pytest.raises(UserError, match="no special token ends the assistant turn"):
        render(CONVERSATION[:3], tokenizer, 200)


def test_markers_must_cover_every_assistant_turn() -> None:
    template = (
        "{% for m in messages %}{% if loop.last %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(UserError, match=r"leaves '2 \+ 3 = 5. Answer: 5' of message 2"):
        render(CONVERSATION, with_template(template), 200)


def test_a_turn_marked_in_several_blocks_is_one_turn() -> None:
    template = PLAIN.replace(
        "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}",
        "{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% generation %}{{ '<|im_end|>' }}{% endgeneration %}{% else %}"
        "{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}",
    )
    tokenizer = with_template(template)
    texts = supervised(render(CONVERSATION, tokenizer, 200), tokenizer)
    assert texts == ["2 + 3 = 5. Answer: 5<|im_end|>", "\n5 + 4 = 9. Answer: 9<|im_end|>"]


def test_a_template_that_drops_tool_calls_is_refused() -> None:
    with pytest.raises(UserError, match=r"leaves 'read_file' of message 1 \(assistant\) out"):
        render(TRAJECTORY, with_template(PLAIN), 500)


def test_an_error_inside_an_expression_of_the_template_is_refused() -> None:
    with pytest.raises(UserError, match="refuses messages 0 to 4"):
        render(CONVERSATION, with_template("{% for m in messages %}{{ m.content + 1 }}{% endfor %}"), 200)


def test_a_failing_template_names_row_and_messages() -> None:
    tokenizer = with_template("{{ raise_exception('system first') }}" + PLAIN)
    with pytest.raises(UserError, match="row 0: the chat template refuses messages 0 to 4: system first"):
        render(CONVERSATION, tokenizer, 200)


def test_no_template_is_refused() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        render(CONVERSATION, tokenizer, 200)


def test_arguments_are_not_quoted_twice() -> None:
    tokenizer = with_template(QUOTING)
    text = tokenizer.decode(render(TRAJECTORY, tokenizer, 500).ids_T.tolist())
    assert 'read_file {"path": "a.py"}' in text
    assert 'run_tests ""' in text


@pytest.mark.parametrize("arguments", ["[1, 2]", "not json", '{"a": 1'])
def test_arguments_that_are_no_object_stay_text(arguments: str) -> None:
    messages = [{"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": arguments}]}]
    function = for_template(messages, QUOTING)[0]["tool_calls"][0]["function"]
    assert function == {"name": "f", "arguments": arguments}


def test_rendering_does_not_change_the_messages(tokenizer: PreTrainedTokenizerBase) -> None:
    before = repr(TRAJECTORY)
    render(TRAJECTORY, tokenizer, 500)
    assert repr(TRAJECTORY) == before


def test_prompt_begins_the_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = tokenizer.decode(render(CONVERSATION, tokenizer, 200).ids_T.tolist())
    prompt = prompt_text(CONVERSATION[:2], tokenizer)
    assert whole.startswith(prompt)
    assert prompt.endswith("<|im_start|>assistant\n")


def test_digits_are_single_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert [tokenizer.decode([i]) for i in tokenizer("1234")["input_ids"]] == ["1", "2", "3", "4"]


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_tokenizer_gives_back_any_text(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
