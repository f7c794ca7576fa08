"""Weights of options against transformers one option at a time, and against lm-evaluation-harness."""

import numpy as np
import peft
import pytest
import torch
from test_perplexity import filled

from finetrial.errors import UserError
from finetrial.evaluate import choice as module
from finetrial.evaluate.choice import (
    Choice,
    ChoiceItem,
    chance,
    choice_items,
    choice_logp,
    choice_scores,
    encode_pairs,
    picks,
    picks_by_bytes,
    questions_of,
)
from finetrial.model.adapters import fresh_adapter
from finetrial.model.base import load_base
from finetrial.model.config import ModelConfig
from finetrial.model.peft_format import save_peft
from finetrial.records import Message, Task
from finetrial.seeds import stream
from tiny import KINDS, VOCABULARY, tiny_model

PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def random_items(count: int, seed: int, prompt: int = 12) -> list[ChoiceItem]:
    """Items of 2 to 4 options of 1 to 4 tokens, some of which begin alike."""
    random = stream(seed, "items")
    items = []
    for place in range(count):
        head = random.integers(1, VOCABULARY, 2)
        options = [
            np.concatenate([head[: random.integers(0, 3)], random.integers(1, VOCABULARY, random.integers(1, 3))])
            for _ in range(random.integers(2, 5))
        ]
        prompt_T = random.integers(1, VOCABULARY, random.integers(1, prompt))
        items.append(ChoiceItem(f"item-{place}", prompt_T, tuple(options), (1,) * len(options), 0))
    return items


def one_at_a_time(model, items) -> tuple[list[np.ndarray], list[np.ndarray]]:
    logp, greedy = [], []
    for item in items:
        sums, hits = [], []
        for option_T in item.options:
            ids = torch.from_numpy(np.concatenate([item.prompt_T, option_T]))
            with torch.no_grad():
                logp_TV = model(input_ids=ids[None], use_cache=False).logits[0].double().log_softmax(1)
            mine_TV = logp_TV[len(item.prompt_T) - 1 : -1]
            target_T = torch.from_numpy(option_T)
            sums.append(float(mine_TV.gather(1, target_T[:, None]).sum()))
            hits.append(bool((mine_TV.argmax(1) == target_T).all()))
        logp.append(np.array(sums))
        greedy.append(np.array(hits))
    return logp, greedy


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [True, False])
def test_options_weigh_what_they_weigh_alone(kind, share):
    model = tiny_model(kind)
    items = random_items(9, seed=1)
    want, greedy = one_at_a_time(model, items)
    have = choice_scores(model, [], items, batch_tokens=60, share=share)
    for mine, theirs, hits in zip(have, want, greedy, strict=True):
        np.testing.assert_allclose(mine.logp_GO[0], theirs, rtol=2e-5)
        assert mine.greedy_GO[0].tolist() == hits.tolist()


def test_what_greedy_decoding_writes_is_told():
    model, items = tiny_model(), random_items(6, seed=5)
    for item in items:
        with torch.no_grad():
            next_token = int(model(input_ids=torch.from_numpy(item.prompt_T)[None]).logits[0, -1].argmax())
        likeliest = ChoiceItem("it", item.prompt_T, (np.array([next_token]), np.array([next_token, 3, 3])), (1, 1), 0)
        assert choice_scores(model, [], [likeliest])[0].greedy_GO[0, 0]


def test_a_path_beyond_a_window_is_a_row_of_its_own_and_counts_the_same():
    model = tiny_model("gemma3")
    items = [ChoiceItem("long", np.arange(1, 30), (np.array([3, 4]), np.array([5, 6, 7])), (1, 1), 0)]
    np.testing.assert_allclose(choice_logp(model, [], items)[0][0], one_at_a_time(model, items)[0][0], rtol=2e-5)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
