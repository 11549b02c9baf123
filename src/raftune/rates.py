"""Least squares with no negative rate: seconds of decoding steps as a step, a row and a position. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np


def fitted(points: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """From (rows, positions, seconds) of steps: seconds of a step, a row and a position, none of them negative.

    Relative errors are squared, so that a small batch tells as much as a large one. Of all the ways to leave rates out,
    the one with the least error whose rates are all positive.
    """
    if not points:
        return 0.0, 0.0, 0.0
    values_N3 = np.array([[1.0, rows, positions] for rows, positions, _ in points])
    seconds_N = np.array([max(seconds, 1e-9) for *_, seconds in points])
    scaled_N3, ones_N = values_N3 / seconds_N[:, None], np.ones(len(points))
    best, least = np.zeros(3), np.inf
    for kept in (kept for count in (3, 2, 1) for kept in combinations(range(3), count)):
        some_NM = scaled_N3[:, kept]
        size_M = np.abs(some_NM).max(0)
        if not size_M.all():
            continue
        found_M = np.linalg.lstsq(some_NM / size_M, ones_N, rcond=None)[0] / size_M
        error = float(((some_NM @ found_M - ones_N) ** 2).sum())
        if (found_M >= 0).all() and error < least - 1e-12:
            best, least = np.zeros(3), error
            best[list(kept)] = found_M
    return float(best[0]), float(best[1]), float(best[2])
