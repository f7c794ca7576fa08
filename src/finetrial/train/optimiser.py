"""AdamW over stacked parameters: every run has its own rates, moments, step count and clip.

The numbers of N runs are the rows of one tensor, so a step is a handful of operations whatever N is. A run that
is inactive in a step (quarantined, or without a supervised token) keeps its numbers bit for bit.

Shapes: N runs, P numbers of one run.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from finetrial.train.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Learning rate of optimiser step `step` (0, 1, ..., steps - 1).

    Warm-up over w = ceil(warmup_ratio · steps) steps: peak · (step + 1) / w, so that no step is wasted at zero.
    Then with the progress p = (step - w) / (steps - w): cosine peak · (1 + cos πp) / 2, linear peak · (1 - p), or
    constant.
    """
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    shape = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}
    return config.learning_rate * shape[config.schedule]


def clip_gradients(grad_NP: Tensor, norm_N: Tensor, limit_N: Tensor) -> None:
    """Scale each run's gradient in place so that its norm is at most its limit; a limit of 0 means none.

    The factor is limit / (norm + 1e-6), at most 1, as `torch.nn.utils.clip_grad_norm_`.
    """
    factor_N = (limit_N / (norm_N + 1e-6)).clamp(max=1.0)
    grad_NP.mul_(torch.where(limit_N > 0, factor_N, torch.ones_like(factor_N))[:, None])


class StackedAdamW:
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101) on the rows of one tensor, as `torch.optim.AdamW` per row.

    LoRA+ (Hayou et al. 2024, arXiv:2402.12354): a run's numbers of B move at `lora_plus_ratio` times its rate, and
    decay with it, as parameters of a group of their own would. All others, DoRA's magnitudes too, keep the rate.

    Args:
        configs: of each run.
        param_NP: what is optimised, in place.
        b_P: bool, the numbers of B; needed where a run has a ratio.
        frozen_NP: bool, numbers that not even weight decay may touch; their gradients are zero.

    Raises:
        ValueError: a run has a ratio and nobody said which numbers it is for.
    """

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        param_NP: Tensor,
        b_P: Tensor | None = None,
        frozen_NP: Tensor | None = None,
    ):
        def column(field: str) -> Tensor:
            values = [float(getattr(config, field)) for config in configs]
            return torch.tensor(values, dtype=torch.float64, device=param_NP.device)

        self.beta1_N, self.beta2_N = column("beta1"), column("beta2")
        self.eps_N, self.weight_decay_N = column("eps"), column("weight_decay")
        self.ratio_N = column("lora_plus_ratio")
        two_rates = bool((self.ratio_N != 1).any())
        if two_rates and b_P is None:
            raise ValueError("lora_plus_ratio needs to know which numbers are those of B")
        self.b_P = b_P if two_rates else None
        self.frozen_NP = frozen_NP
        self.param_NP = param_NP
        self.mean_NP = torch.zeros_like(param_NP)
        self.square_NP = torch.zeros_like(param_NP)
        self.steps_N = torch.zeros(len(configs), dtype=torch.float64, device=param_NP.device)

    def step(self, grad_NP: Tensor, rate_N: Tensor, active_N: Tensor) -> None:
        """Update the active runs in place.

        Args:
            grad_NP: gradients; must be finite, and zero in inactive rows.
            rate_N: float64 learning rates (of A where LoRA+ gives B another).
            active_N: bool.
        """

        def per_run(values_N: Tensor) -> Tensor:
            return values_N.to(self.param_NP.dtype)[:, None]

        def per_number(value: Callable[[Tensor], Tensor]) -> Tensor:
            """A function of the rate, where B may have one of its own and frozen numbers have none."""
            values = per_run(value(rate_N))
            if self.b_P is not None:
                values = torch.where(self.b_P, per_run(value(rate_N * self.ratio_N)), values)
            if self.frozen_NP is not None:
                values = torch.where(self.frozen_NP, per_run(value(torch.zeros_like(rate_N))), values)
            return values

        self.steps_N += active_N
        count_N = self.steps_N.clamp(min=1)  # an inactive run may have taken no step yet
        rate_N = rate_N * active_N
        self.param_NP.mul_(per_number(lambda rate_N: 1 - rate_N * self.weight_decay_N))
        self.mean_NP.lerp_(grad_NP, per_run((1 - self.beta1_N) * active_N))
        self.square_NP.mul_(per_run(torch.where(active_N, self.beta2_N, 1.0)))
        self.square_NP.addcmul_(grad_NP * per_run(1 - self.beta2_N), grad_NP)
        denominator_NP = self.square_NP.sqrt().div_(per_run((1 - self.beta2_N**count_N).sqrt()))
        denominator_NP.add_(per_run(self.eps_N))
        rise = per_number(lambda rate_N: rate_N / (1 - self.beta1_N**count_N))
        self.param_NP.sub_(self.mean_NP.div(denominator_NP).mul_(rise))

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, by name."""
        return {"mean": self.mean_NP, "square": self.square_NP, "steps": self.steps_N}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.mean_NP.copy_(state["mean"])
        self.square_NP.copy_(state["square"])
        self.steps_N.copy_(state["steps"])