@pytest.mark.parametrize("letters", [True, False])
def test_questions_with_the_same_examples_read_them_once(monkeypatch, kind, letters):
    """Thirty tokens of examples before each of five questions; layers of a window of 8 cannot share them."""
    random = stream(6, "items")
    shown_T = random.integers(1, VOCABULARY, 30)
    items = []
    for place in range(5):
        options = [np.array([1 + o] if letters else [1 + o, 7]) for o in range(3)]
        prompt_T = np.concatenate([shown_T, random.integers(1, VOCABULARY, 4)])
        items.append(ChoiceItem(f"item-{place}", prompt_T, tuple(options), (1, 1, 1), 0))
    model, tokens = tiny_model(kind), tokens_read(monkeypatch)
    have, (want, _) = choice_logp(model, [], items), one_at_a_time(model, items)
    for mine, theirs in zip(have, want, strict=True):
        np.testing.assert_allclose(mine[0], theirs, rtol=2e-5)
    own = 4 if letters else 4 + 3
    assert sum(tokens) == (30 + 5 * own if kind == "qwen3" else 5 * 34 if letters else 15 * 35)


def tokens_read(monkeypatch) -> list[int]:
    """Places of each batch that is read from now on."""
    read, tokens = module.read, []

    def counted(model, batch, *rest):
        tokens.append(batch.ids_ST.numel())
        return read(model, batch, *rest)

    monkeypatch.setattr(module, "read", counted)
    return tokens


@pytest.mark.parametrize(
    ("shared", "own", "room", "rows"),
    [
        (90, 10, 300, [90 + 4 * 10]),
        (20, 60, 300, [80] * 4),  # attention would cost more than 20 tokens
        (2, 20, 300, [22] * 4),  # too little in common
        (90, 10, 110, [130]),  # a row may be twice as long as its texts
        (10, 10, 30, [30, 30]),
    ],
)
def test_rows_are_shared_where_that_pays(monkeypatch, shared, own, room, rows):
    texts = [np.concatenate([np.arange(shared), np.full(own, place)]) % VOCABULARY for place in range(4)]
    items = [ChoiceItem(str(k), text_T, (np.array([1]),), (1,), 0) for k, text_T in enumerate(texts, start=1)]
    model, tokens = tiny_model(), tokens_read(monkeypatch)
    have, (want, _) = choice_logp(model, [], items, batch_tokens=room), one_at_a_time(model, items)
    assert sum(tokens) == sum(rows)
    np.testing.assert_allclose([one[0, 0] for one in have], [one[0] for one in want], rtol=2e-5)


@PEFT_WARNS
@pytest.mark.parametrize("merge", [True, False])
def test_every_adapter_weighs_as_peft_does(tmp_path, monkeypatch, merge):
    monkeypatch.setattr(module, "ADAPTERS_PER_PASS", 2)
    model, items = tiny_model(), random_items(7, seed=2)
    adapters = [filled(model, seed) for seed in range(3)]
    have = choice_scores(model, adapters, items, batch_tokens=50, merge=merge)
    for n, adapter in enumerate(adapters):
        save_peft(adapter, tmp_path / str(n), base="tiny")
        want, _ = one_at_a_time(peft.PeftModel.from_pretrained(tiny_model(), str(tmp_path / str(n))), items)
        for mine, theirs in zip(have, want, strict=True):
            np.testing.assert_allclose(mine.logp_GO[1 + n], theirs, rtol=2e-5)


@pytest.mark.parametrize("merge", [True, False])
def test_a_zero_adapter_weighs_the_bases_bits(merge):
    model, items = tiny_model(), random_items(7, seed=3)
    have = choice_scores(model, [filled(model, 0), fresh_adapter(model, ModelConfig(), 1)], items, merge=merge)
    assert all(np.array_equal(scores.logp_GO[2], scores.logp_GO[0]) for scores in have)


def test_weights_do_not_depend_on_how_many_adapters_there_are():
    model, items = tiny_model(), random_items(7, seed=4)
    adapters = [filled(model, seed) for seed in range(2)]
    together = choice_logp(model, adapters, items, batch_tokens=40)
    for n, adapter in enumerate(adapters):
        for alone, all_of_them in zip(choice_logp(model, [adapter], items, batch_tokens=40), together, strict=True):
            assert np.array_equal(alone[1], all_of_them[1 + n])


def test_picks_and_chance():
    item = ChoiceItem("it", np.array([1]), (np.array([1]), np.array([2])), (1, 4), 0)
    logp_GO = np.array([[-1.0, -2.0], [-3.0, -3.0], [np.nan, -1.0]])
    assert picks(logp_GO).tolist() == [0, 0, -1]
    assert picks_by_bytes(logp_GO, item).tolist() == [1, 1, -1]
    four = ChoiceItem("it", np.array([1]), (np.array([1]),) * 4, (1,) * 4, 0)
    assert chance([item, four]) == 0.375


