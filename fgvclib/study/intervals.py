"""Differences with their uncertainty: what may be claimed of two rows of a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

from scipy.stats import t as student


@dataclass(frozen=True)
class Difference:
    """A mean difference and the half width of its 95 % interval, NaN for a single pair."""

    mean: float
    half_width: float

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves zero out; never for a single pair."""
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        if self.half_width != self.half_width:
            return f"{self.mean:+.1f} (one seed: no interval)"
        return f"{self.mean:+.1f} ± {self.half_width:.1f}" + ("" if self.told_apart else ", not told apart")


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """first - second, paired seed by seed, with Student's 95 % interval over the seeds.

    It says how far another set of seeds may come out on the same test photos. Raises ValueError for unequal lengths.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    n = len(differences)
    if n < 2:
        return Difference(mean(differences), float("nan"))
    return Difference(mean(differences), student.ppf(0.975, n - 1) * stdev(differences) / sqrt(n))
