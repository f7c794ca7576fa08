"""Policy losses against hand-worked values, autograd and the laws that any layout of a batch must keep."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrial.train.policy_loss import LOG_RATIO_LIMIT, Rows, kl_penalty, policy_loss, token_weights
from finetrial.train.rl_config import LossConfig

KINDS = ("ppo", "gspo", "grpo_s", "cispo")
OF_ROWS = ("gspo", "grpo_s")
AGGREGATIONS = ("token_mean", "sequence_mean", "constant")
MAX_TOKENS = 16
POLICY, REF = [0.4, 0.4, 0.1, 0.1], [0.5, 0.3, 0.15, 0.05]


def numbers(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rows_of(old, advantage, sampler=None, ref=None, mask=None, row=None) -> Rows:
    old = torch.as_tensor(old, dtype=torch.float64)
    return Rows(
        advantage_M=torch.as_tensor(advantage, dtype=torch.float64).expand_as(old),
        old_logp_M=old,
        sampler_logp_M=old if sampler is None else torch.as_tensor(sampler, dtype=torch.float64),
        ref_logp_M=None if ref is None else torch.as_tensor(ref, dtype=torch.float64),
        mask_M=torch.ones(len(old), dtype=torch.bool) if mask is None else torch.as_tensor(mask),
        row_M=torch.zeros(len(old), dtype=torch.int64) if row is None else torch.as_tensor(row),
    )


def at_ratios(config, ratios, advantages):
    """Loss of single tokens with these ratios, each weighing 1."""
    old = torch.full((len(ratios),), -2.0).double()
    return policy_loss(config, old + numbers(ratios).log(), rows_of(old, advantages), torch.ones(len(ratios)))


def batch(lengths, seed, ref=True):
    """Random completions: log-probabilities that learn, what is known of them, lengths that take part."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)

    def noise(scale):
        return torch.randn(total, generator=generator, dtype=torch.float64) * scale

    row = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    mask = torch.rand(total, generator=generator) < 0.8
    old = -1 - noise(1).abs()
    known = Rows(
        advantage_M=noise(1),
        old_logp_M=old,
        sampler_logp_M=old + noise(0.5),
        ref_logp_M=old + noise(0.5) if ref else None,
        mask_M=mask,
        row_M=row,
    )
    taking_part = [int(mask[row == s].sum()) for s in range(len(lengths))]
    return old + noise(0.3), known, taking_part


def weights_of(aggregation, taking_part, row_M, copies=1):
    rows = copies * sum(length > 0 for length in taking_part)
    return token_weights(aggregation, taking_part, MAX_TOKENS, rows, copies * sum(taking_part))[row_M]


def chosen(rows: Rows, places, row_M) -> Rows:
    """Some tokens, in that order, with new row numbers."""
    ref = None if rows.ref_logp_M is None else rows.ref_logp_M[places]
    return Rows(
        rows.advantage_M[places], rows.old_logp_M[places], rows.sampler_logp_M[places], ref, rows.mask_M[places], row_M
    )


def plain_loss(config: LossConfig, logp, rows: Rows, weight):
    """The same loss from differentiable operations; of whole rows, advantage and weight are constant in each."""
    take = rows.mask_M
    if config.kind in OF_ROWS:
        total = logp.new_zeros(())
        for s in rows.row_M.unique():
            mine = take & (rows.row_M == s)
            if not mine.any():
                continue
            gap = (logp - rows.old_logp_M)[mine]
            ratio = gap.mean().exp() if config.kind == "gspo" else gap.exp().mean()
            advantage = rows.advantage_M[mine][0]
            bounded = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
            total = total - torch.minimum(ratio * advantage, bounded * advantage) * weight[mine].sum()
        return total
    ratio = (logp - rows.old_logp_M).exp()
    bounded = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    if config.kind == "cispo":
        loss = -bounded.detach() * rows.advantage_M * logp
    else:
        loss = -torch.minimum(ratio * rows.advantage_M, bounded * rows.advantage_M)
        if config.dual_clip is not None:
            bound = -config.dual_clip * rows.advantage_M
            loss = torch.where(rows.advantage_M < 0, torch.minimum(loss, bound), loss)
    if config.tis_cap is not None:
        loss = loss * (rows.old_logp_M - rows.sampler_logp_M).exp().clamp(max=config.tis_cap)
    if config.kl_coef and config.kl_in == "loss":
        assert rows.ref_logp_M is not None
        gap = rows.ref_logp_M - logp
        kl = {"k1": -gap, "k2": gap**2 / 2, "k3": gap.exp() - 1 - gap}[config.kl]
        loss = loss + config.kl_coef * kl
    return (loss * weight)[take].sum()


