"""A diagnosis in few numbers."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from soft_mpcritic.diagnostics.models import ModelErrors
from soft_mpcritic.diagnostics.solves import SolveSample
from soft_mpcritic.diagnostics.values import ValueSample
from soft_mpcritic.types import AnyArray

BINS = 10  # of the reliability curve


class Diagnosis(NamedTuple):
    """Everything that was looked at."""

    values: ValueSample
    solves: SolveSample
    models: ModelErrors


class DiagnosticMetrics(NamedTuple):
    """One number each, for metrics.csv; NaN where nothing could be compared. Biases are in units of reward."""

    q_bias: float  # mean of Q(s_t, a_t) - return from t
    q_bias_std: float
    soft_value_bias: float  # mean of V(s_t) - return from t
    soft_value_bias_std: float
    target_bias: float  # mean of stored - reference
    target_bias_std: float
    value_gap_cold: float  # mean of stored - cold: what warm starting is worth
    value_gap_fresh: float  # mean of stored - fresh: below 0 where kept plans are stale
    model_error_first: float  # root mean square over members, at step 1
    model_error_last: float  # at step max(H, 1)
    model_skill_first: float  # that error over the error of "nothing changes"; above 1 the model is worse
    model_skill_last: float
    reward_error_first: float  # root mean square, in units of reward
    reward_error_last: float
    spread_ratio: float  # 1 where the truth lies like one more member; below, the ensemble is too sure of itself
    spread_correlation: float  # rank correlation of spread and miss: does the ensemble know where it errs?


DIAGNOSTIC_NAMES = DiagnosticMetrics._fields


def summarize(diagnosis: Diagnosis) -> DiagnosticMetrics:
    """The numbers for metrics.csv."""
    values, solves, models = diagnosis
    error, skill = models.by_step, models.by_step / np.maximum(models.still_by_step, 1e-12)
    reward_error = models.reward_by_step
    q_bias, q_std = mean_and_deviation(values.q - values.ret)
    soft_bias, soft_std = mean_and_deviation(values.soft_value - values.ret)
    target_bias, target_std = mean_and_deviation(solves.stored - solves.reference)
    return DiagnosticMetrics(
        q_bias=q_bias,
        q_bias_std=q_std,
        soft_value_bias=soft_bias,
        soft_value_bias_std=soft_std,
        target_bias=target_bias,
        target_bias_std=target_std,
        value_gap_cold=mean_and_deviation(solves.stored - solves.cold)[0],
        value_gap_fresh=mean_and_deviation(solves.stored - solves.fresh)[0],
        model_error_first=float(error[0]),
        model_error_last=float(error[-1]),
        model_skill_first=float(skill[0]),
        model_skill_last=float(skill[-1]),
        reward_error_first=float(reward_error[0]),
        reward_error_last=float(reward_error[-1]),
        spread_ratio=spread_ratio(models.spread, models.miss, models.squares.shape[0]),
        spread_correlation=rank_correlation(models.spread, models.miss),
    )


def mean_and_deviation(sample: Float[AnyArray, " R"]) -> tuple[float, float]:
    """Of a sample; NaN twice where it is empty."""
    return (float(np.mean(sample)), float(np.std(sample))) if len(sample) else (float("nan"), float("nan"))


def spread_ratio(spread: Float[AnyArray, " R"], miss: Float[AnyArray, " R"], members: int) -> float:
    """sqrt((1 + 1/N) mean spread^2 / mean miss^2): 1 where the truth is one more draw from where the members are.

    Members drawn like the truth with variance v have E spread^2 = v, and their mean misses the truth by
    v (1 + 1/N). NaN for a single member, which has no spread.
    """
    if members == 1 or not np.mean(miss**2) > 0:
        return float("nan")
    return float(np.sqrt((1 + 1 / members) * np.mean(spread**2) / np.mean(miss**2)))


def rank_correlation(one: Float[AnyArray, " R"], other: Float[AnyArray, " R"]) -> float:
    """Spearman's: Pearson's correlation of the ranks. NaN for less than two, or where a sample is not finite."""
    if len(one) < 2 or not (np.isfinite(one).all() and np.isfinite(other).all()):
        return float("nan")
    ranks = [np.argsort(np.argsort(sample)) for sample in (one, other)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def reliability(
    spread: Float[AnyArray, " R"], miss: Float[AnyArray, " R"], members: int, bins: int = BINS
) -> tuple[Float[AnyArray, " J"], Float[AnyArray, " J"]]:
    """Root mean squares of sqrt(1 + 1/N) spread, and of miss, in `bins` groups of equal size by spread.

    A calibrated ensemble has both alike in every group; at most as many groups as there are samples.
    """
    groups = [group for group in np.array_split(np.argsort(spread), bins) if len(group)]
    expected = [np.sqrt((1 + 1 / members) * np.mean(spread[group] ** 2)) for group in groups]
    return np.array(expected), np.array([np.sqrt(np.mean(miss[group] ** 2)) for group in groups])
