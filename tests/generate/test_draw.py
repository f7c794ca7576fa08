"""What one step draws, against distributions computed by hand and by counting."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrial import seeds
from finetrial.generate.config import SamplingConfig
from finetrial.generate.draw import draw, filtered, rules

CPU = torch.device("cpu")


def by_hand(logits_V: np.ndarray, config: SamplingConfig) -> np.ndarray:
    """The distribution that `config` asks for, one filter after another, each renormalised."""
    p_V = np.exp((logits_V - logits_V.max()) / config.temperature)
    p_V /= p_V.sum()
    if config.top_k:
        order = sorted(range(len(p_V)), key=lambda v: (-p_V[v], v))
        p_V[order[config.top_k :]] = 0
        p_V /= p_V.sum()
    if config.top_p < 1:
        mass = 0.0
        for v in sorted(range(len(p_V)), key=lambda v: (-p_V[v], v)):
            if mass >= config.top_p:
                p_V[v] = 0
            mass += p_V[v]
        p_V /= p_V.sum()
    p_V[p_V < config.min_p * p_V.max()] = 0
    return p_V / p_V.sum()


CONFIGS = [
    SamplingConfig(),
    SamplingConfig(temperature=0.5),
    SamplingConfig(temperature=2.0, top_k=3),
    SamplingConfig(top_p=0.6),
    SamplingConfig(min_p=0.2),
    SamplingConfig(temperature=1.5, top_k=7, top_p=0.8, min_p=0.1),
]


@pytest.mark.parametrize("vocabulary", [7, 12, 64])
def test_log_probabilities_are_those_of_the_filtered_distribution(vocabulary):
    random = np.random.default_rng(vocabulary)
    configs = [config for config in CONFIGS for _ in range(200)]
    logits_SV = random.normal(0, 2, (len(configs), vocabulary))
    uniform_S = torch.from_numpy(random.random(len(configs)))
    drawn = draw(torch.from_numpy(logits_SV).float(), uniform_S, rules(configs, CPU))
    for s, config in enumerate(configs):
        p_V, plain_V = by_hand(logits_SV[s], config), by_hand(logits_SV[s], SamplingConfig())
        token = int(drawn.token_S[s])
        assert float(drawn.logp_S[s]) == pytest.approx(np.log(p_V[token]), abs=1e-5)
        assert float(drawn.raw_logp_S[s]) == pytest.approx(np.log(plain_V[token]), abs=1e-5)
        assert float(drawn.entropy_S[s]) == pytest.approx(scipy.stats.entropy(plain_V), abs=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("vocabulary", [7, 12])
def test_frequencies_follow_the_distribution(config, vocabulary):
    logits_V = np.random.default_rng(3).normal(0, 1.5, vocabulary)
    draws = 20_000
    uniform_S = torch.from_numpy(seeds.stream(5, "test", vocabulary).random(draws))
    logits_SV = torch.from_numpy(logits_V).float().repeat(draws, 1)
    drawn = draw(logits_SV, uniform_S, rules([config] * draws, CPU))
    counts_V = np.bincount(drawn.token_S.numpy(), minlength=vocabulary)
    p_V = by_hand(logits_V, config)
    assert not counts_V[p_V == 0].any()
    kept = p_V > 0
    if kept.sum() > 1:
        assert scipy.stats.chisquare(counts_V[kept], draws * p_V[kept]).pvalue > 1e-3


def test_temperature_zero_takes_the_likeliest_token_beside_rows_that_sample():
    logits_SV = torch.tensor([[0.0, 3.0, 1.0, -2.0]] * 3)
    configs = [SamplingConfig(temperature=0), SamplingConfig(), SamplingConfig(temperature=0, top_k=2)]
    drawn = draw(logits_SV.clone(), torch.full((3,), 0.999, dtype=torch.float64), rules(configs, CPU))
    assert drawn.token_S.tolist()[::2] == [1, 1]
    assert drawn.logp_S.tolist()[::2] == [0.0, 0.0]
    want = logits_SV[0].log_softmax(0)[1]
    np.testing.assert_allclose(drawn.raw_logp_S[::2], [want, want], rtol=1e-6)
    assert int(drawn.token_S[1]) == 3  # the last 0.6 % belong to the last token


@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
def test_filters_of_a_large_vocabulary_keep_what_a_whole_sort_keeps(spread):
    random = np.random.default_rng(int(10 * spread))
    configs = [SamplingConfig(top_p=0.8), SamplingConfig(top_k=200, top_p=0.99), SamplingConfig(top_k=40)]
    logits_SV = np.round(random.normal(0, spread, (3, 900)), 1)  # many equal masses
    weight_SV = torch.from_numpy(np.exp(logits_SV)).float()
    kept_SV = filtered(
        weight_SV, torch.tensor([[c.top_k] for c in configs]), torch.tensor([[c.top_p] for c in configs])
    )
    for s, config in enumerate(configs):
        assert ((kept_SV[s] > 0).numpy() == (by_hand(np.log(weight_SV[s].double().numpy()), config) > 0)).all()


def test_equal_masses_are_cut_at_the_lower_token():
    weight_FV = torch.tensor([[0.5, 1.0, 0.5, 0.5, 0.5]])
    kept = filtered(weight_FV, torch.tensor([[3]]), torch.tensor([[1.0]]))
    assert kept.tolist() == [[0.5, 1.0, 0.5, 0.0, 0.0]]


@given(
    logits=st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=30),
    uniform=st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 1 - 2**-53, 5e-324])),
    temperature=st.floats(1e-3, 50),
    top_k=st.integers(0, 40),
    top_p=st.floats(1e-6, 1),
    min_p=st.floats(0, 1, exclude_max=True),
)
@settings(max_examples=200, deadline=None)
def test_a_token_of_positive_probability_is_always_drawn(logits, uniform, temperature, top_k, top_p, min_p):
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    uniform_S = torch.tensor([uniform], dtype=torch.float64)
    drawn = draw(torch.tensor([logits]), uniform_S, rules([config], CPU))
    assert 0 <= int(drawn.token_S) < len(logits)
    assert np.isfinite(float(drawn.logp_S))
    assert float(drawn.logp_S) <= 1e-6
    assert float(drawn.entropy_S) >= -1e-5


def test_a_number_finds_its_token_in_a_large_vocabulary():
    vocabulary = 151_936
    logits_SV = torch.zeros(4, vocabulary)
    uniform_S = torch.tensor([0.0, 0.25, 0.9999999, 1 - 2**-53], dtype=torch.float64)
    drawn = draw(logits_SV, uniform_S, rules([SamplingConfig()] * 4, CPU))
    assert drawn.token_S.tolist() == [int(u * vocabulary) for u in uniform_S.tolist()]