@pytest.mark.parametrize(
    ("clip_high", "dual_clip", "want"),
    [
        (0.2, None, [-1.2, -1.2, -0.5, 0.8, 1.5, 4.0]),
        (0.28, None, [-1.28, -1.25, -0.5, 0.8, 1.5, 4.0]),
        (0.28, 3.0, [-1.28, -1.25, -0.5, 0.8, 1.5, 3.0]),
    ],
)
def test_ppo_clips_by_the_sign_of_the_advantage(clip_high, dual_clip, want):
    config = LossConfig(clip_low=0.2, clip_high=clip_high, dual_clip=dual_clip)
    found = at_ratios(config, [1.5, 1.25, 0.5, 0.5, 1.5, 4.0], numbers([1, 1, 1, -1, -1, -1]))
    assert found.loss_M.tolist() == pytest.approx(want, abs=1e-12)
    assert found.clipped_M.tolist() == [True, clip_high == 0.2, False, True, False, dual_clip is not None]
    assert ((found.slope_M == 0) == found.clipped_M).all()


def test_only_a_clip_that_changes_the_gradient_counts():
    found = at_ratios(LossConfig(), [1.5, 0.5, 1.0], 1.0)
    assert found.loss_M.mean().item() == pytest.approx(-0.9)
    assert found.clipped_M.tolist() == [True, False, False]
    found = at_ratios(LossConfig(clip_high=0.28), [1.3, 0.7, 1.0], 1.0)
    assert found.loss_M.mean().item() == pytest.approx(-(1.28 + 0.7 + 1) / 3)
    assert at_ratios(LossConfig(), [1.5], -1.0).loss_M.item() == pytest.approx(1.5)


def test_gspo_takes_the_geometric_mean_of_a_rows_ratios():
    config = LossConfig(kind="gspo", clip_low=3e-4, clip_high=4e-4, aggregation="sequence_mean")
    new = numbers([-0.9, -2.2, -0.45])
    for advantage, want, clipped in ((0.7, -0.6884300177, False), (-0.7, 0.69979, True)):
        rows = rows_of([-1.0, -2.0, -0.5], advantage)
        found = policy_loss(config, new, rows, weights_of("sequence_mean", [3], rows.row_M))
        assert found.ratio_M.tolist() == pytest.approx([0.9834714538] * 3, abs=1e-9)
        assert found.loss_M.sum().item() == pytest.approx(want, abs=1e-9)
        assert found.clipped_M.tolist() == [clipped] * 3
        slope = 0.0 if clipped else -0.9834714538 * advantage / 3
        assert found.slope_M.tolist() == pytest.approx([slope] * 3, abs=1e-9)


def test_grpo_s_takes_the_arithmetic_mean_of_a_rows_ratios():
    config = LossConfig(kind="grpo_s", clip_low=0.2, clip_high=0.28)
    for advantage, want, clipped in ((0.5, -0.64, True), (-0.5, 0.75, False)):
        rows = rows_of([-1.0, -2.0], advantage)
        logp = rows.old_logp_M + numbers([2.5, 0.5]).log()  # mean 1.5
        found = policy_loss(config, logp, rows, torch.full((2,), 0.5))
        assert found.ratio_M.tolist() == pytest.approx([1.5, 1.5])
        assert found.loss_M.sum().item() == pytest.approx(want)
        assert found.clipped_M.tolist() == [clipped] * 2
        assert found.slope_M.tolist() == pytest.approx([0.0, 0.0] if clipped else [0.625, 0.125])