def test_tasks_with_choices_are_questions():
    ask = ({"role": "user", "content": "Which is a unit of force?\nA. newton\nB. watt"},)
    task = Task("t", "t", ask, "B", meta={"choices": {"A": "newton", "B": "watt"}})
    assert questions_of([task]) == [Choice("t", ask, ("A", "B"), 1)]
    assert questions_of([task], by="text")[0].options == ("newton", "watt")
    with pytest.raises(UserError, match="task t: its reference is 'C', its choices are A, B; expected the label"):
        questions_of([Task("t", "t", ask, "C", meta=task.meta)])
    with pytest.raises(UserError, match="task t: no choices from label to text"):
        questions_of([Task("t", "t", ask, "3")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": ("a",)}, "1 options; expected at least two"),
        ({"gold": 2}, "gold is 2; expected an index from 0 to 1"),
        ({"options": ("a", " ")}, "an option is empty"),
        ({"options": ("a", "a")}, "there twice"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(change, message):
    base = load_base(ModelConfig())
    with pytest.raises(UserError, match=message):
        choice_items(
            [Choice(**{"id": "it", "prompt": "q", "options": ("a", "b"), "gold": 0, **change})], base.tokenizer
        )


def test_items_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="no items"):
        choice_logp(tiny_model(), [], [])
    long = ChoiceItem("long", np.arange(200) % 60, (np.array([1]), np.array([2])), (1, 1), 0)
    with pytest.raises(UserError, match="item 'long': its 200 tokens do not fit the base's context of 128"):
        choice_logp(tiny_model(), [], [long])


def questions() -> list[Choice]:
    """Plain and chat prompts with spaces where prompt and option meet, options of several tokens, one empty prompt."""
    ask: tuple[Message, ...] = ({"role": "user", "content": "Which unit has force?\nA. newton\nB. watt"},)
    return [
        Choice("plain", "A force of 3 N acts on 2 kg. The acceleration is", ("1.5 m/s²", "6 m/s²", "0.7 m/s²"), 0),
        Choice("space", "The unit of force is the  ", ("newton", "newton metre", "watt"), 0),
        Choice("line", "Question: 2 + 2?\nAnswer:", ("4", "5", "four or five"), 0),
        Choice("empty", "", ("The sun rises.", "Rises the sun."), 0),
        Choice("chat", ask, ("A", "B"), 0),
    ]


@PEFT_WARNS
def test_numbers_are_those_of_lm_evaluation_harness(tmp_path):
    """Same requests through its HF model, base and one PEFT adapter."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra lm-eval)")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    base = load_base(ModelConfig(), device="cpu")
    adapter = filled(base.model, 2)
    save_peft(adapter, tmp_path / "adapter", base=str(base.tokenizer.name_or_path))
    items = choice_items(questions(), base.tokenizer)
    have = choice_scores(base.model, [adapter], items)
    asked = []
    for question in questions():
        text = question.prompt if isinstance(question.prompt, str) else None
        prompt = module.prompt_text(question.prompt, base.tokenizer) if text is None else text
        delimiter = "" if text is None else " "
        asked.append([(prompt, delimiter + option) for option in question.options])
    for g, peft_folder in enumerate((None, str(tmp_path / "adapter"))):
        theirs = HFLM(pretrained=base.tokenizer.name_or_path, peft=peft_folder, device="cpu", dtype="float32")
        flat = [pair for pairs in asked for pair in pairs]
        for pair, (mine, after) in zip(flat, encode_pairs(flat, base.tokenizer), strict=True):
            if pair[0]:
                assert theirs._encode_pair(*pair) == (mine.tolist(), after.tolist())
        requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(flat)]
        answers = iter(theirs.loglikelihood(requests, disable_tqdm=True))
        for scores, pairs in zip(have, asked, strict=True):
            want = [next(answers) for _ in pairs]
            np.testing.assert_allclose(scores.logp_GO[g], [logp for logp, _ in want], atol=1e-4, rtol=0)
            assert scores.greedy_GO[g].tolist() == [hit for _, hit in want]
