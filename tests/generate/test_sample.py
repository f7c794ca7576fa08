"""Sampling: a completion depends on its weights, prompt, key and configuration, and on nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_text import STOP, ids_of, prompts, requests, tiny_adapter, tiny_tokenizer
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from finetrial import seeds
from finetrial.errors import UserError
from finetrial.generate import cache as cache_module
from finetrial.generate import decode as decode_module
from finetrial.generate.config import SamplingConfig
from finetrial.generate.sample import Request, sample, sample_batches
from finetrial.model.adapters import AdapterStack
from finetrial.model.loss import collate, head_of, stream, token_nll
from finetrial.model.render import Rendered
from tiny import KINDS, VOCABULARY, tiny_model

TOKENIZER = tiny_tokenizer()


def run(model, adapters, wanted, rows=256, stop_ids=(STOP,), trainable=False, **switches):
    head = head_of(model)
    with AdapterStack(model, adapters, trainable) as stack:
        return sample_batches(model, head, stack, TOKENIZER, wanted, stop_ids, rows, **switches)


def other_model(kind):
    """GPT-2 has learned positions and no nn.Linear; Bloom takes no positions and finds them by its attention mask."""
    sizes = {"vocab_size": VOCABULARY, "n_layer": 2, "n_head": 2, "initializer_range": 0.2}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**sizes, **ends, n_positions=64, n_embd=16)).eval()
    return BloomForCausalLM(BloomConfig(**sizes, **ends, hidden_size=16)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_order_and_batch_size_do_not_matter(kind):
    model = tiny_model(kind)
    adapters = [tiny_adapter(model, seed) for seed in range(2)]
    wanted = requests(prompts(3, seed=1), [None, 0, 1], max_tokens=10)
    whole = ids_of(run(model, adapters, wanted))
    assert len({str(ids) for ids in whole}) > 6
    for rows in (2, 16):
        assert ids_of(run(model, adapters, wanted, rows=rows)) == whole
    random = np.random.default_rng(0)
    for _ in range(2):
        order = random.permutation(len(wanted))
        shuffled = ids_of(run(model, adapters, [wanted[i] for i in order], rows=int(random.integers(3, 40))))
        assert [shuffled[list(order).index(i)] for i in range(len(wanted))] == whole
    for i in (4, 8):
        assert ids_of(run(model, adapters, [wanted[i]])) == [whole[i]]
        last = replace(wanted[i], noise=wanted[i].noise[-1:])
        assert ids_of(run(model, adapters, [last])) == [[whole[i][-1]]]


def test_an_adapter_alone_samples_as_it_does_among_four():
    model = tiny_model()
    adapters = [tiny_adapter(model, seed, rank=2 + seed) for seed in range(4)]
    texts = prompts(3, seed=2)
    together = ids_of(run(model, adapters, requests(texts, [0, 1, 2, 3])))
    alone = ids_of(run(model, adapters[2:3], requests(texts, [0])))
    assert alone == together[2::4]


@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("remove", [True, False])
def test_sharing_prompts_and_removing_rows_change_nothing(kind, share, remove):
    model = tiny_model(kind)
    adapters = [tiny_adapter(model, 1)]
    wanted = requests(prompts(3, seed=5), [None, 0], temperature=1.3)
    stops = (STOP, *range(10, 16))  # rows end at many different steps
    assert ids_of(run(model, adapters, wanted, 7, stops, share=share, remove=remove)) == ids_of(
        run(model, adapters, wanted, 256, stops)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_equal_a_pass_without_cache(kind):
    model = tiny_model(kind)
    adapters = [tiny_adapter(model, seed) for seed in range(2)]
    wanted = requests(prompts(4, seed=3), [None, 0, 1], temperature=0.7, top_p=0.9)
    found = run(model, adapters, wanted, rows=10)
    head = head_of(model)
    with AdapterStack(model, adapters) as stack, torch.inference_mode():
        for request, completions in zip(wanted, found, strict=True):
            for completion in completions:
                ids_T = np.concatenate([request.prompt_T, completion.ids_T]).astype(np.int32)
                mask_T = np.arange(len(ids_T)) >= len(request.prompt_T)
                batch = collate([stream(Rendered(ids_T, mask_T, 0, 0), "row")], torch.device("cpu"))
                with stack.rows([request.adapter]):
                    nll_M = token_nll(model, head, batch).numpy()
                np.testing.assert_allclose(completion.raw_logp_T, -nll_M, atol=1e-4)
                assert completion.raw_logp_T.dtype == completion.logp_T.dtype == np.float64
                assert (completion.logp_T >= completion.raw_logp_T - 3).all()


@pytest.mark.parametrize("kind", [*KINDS, "gpt2", "bloom"])
def test_greedy_equals_generate_of_transformers(kind):
    model = tiny_model(kind) if kind in KINDS else other_model(kind)
    for text_T in prompts(4, seed=7):
        want = model.generate(
            torch.from_numpy(text_T)[None],
            attention_mask=torch.ones(1, len(text_T), dtype=torch.long),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=STOP,
            pad_token_id=0,
        )[0, len(text_T) :].tolist()
        (have,) = run(model, [], requests([text_T, *prompts(3, seed=8)], [None], 1, max_tokens=20, temperature=0))[0]
        assert have.ids_T.tolist() == want
        assert not have.logp_T.any()
        assert have.raw_logp_T.any()
        assert have.finished == (want[-1] == STOP)


def test_one_token_is_sampled_with_the_models_frequencies():
    model = tiny_model(initializer_range=0.05)
    text_T = prompts(1, seed=9)[0]
    with torch.no_grad():
        p_V = model(torch.from_numpy(text_T)[None]).logits[0, -1].double().softmax(0).numpy()
    draws = 20_000
    keys = tuple(seeds.derive(1, "frequencies", j) for j in range(draws))
    (found,) = run(model, [], [Request(text_T, None, keys, SamplingConfig(max_tokens=1))], rows=draws)
    counts_V = np.bincount([int(one.ids_T[0]) for one in found], minlength=VOCABULARY)
    chi2 = ((counts_V - draws * p_V) ** 2 / (draws * p_V)).sum()
    assert abs(chi2 - (VOCABULARY - 1)) < 4 * np.sqrt(2 * (VOCABULARY - 1))


def test_the_same_key_draws_the_same_noise_under_every_adapter():
    model = tiny_model()
    zero = tiny_adapter(model, 0)
    zero = replace(zero, weights={path: (a, torch.zeros_like(b)) for path, (a, b) in zero.weights.items()})
    found = ids_of(run(model, [zero, zero], requests(prompts(3, seed=4), [None, 0, 1])))
    assert found[0::3] == found[1::3] == found[2::3]


def test_configurations_may_differ_within_a_batch():
    model = tiny_model()
    text_T = prompts(1, seed=6)[0]
    configs = [
        SamplingConfig(max_tokens=5),
        SamplingConfig(max_tokens=9, temperature=0),
        SamplingConfig(max_tokens=3, temperature=2, top_k=4),
        SamplingConfig(max_tokens=12, top_p=0.5, min_p=0.01, stop=("e",)),
    ]
    wanted = [Request(text_T, None, (11, 12), config) for config in configs]
    together = ids_of(run(model, [], wanted, stop_ids=()))
    assert together == [ids_of(run(model, [], [one], stop_ids=()))[0] for one in wanted]
    assert [len(ids) for ids in together[0] + together[1] + together[2]] == [5, 5, 9, 9, 3, 3]


def test_stop_tokens_end_a_completion_and_are_its_last_token():
    model = tiny_model()
    wanted = requests(prompts(6, seed=10), [None], 4, max_tokens=12)
    free = ids_of(run(model, [], wanted, stop_ids=()))
    stops = (5, 7, 9, 30, 31)
    ended = 0
    for whole, found in zip(free, run(model, [], wanted, stop_ids=stops), strict=True):
        for ids, completion in zip(whole, found, strict=True):
            at = next((t for t, token in enumerate(ids) if token in stops), None)
            assert completion.ids_T.tolist() == (ids if at is None else ids[: at + 1])
            assert completion.finished == (at is not None)
            kept = ids if at is None else ids[:at]
            assert completion.text == TOKENIZER.decode(kept, skip_special_tokens=True)
            ended += completion.finished
    assert 0 < ended < 24


@pytest.mark.parametrize("look", [1, 5])
def test_stop_texts_may_straddle_tokens(monkeypatch, look):
    monkeypatch.setitem(decode_module.LOOK_STEPS, "cpu", look)
    model = tiny_model()
    wanted = requests(prompts(4, seed=12), [None], 3, max_tokens=24)
    free = run(model, [], wanted, stop_ids=())
    text = free[0][0].text
    stop = text[4:7]
    stopped = run(
        model, [], [replace(one, sampling=SamplingConfig(max_tokens=24, stop=(stop, "zz"))) for one in wanted], 5, ()
    )
    for whole, found in zip(free, stopped, strict=True):
        for one, completion in zip(whole, found, strict=True):
            at = one.text.find(stop)
            assert completion.finished == (at >= 0)
            assert completion.text == (one.text if at < 0 else one.text[:at])
            ids = one.ids_T.tolist()
            want = next(
                (
                    ids[: t + 1]
                    for t in range(len(ids))
                    if stop in TOKENIZER.decode(ids[: t + 1], skip_special_tokens=True)
                ),
                ids,
            )
            assert completion.ids_T.tolist() == want
    assert stopped[0][0].finished


@pytest.mark.parametrize("look", [3, 8])
def test_looking_seldom_changes_nothing(monkeypatch, look):
    model = tiny_model()
    wanted = requests(prompts(4, seed=13), [None], 3, max_tokens=20)
    stops = (STOP, *range(20, 26))
    at_once = ids_of(run(model, [], wanted, 7, stops))
    monkeypatch.setitem(decode_module.LOOK_STEPS, "cpu", look)
    assert ids_of(run(model, [], wanted, 7, stops)) == at_once


@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
def test_buffers_grow_with_long_completions(monkeypatch, kind):
    model = tiny_model(kind)
    wanted = requests(prompts(3, seed=14), [None], 2, max_tokens=50)
    stops = (STOP, 40, 41)
    roomy = ids_of(run(model, [], wanted, stop_ids=stops))
    monkeypatch.setattr(cache_module, "FIRST_COLUMNS", 1)
    assert ids_of(run(model, [], wanted, stop_ids=stops)) == roomy
    assert max(len(ids) for found in roomy for ids in found) > 20


def test_sampling_leaves_a_trainable_stack_and_the_models_mode_alone():
    model = tiny_model()
    adapters = [tiny_adapter(model, 0)]
    wanted = requests(prompts(2, seed=15), [0])
    head = head_of(model)
    frozen = ids_of(run(model, adapters, wanted))
    model.train()
    with AdapterStack(model, adapters, trainable=True) as stack:
        before = stack.flat_NP.clone()
        assert ids_of(sample(model, head, stack, TOKENIZER, wanted, (STOP,))) == frozen
        assert model.training
        assert torch.equal(stack.flat_NP, before)
        row = Rendered(np.arange(3, 13, dtype=np.int32), np.arange(10) > 3, 0, 0)
        with stack.rows([0]):  # a step of training works after sampling
            nll_M = token_nll(model, head, collate([stream(row, "row")], torch.device("cpu")))
            stack.backward((nll_M, torch.ones_like(nll_M)))
        assert stack.grad_NP.any()


def test_two_runs_give_the_same_bits():
    model = tiny_model()
    wanted = requests(prompts(3, seed=16), [None])
    one, two = (run(model, [], wanted) for _ in range(2))
    assert ids_of(one) == ids_of(two)
    for a, b in zip(one, two, strict=True):
        for x, y in zip(a, b, strict=True):
            assert np.array_equal(x.logp_T, y.logp_T)
            assert np.array_equal(x.entropy_T, y.entropy_T)


def test_nothing_wanted_gives_nothing():
    model = tiny_model()
    assert run(model, [], []) == []
    text_T = prompts(1, seed=1)[0]
    assert run(model, [], [Request(text_T, None, (), SamplingConfig())]) == [[]]


def test_steps_and_progress_are_told():
    model = tiny_model()
    steps: list[tuple[int, float]] = []
    done: list[int] = []

    class Shown:
        def update(self, finished: int) -> None:
            done.append(finished)

    wanted = requests(prompts(2, seed=17), [None], 3, max_tokens=6)
    run(
        model,
        [],
        wanted,
        rows=3,
        stop_ids=(),
        observe=lambda rows, seconds: steps.append((rows, seconds)),
        progress=Shown(),
    )
    assert done == [3, 6]
    assert [rows for rows, _ in steps] == [3] * 10  # the first token of each batch comes from its prompts
    assert all(seconds > 0 for _, seconds in steps)


def test_a_completion_is_cut_where_the_context_ends():
    model = tiny_model(max_position_embeddings=24)
    wanted = requests([np.arange(3, 13), np.arange(3, 23)], [None], 1, max_tokens=40)
    found = run(model, [], wanted, stop_ids=())
    assert [len(one.ids_T) for one, *_ in found] == [14, 4]
    assert not found[0][0].finished


def test_what_cannot_be_sampled_is_refused():
    model = tiny_model(max_position_embeddings=24)
    text_T = np.arange(3, 8)
    plain = SamplingConfig()
    with pytest.raises(UserError, match="no tokens"):
        run(model, [], [Request(text_T[:0], None, (1,), plain)])
    with pytest.raises(UserError, match="24 tokens fills the base's context of 24"):
        run(model, [], [Request(np.full(24, 5), None, (1,), plain)])
    with pytest.raises(UserError, match="stop text is empty"):
        run(model, [], [Request(text_T, None, (1,), SamplingConfig(stop=("",)))])
    with pytest.raises(ValueError, match="no adapter 1"):
        run(model, [tiny_adapter(model, 0)], [Request(text_T, 1, (1,), plain)])
    with pytest.raises(ValueError, match="0 rows"):
        run(model, [], [], rows=0)


def test_a_model_with_a_recurrent_state_is_refused():
    torch.manual_seed(0)
    model = MambaForCausalLM(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4)
    ).eval()
    with pytest.raises(UserError, match="cannot be sampled from; expected attention"):
        run(model, [], requests(prompts(2, seed=1), [None]))


def test_logits_that_are_not_finite_are_refused():
    model = tiny_model()
    adapter = tiny_adapter(model, 0)
    bad = replace(
        adapter, weights={path: (a, torch.full_like(b, float("nan"))) for path, (a, b) in adapter.weights.items()}
    )
    with pytest.raises(FloatingPointError, match="adapter 1"):
        run(model, [adapter, bad], requests(prompts(2, seed=1), [None, 0, 1]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_samples_what_a_cpu_samples(kind):
    model = tiny_model(kind)
    adapters = [tiny_adapter(model, seed) for seed in range(2)]
    wanted = requests(prompts(4, seed=3), [None, 0, 1], temperature=0.8, top_k=20)
    on_cpu = ids_of(run(model, adapters, wanted))
    on_gpu = ids_of(run(model.to("cuda"), adapters, wanted))
    same = [a == b for one, two in zip(on_cpu, on_gpu, strict=True) for a, b in zip(one, two, strict=True)]
    assert np.mean(same) > 0.9  # rounding may move a token at the edge of its share