@pytest.mark.parametrize(
    ("low", "high", "weight", "loss"),
    [
        (5.0, 4.0, [0.3, 1.0, 1.5, 5.0], [0.06, 1.0, 4.5, 20.0]),
        (0.2, 0.28, [0.8, 1.0, 1.28, 1.28], [0.16, 1.0, 3.84, 5.12]),
    ],
)
def test_cispo_bounds_the_weight_and_keeps_every_gradient(low, high, weight, loss):
    logp = numbers([-0.2, -1.0, -3.0, -4.0])
    rows = rows_of(logp - numbers([0.3, 1.0, 1.5, 7.0]).log(), 1.0)
    found = policy_loss(LossConfig(kind="cispo", clip_low=low, clip_high=high), logp, rows, torch.ones(4))
    assert found.slope_M.tolist() == pytest.approx([-value for value in weight], abs=1e-9)
    assert found.loss_M.tolist() == pytest.approx(loss, abs=1e-9)
    assert found.clipped_M.tolist() == [low < 1, False, low < 1, True]


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_importance_sampling_multiplies_loss_and_slope(kind):
    old, sampler = [-1.0, -0.5, -3.0, -0.1], [-1.1, -0.5, -4.5, -0.3]
    rows, logp = rows_of(old, 1.0, sampler), numbers(old) + 0.1
    plain = policy_loss(LossConfig(kind=kind), logp, rows, torch.ones(4))
    found = policy_loss(LossConfig(kind=kind, tis_cap=2.0), logp, rows, torch.ones(4))
    assert plain.tis_M is None
    assert found.tis_M is not None
    assert found.tis_M.tolist() == pytest.approx([1.1051709181, 1.0, 2.0, 1.2214027582], abs=1e-9)
    torch.testing.assert_close(found.loss_M, plain.loss_M * found.tis_M)
    torch.testing.assert_close(found.slope_M, plain.slope_M * found.tis_M)


def test_importance_sampling_leaves_the_divergence_alone():
    rows = rows_of([-1.0, -2.0], 0.0, sampler=[-3.0, -1.0], ref=[-1.5, -2.5])
    config = LossConfig(kl_coef=0.1, tis_cap=2.0)
    found = policy_loss(config, numbers([-1.0, -2.0]), rows, torch.ones(2))
    assert found.loss_M.tolist() == pytest.approx([0.1 * 0.125] * 2)
    assert found.slope_M.tolist() == pytest.approx([0.05] * 2)


def test_kl_estimates():
    logp, ref = numbers(POLICY).log(), numbers(REF).log()
    true = 0.0545836157
    for kind, want, mean in (
        ("k1", [-0.2231435513, 0.2876820725, -0.4054651081, 0.6931471806], true),
        ("k2", [0.0248965222, 0.0413804874, 0.0822009769, 0.240226507], 0.0587535523),
        ("k3", [0.0268564487, 0.0376820725, 0.0945348919, 0.1931471806], true),
    ):
        found = kl_penalty(kind, logp, ref)
        assert found.tolist() == pytest.approx(want, abs=1e-9)
        assert (numbers(POLICY) * found).sum().item() == pytest.approx(mean, abs=1e-9)
    assert not kl_penalty("k3", logp.clone().requires_grad_(), ref).requires_grad


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("k1", [0.0, 0.0, 0.0, 0.0]),
        ("k2", [-0.1110908668, 0.0932393827, -0.0460048724, 0.0638563565]),
        ("k3", [-0.1, 0.1, -0.05, 0.05]),
    ],
)
def test_gradients_that_kl_losses_really_have(kind, want):
    """Expected over tokens drawn from the policy: nothing, reverse KL, forward KL."""
    logits = numbers(POLICY).log().requires_grad_()
    logp = logits.log_softmax(0)
    rows = rows_of(logp.detach(), 0.0, ref=numbers(REF).log())
    found = policy_loss(LossConfig(kl=kind, kl_coef=1.0), logp.detach(), rows, numbers(POLICY))
    (gradient,) = torch.autograd.grad(logp, logits, found.slope_M)
    assert gradient.tolist() == pytest.approx(want, abs=1e-9)


