"""Confidence intervals for success rates."""

from __future__ import annotations

import math
from statistics import NormalDist

__all__ = ["difference_interval", "wilson_interval"]


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    r"""Return Wilson's score interval of a success rate.

    With :math:`\hat p` = ``successes / n`` and ``z`` the normal quantile of the confidence level, the ends
    are

    .. math:: \frac{\hat p + z^2/2n \pm z \sqrt{\hat p (1 - \hat p)/n + z^2/4n^2}}{1 + z^2/n}.

    Unlike :math:`\hat p \pm z \sqrt{\hat p (1 - \hat p)/n}` it always lies in [0, 1] and has a positive width at 0 and
    at ``n`` successes, which are frequent in short evaluations.

    References:
        E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    Args:
        successes: number of successes, ``0 <= successes <= n``.
        n: number of trials, at least 1.
        confidence: probability that the interval covers the true rate, in (0, 1).

    Returns:
        The lower and the upper end, both in [0, 1].

    Raises:
        ValueError: if an argument is outside its allowed range.

    Examples:
        >>> low, high = wilson_interval(8, 10)
        >>> round(low, 4), round(high, 4)
        (0.4902, 0.9433)
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}: an interval needs at least one trial.")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n={n}, got {successes}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, both excluded, got {confidence}.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate = successes / n
    centre = rate + z * z / (2 * n)
    half_width = z * math.sqrt(rate * (1 - rate) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    # At 0 and n successes the ends are exactly 0 and 1; rounding must not move them outside [0, 1].
    low = 0.0 if successes == 0 else (centre - half_width) / scale
    high = 1.0 if successes == n else (centre + half_width) / scale
    return low, high


def difference_interval(
    successes: int, n: int, other_successes: int, other_n: int, confidence: float = 0.95
) -> tuple[float, float]:
    r"""Return Newcombe's interval of the difference of two success rates.

    With Wilson's intervals :math:`[l_1, u_1]` and :math:`[l_2, u_2]` of the rates :math:`p_1` and :math:`p_2`, the
    ends of :math:`p_1 - p_2` are

    .. math::
        p_1 - p_2 - \sqrt{(p_1 - l_1)^2 + (u_2 - p_2)^2}, \qquad p_1 - p_2 + \sqrt{(u_1 - p_1)^2 + (p_2 - l_2)^2}.

    The rates are treated as independent: with equal seeds the interval is wider than necessary.

    References:
        R. G. Newcombe, "Interval estimation for the difference between independent proportions: comparison of eleven
        methods", Statistics in Medicine 17 (1998), method 10.

    Args:
        successes: number of successes, ``0 <= successes <= n``.
        n: number of trials, at least 1.
        other_successes: number of successes of the subtracted rate.
        other_n: number of trials of the subtracted rate.
        confidence: probability that the interval covers the true difference, in (0, 1).

    Returns:
        The lower and the upper end, both in [-1, 1].

    Raises:
        ValueError: if an argument is outside its allowed range.

    Examples:
        >>> low, high = difference_interval(56, 70, 48, 80)
        >>> round(low, 4), round(high, 4)
        (0.0524, 0.3339)
    """
    low, high = wilson_interval(successes, n, confidence)
    other_low, other_high = wilson_interval(other_successes, other_n, confidence)
    rate, other = successes / n, other_successes / other_n
    difference = rate - other
    return (
        difference - math.hypot(rate - low, other_high - other),
        difference + math.hypot(high - rate, other - other_low),
    )
