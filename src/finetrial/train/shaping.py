"""What is added to a grade before it becomes a reward, and which groups are worth training on.

Shapes: G completions of a group, T tokens of a completion.
"""

import numpy as np

from finetrial.train.advantages import informative


def overlong_penalty(length: np.ndarray, max_tokens: int, cache: int) -> np.ndarray:
    """Soft punishment of long completions, in [-1, 0], to be added to the grade (DAPO, arXiv:2503.14476, eq. 13).

    0 up to max_tokens - cache tokens, then falling evenly to -1 at max_tokens and beyond.
    """
    return np.clip((max_tokens - cache - np.asarray(length, np.float64)) / cache, -1.0, 0.0)


def keep_group(grades_G: np.ndarray) -> bool:
    """Whether dynamic sampling keeps a group (DAPO, eq. 11): some completions are right and some are not.

    Takes the unshaped grade: a penalty on length makes every group look as if it could teach. NaN is a missing grade.
    """
    return informative(grades_G)


def kl_returns(reward: float, logp_T: np.ndarray, base_logp_T: np.ndarray, kl_coef: float) -> np.ndarray:
    """Return (T,) from each token on, when the divergence enters the reward (REINFORCE++, arXiv:2501.03262).

    R_t = reward - kl_coef x sum over i >= t of k1_i, k1 = logp - base_logp, without discount. R_0 is the reward of the
    whole completion (RLOO, arXiv:2402.14740): what a rule of `advantages` takes. An empty completion has no entry.
    """
    k1_T = logp_T - base_logp_T
    return reward - kl_coef * k1_T[::-1].cumsum()[::-1]