def test_aggregations():
    losses, row = numbers([1, 1, 1, 1, 2, 2]), torch.tensor([0, 0, 0, 0, 1, 1])
    for aggregation, want in (("sequence_mean", 1.5), ("token_mean", 4 / 3), ("constant", 0.5)):
        weight = token_weights(aggregation, [4, 2], 8, 2, 6)[row]
        assert (losses * weight).sum().item() == pytest.approx(want)
        assert torch.equal(token_weights(aggregation, [4, 0], 8, 1, 4)[1], numbers(0.0))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(("k1", "k2", "k3")),
    st.sampled_from((None, 1.5)),
    st.sampled_from((None, 1.2)),
    st.sampled_from(AGGREGATIONS),
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.integers(0, 1000),
)
def test_slopes_are_autograds(kind, kl, tis_cap, dual_clip, aggregation, lengths, seed):
    logp, rows, taking_part = batch(lengths, seed)
    bound = None if kind == "cispo" else dual_clip
    config = LossConfig(kind=kind, kl=kl, tis_cap=tis_cap, dual_clip=bound, kl_coef=0.3, aggregation=aggregation)
    if kind in OF_ROWS:  # the sequence form: one advantage per row, no token terms
        config = LossConfig(kind=kind, aggregation=aggregation)
        rows = Rows(**{**vars(rows), "advantage_M": rows.advantage_M[rows.row_M]})
    weight = weights_of(aggregation, taking_part, rows.row_M)
    found = policy_loss(config, logp, rows, weight)
    leaf = logp.clone().requires_grad_()
    want = plain_loss(config, leaf, rows, weight)
    assert found.loss_M.sum().item() == pytest.approx(want.item(), abs=1e-12)
    if taking_part != [0] * len(taking_part):
        (slope,) = torch.autograd.grad(want, leaf)
        torch.testing.assert_close(found.slope_M, slope, rtol=1e-10, atol=1e-14)
    assert not found.slope_M.requires_grad


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(AGGREGATIONS), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 1000))
def test_before_the_first_update_all_kinds_have_one_gradient(aggregation, lengths, seed):
    _, rows, taking_part = batch(lengths, seed, ref=False)
    weight = weights_of(aggregation, taking_part, rows.row_M)
    logp = rows.old_logp_M
    want = torch.where(rows.mask_M, -rows.advantage_M * weight, 0.0)
    for kind in KINDS:
        found = policy_loss(LossConfig(kind=kind, dual_clip=None if kind == "cispo" else 3.0), logp, rows, weight)
        torch.testing.assert_close(found.slope_M, want, rtol=1e-12, atol=0)
        assert not found.clipped_M.any()
        assert (found.ratio_M == 1).all()
        value = want * logp if kind == "cispo" else want
        torch.testing.assert_close(found.loss_M, value, rtol=1e-12, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(AGGREGATIONS),
    st.lists(st.integers(1, 6), min_size=2, max_size=5),
    st.integers(0, 1000),
    st.data(),
)
def test_layout_padding_and_copies_change_nothing(kind, aggregation, lengths, seed, data):
    """Rows in passes of unequal size, and with padding of any content, keep their slopes; two copies of the batch
    have half of them each."""
    logp, rows, taking_part = batch(lengths, seed)
    config = LossConfig(kind=kind, tis_cap=2.0, kl_coef=0.1, kl="k3", aggregation=aggregation)
    weight = weights_of(aggregation, taking_part, rows.row_M)
    whole = policy_loss(config, logp, rows, weight)

    cut = data.draw(st.integers(1, len(lengths) - 1))
    for part in (range(cut), range(cut, len(lengths))):
        places = torch.cat([torch.where(rows.row_M == s)[0] for s in part])
        found = policy_loss(config, logp[places], chosen(rows, places, rows.row_M[places] - part[0]), weight[places])
        torch.testing.assert_close(found.slope_M, whole.slope_M[places], rtol=1e-12, atol=0)
        torch.testing.assert_close(found.loss_M, whole.loss_M[places], rtol=1e-12, atol=0)

    padding = torch.full((len(lengths),), math.nan, dtype=torch.float64)
    extra = torch.arange(len(lengths))
    padded = Rows(
        advantage_M=torch.cat([rows.advantage_M, padding]),
        old_logp_M=torch.cat([rows.old_logp_M, -math.inf * torch.ones_like(padding)]),
        sampler_logp_M=torch.cat([rows.sampler_logp_M, padding]),
        ref_logp_M=None if rows.ref_logp_M is None else torch.cat([rows.ref_logp_M, padding]),
        mask_M=torch.cat([rows.mask_M, torch.zeros(len(lengths), dtype=torch.bool)]),
        row_M=torch.cat([rows.row_M, extra]),
    )
    found = policy_loss(config, torch.cat([logp, padding]), padded, torch.cat([weight, padding]))
    for field in ("loss_M", "slope_M", "clipped_M", "ratio_M", "kl_M", "tis_M", "clamped_M"):
        have, want = getattr(found, field), getattr(whole, field)
        torch.testing.assert_close(have[: len(logp)], want, rtol=1e-12, atol=0)
        assert (have[len(logp) :] == (1 if field in ("ratio_M", "tis_M") else 0)).all()

    twice = torch.cat([torch.arange(len(logp))] * 2)
    rows_twice = chosen(rows, twice, torch.cat([rows.row_M, rows.row_M + len(lengths)]))
    weight_twice = weights_of(aggregation, taking_part, rows.row_M, copies=2)[twice]
    found = policy_loss(config, logp[twice], rows_twice, weight_twice)
    torch.testing.assert_close(found.slope_M, whole.slope_M[twice] / 2, rtol=1e-12, atol=0)
    assert found.loss_M.sum().item() == pytest.approx(whole.loss_M.sum().item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_wild_ratios_are_held_and_counted(kind):
    rows = rows_of([-500.0, -500.0, -1.0], [1.0, -1.0, 1.0], ref=[-1.0] * 3, row=[0, 1, 2])
    logp = numbers([-1.0, -1.0, -900.0])
    found = policy_loss(LossConfig(kind=kind, kl="k3", kl_coef=1.0), logp, rows, torch.ones(3))
    assert found.clamped_M.tolist() == [True, True, True]
    assert found.slope_M.isfinite().all()
    assert found.loss_M.isfinite().all()
    assert found.ratio_M.max().item() == pytest.approx(math.exp(LOG_RATIO_LIMIT))
    assert found.slope_M[2].item() < -1e8  # a token that the policy gave up is pulled back towards the base


def test_float32_log_probabilities_get_float32_slopes():
    rows = rows_of([-1.0, -2.0], 1.0)
    found = policy_loss(LossConfig(), torch.tensor([-1.0, -2.0]), rows, torch.ones(2))
    assert found.slope_M.dtype == torch.float32
    assert found.loss_M.dtype == torch.float64


def test_a_divergence_in_the_reward_stays_out_of_the_loss():
    rows = rows_of([-1.0], 0.0, ref=[-2.0])
    found = policy_loss(LossConfig(kl_coef=1.0, kl_in="reward", kl="k1"), numbers([-1.0]), rows, torch.ones(1))
    assert found.loss_M.item() == found.slope_M.item() == 0
    assert found.kl_M is not None
    assert found.kl_M.tolist() == [1.0]


def test_a_divergence_without_a_reference_is_refused():
    with pytest.raises(ValueError, match="ref_logp_M is needed"):
        policy_loss(LossConfig(kl_coef=0.1), numbers([-1.0]), rows_of([-1.0], 1.0), torch.ones(1))
