"""Tasks of lm-evaluation-harness for N adapters at once against its own HF model, run one after another."""

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra lm-eval)")

from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from test_perplexity import filled

from finetrial.errors import UserError
from finetrial.evaluate import lm_eval_model
from finetrial.evaluate.lm_eval_model import StackLM, digest_of, evaluate_all
from finetrial.generate.decode import NotFinite
from finetrial.model.base import load_base
from finetrial.model.config import ModelConfig
from finetrial.model.peft_format import save_peft

pytestmark = pytest.mark.filterwarnings("default")

ROWS = [
    {"q": f"A force of {n} N acts on {m} kg. What is the acceleration?", "right": i % 3,
     "options": [f"{n / m:.2g} m/s²", f"{n * m} m/s²", "none"], "answer": f"{n / m:.2g}"}
    for i, (n, m) in enumerate([(3, 2), (10, 4), (7, 5), (9, 3), (12, 8)])
]  # fmt: skip


@pytest.fixture(scope="module")
def base():
    return load_base(ModelConfig(), device="cpu")


@pytest.fixture(scope="module")
def adapters(base):
    return {f"a{n}": filled(base.model, n) for n in range(2)}


@pytest.fixture
def tasks(tmp_path):
    """Multiple choice with two examples in the prompt, rolling likelihood, generation: over a local file."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
    }
    return [
        {**shared, "task": "choice", "output_type": "multiple_choice", "doc_to_text": "{{q}}\nAnswer:",
         "doc_to_choice": "{{options}}", "doc_to_target": "right", "num_fewshot": 2, "fewshot_split": "test",
         "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]},
        {**shared, "task": "rolling", "output_type": "loglikelihood_rolling", "doc_to_text": "",
         "doc_to_target": "{{q}}", "metric_list": [{"metric": "bits_per_byte"}]},
        {**shared, "task": "written", "output_type": "generate_until", "doc_to_text": "{{q}}",
         "doc_to_target": "answer",
         "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 12},
         "metric_list": [{"metric": "exact_match"}]},
    ]  # fmt: skip


def theirs(base, tasks, folder, **options):
    peft = None if folder is None else str(folder)
    lm = HFLM(pretrained=base.tokenizer.name_or_path, peft=peft, device="cpu", dtype="float32", batch_size=4)
    return evaluator.simple_evaluate(model=lm, tasks=tasks, bootstrap_iters=0, **options)


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True])
def test_results_are_those_of_one_model_after_another(tmp_path, base, adapters, tasks, chat):
    options = {"apply_chat_template": chat, "fewshot_as_multiturn": chat}
    have = evaluate_all(base, adapters, tasks, bootstrap_iters=0, **options)
    assert list(have) == ["base", "a0", "a1"]
    folders = {"base": None}
    for name, adapter in adapters.items():
        folders[name] = tmp_path / name
        save_peft(adapter, folders[name], base=str(base.tokenizer.name_or_path))
    for name, folder in folders.items():
        want = theirs(base, tasks, folder, **options)
        for task in ("choice", "rolling", "written"):
            for metric, value in want["results"][task].items():
                if isinstance(value, float):
                    assert have[name]["results"][task][metric] == pytest.approx(value, rel=1e-5), (name, task, metric)
            for mine, other in zip(have[name]["samples"][task], want["samples"][task], strict=True):
                assert mine["arguments"] == other["arguments"]
                for (ours,), (told,) in zip(mine["resps"], other["resps"], strict=True):
                    if task == "written":
                        assert ours == told
                    else:
                        np.testing.assert_allclose(np.array(ours, float), np.array(told, float), atol=1e-4)


def test_the_model_works_once_for_all(monkeypatch, base, adapters, tasks):
    calls = {"scores": 0, "samples": 0}
    scores, samples = lm_eval_model.choice_scores, lm_eval_model.sample

    def counted(name, function):
        def call(*arguments, **options):
            calls[name] += 1
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(lm_eval_model, "choice_scores", counted("scores", scores))
    monkeypatch.setattr(lm_eval_model, "sample", counted("samples", samples))
    evaluate_all(base, adapters, tasks, bootstrap_iters=0)
    assert calls == {"scores": 2, "samples": 1}


def test_adapters_alone_have_the_same_results_without_the_base(monkeypatch, base, adapters, tasks):
    drawn = []
    sample = lm_eval_model.sample

    def counted(*arguments, **options):
        drawn.append(len(arguments[4]))
        return sample(*arguments, **options)

    monkeypatch.setattr(lm_eval_model, "sample", counted)
    everything = evaluate_all(base, adapters, tasks, bootstrap_iters=0)
    alone = evaluate_all(base, {"a1": adapters["a1"]}, tasks, bootstrap_iters=0, alone=True)
    assert list(alone) == ["a1"]
    assert drawn == [3 * len(ROWS), len(ROWS)]
    for task, results in everything["a1"]["results"].items():
        have = {name: value for name, value in alone["a1"]["results"][task].items() if isinstance(value, float)}
        assert have == pytest.approx({name: results[name] for name in have}, rel=1e-5)
    with pytest.raises(UserError, match="there are no adapters"):
        evaluate_all(base, {}, tasks, alone=True)


def test_numbers_that_are_not_finite_name_their_adapter(base, adapters):
    """The harness would take the first of equally undefined options for the likeliest, and call it right or wrong."""
    weights = {path: (a, b * np.nan) for path, (a, b) in adapters["a1"].weights.items()}
    lm = StackLM(base, [adapters["a0"], replace(adapters["a1"], weights=weights)])
    with pytest.raises(NotFinite) as error:
        lm.loglikelihood([Instance("loglikelihood", {}, ("The unit of force is the", " newton"), 0)])
    assert error.value.adapter == 1


def test_answers_belong_to_one_adapter(base, adapters):
    """Models of the same requests answer each for themselves, in any order of asking."""
    lm = StackLM(base, list(adapters.values()))
    requests = [Instance("loglikelihood", {}, ("The unit of force is the", " newton"), 0)]
    found = []
    for shown in (1, None, 0, 1):
        lm.show(shown)
        found.append(lm.loglikelihood(requests)[0][0])
    assert found[0] == found[3]
    assert len(set(found)) == 3
    alone = StackLM(base, [adapters["a0"]])
    alone.show(0)
    assert alone.loglikelihood(requests)[0][0] == found[2]
    assert digest_of(adapters["a0"]) != digest_of(adapters["a1"])


def test_samples_differ_and_repeat(base):
    """Requests made twice are two samples; the same call again gives the same two."""
    options = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8, "until": []}
    requests = [Instance("generate_until", {}, ("The unit of force", dict(options)), 0)] * 2
    first = StackLM(base, []).generate_until(requests)
    assert first[0] != first[1]
    assert StackLM(base, []).generate_until(requests) == first


def test_what_the_harness_cuts_is_cut(base):
    lm = StackLM(base, [])
    hf = HFLM(pretrained=base.tokenizer.name_or_path, device="cpu", dtype="float32", batch_size=1, max_length=24)
    lm.max_length = 24
    request = [Instance("loglikelihood", {}, ("The unit of force is the newton. " * 8, " A watt is a joule."), 0)]
    assert lm.loglikelihood(request)[0][0] == pytest.approx(hf.loglikelihood(request)[0][0], abs=1e-4)
    text = [Instance("loglikelihood_rolling", {}, ("The unit of force is the newton. " * 8,), 0)]
    assert lm.loglikelihood_rolling(text)[0] == pytest.approx(hf.loglikelihood_rolling(text)[0], abs=1e-4)


def test_what_would_mislead_is_refused(base, adapters, tasks):
    with pytest.raises(UserError, match="use_cache keeps answers without the model"):
        evaluate_all(base, adapters, tasks, use_cache="cache")
    with pytest.raises(UserError, match="an adapter is called 'base'"):
        evaluate_all(base, {"base": adapters["a0"]}, tasks)
    with pytest.raises(UserError, match="no tasks"):
        evaluate_all(base, adapters, [])
    requests = [Instance("generate_until", {}, ("The", {"num_beams": 4}), 0)]
    with pytest.raises(UserError, match="'num_beams' is not supported"):
        StackLM(base, []).generate_until(requests)
