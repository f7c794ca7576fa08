"""The stacked optimiser against torch's, run by run."""

import math

import pytest
import torch

from finetrial.train.config import TrainConfig
from finetrial.train.optimiser import StackedAdamW, clip_gradients, learning_rate


def test_each_row_moves_as_torch_adamw_alone():
    configs = [
        TrainConfig(learning_rate=1e-2, weight_decay=0.1),
        TrainConfig(learning_rate=3e-3, beta1=0.8, beta2=0.95, eps=1e-6),
        TrainConfig(learning_rate=0.5),
    ]
    generator = torch.Generator().manual_seed(0)
    start_NP = torch.randn(3, 50, generator=generator)
    alone = [torch.nn.Parameter(row.clone()) for row in start_NP]
    torches = [
        torch.optim.AdamW(
            [parameter],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
        for parameter, config in zip(alone, configs, strict=True)
    ]
    stacked = StackedAdamW(configs, start_NP)
    rates = torch.tensor([config.learning_rate for config in configs], dtype=torch.float64)
    for step in range(30):
        grad_NP = torch.randn(3, 50, generator=generator) * 10.0**-step
        for n, (parameter, optimiser) in enumerate(zip(alone, torches, strict=True)):
            parameter.grad = grad_NP[n].clone()
            optimiser.step()
        stacked.step(grad_NP, rates, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(start_NP, torch.stack([p.data for p in alone]), rtol=2e-6, atol=2e-7)


def test_an_inactive_run_keeps_every_number_and_goes_on_as_if_it_had_never_paused():
    config = TrainConfig(learning_rate=1e-2, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    start_P, grads = torch.randn(20, generator=generator), torch.randn(6, 20, generator=generator)
    pausing, steady = start_P.repeat(2, 1), start_P.repeat(2, 1)
    rate = torch.full((2,), 1e-2, dtype=torch.float64)
    one, two = StackedAdamW([config] * 2, pausing), StackedAdamW([config] * 2, steady)
    for step, grad_P in enumerate(grads):
        active = torch.tensor([True, step not in (0, 3)])
        before = pausing[1].clone()
        one.step(torch.stack([grad_P, grad_P * active[1]]), rate, active)
        if not active[1]:
            assert torch.equal(pausing[1], before)
        if active[1]:
            two.step(torch.stack([grad_P, grad_P]), rate, torch.tensor([True, True]))
    assert torch.equal(pausing[1], steady[1])
    assert one.steps_N.tolist() == [6, 4]


def test_lora_plus_is_a_parameter_group_of_its_own():
    """The rate of B is 16 × 1e-4 = 1.6e-3, and its weight decay follows; a neighbour at ratio 1 keeps its bits."""
    plus = TrainConfig(learning_rate=1e-4, weight_decay=0.3, lora_plus_ratio=16)
    plain = TrainConfig(learning_rate=1e-4, weight_decay=0.3)
    generator = torch.Generator().manual_seed(0)
    start_P, b_P = torch.randn(40, generator=generator), torch.arange(40) % 3 == 0
    a, b = torch.nn.Parameter(start_P[~b_P]), torch.nn.Parameter(start_P[b_P])
    groups = [{"params": [a], "lr": 1e-4}, {"params": [b], "lr": 1.6e-3}]
    theirs = torch.optim.AdamW(groups, weight_decay=0.3)
    both, alone, unasked = start_P.repeat(2, 1), start_P.repeat(1, 1), start_P.repeat(1, 1)
    mine = StackedAdamW([plus, plain], both, b_P)
    single, blind = StackedAdamW([plain], alone, b_P), StackedAdamW([plain], unasked)
    rate, active = torch.full((2,), 1e-4, dtype=torch.float64), torch.ones(2, dtype=torch.bool)
    for _ in range(20):
        grad_P = torch.randn(40, generator=generator)
        a.grad, b.grad = grad_P[~b_P], grad_P[b_P]
        theirs.step()
        mine.step(grad_P.repeat(2, 1), rate, active)
        single.step(grad_P.repeat(1, 1), rate[:1], active[:1])
        blind.step(grad_P.repeat(1, 1), rate[:1], active[:1])
    torch.testing.assert_close(both[0, ~b_P], a.data, rtol=2e-6, atol=2e-7)
    torch.testing.assert_close(both[0, b_P], b.data, rtol=2e-6, atol=2e-7)
    assert torch.equal(both[1], alone[0])
    assert torch.equal(alone, unasked)
    with pytest.raises(ValueError, match="which numbers are those of B"):
        StackedAdamW([plus], start_P.repeat(1, 1))


def test_frozen_numbers_do_not_decay():
    config = TrainConfig(learning_rate=1e-2, weight_decay=0.5, lora_plus_ratio=4)
    start_NP = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    frozen_NP = torch.zeros(2, 12, dtype=torch.bool)
    frozen_NP[1, 4:9] = True
    param_NP, free_NP = start_NP.clone(), start_NP.clone()
    b_P = torch.arange(12) > 6
    one, two = StackedAdamW([config] * 2, param_NP, b_P, frozen_NP), StackedAdamW([config] * 2, free_NP, b_P)
    rate, active = torch.full((2,), 1e-2, dtype=torch.float64), torch.ones(2, dtype=torch.bool)
    for step in range(5):
        grad_NP = torch.randn(2, 12, generator=torch.Generator().manual_seed(step)).masked_fill(frozen_NP, 0)
        one.step(grad_NP, rate, active)
        two.step(grad_NP, rate, active)
    assert torch.equal(param_NP[frozen_NP], start_NP[frozen_NP])
    assert torch.equal(param_NP[~frozen_NP], free_NP[~frozen_NP])
    assert not one.mean_NP[frozen_NP].any()


def test_clipping_is_per_run():
    grad_NP = torch.tensor([[3.0, 4.0], [0.3, 0.4], [30.0, 40.0]])
    norm_N = torch.linalg.vector_norm(grad_NP, dim=1)
    alone = torch.nn.Parameter(torch.zeros(2))
    alone.grad = grad_NP[0].clone()
    torch.nn.utils.clip_grad_norm_([alone], 1.0)
    clip_gradients(grad_NP, norm_N, torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(grad_NP[0], alone.grad)
    torch.testing.assert_close(grad_NP[1:], torch.tensor([[0.3, 0.4], [30.0, 40.0]]))


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("cosine", [0.5, 1.0] + [0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]),
    ],
)
def test_schedule_values(schedule, want):
    config = TrainConfig(learning_rate=2.0, schedule=schedule, warmup_ratio=0.2)
    have = [learning_rate(config, step, 8) for step in range(8)]  # ceil(0.2 · 8) = 2 steps of warm-up
    assert have == pytest.approx([2.0 * value for value in want])


def test_without_warmup_the_first_step_is_at_the_peak():
    assert learning_rate(TrainConfig(learning_rate=2.0, warmup_ratio=0.0), 0, 5) == 2.0
    assert learning_rate(TrainConfig(learning_rate=2.0, warmup_ratio=0.9), 0, 1) == 2.0
