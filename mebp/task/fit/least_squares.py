"""Least squares with what is known beforehand: no constant is negative, and what measurements leave open is named."""

from itertools import combinations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
TAKES_PART = 0.1  # of a direction, in units of the constants' own effect
SAME_DIRECTION = 1e-3  # singular values this far apart: what was measured cannot tell two constants apart


def non_negative(A: Floats, b: Floats) -> Floats:
    """Least squares with x >= 0: the best of the solutions on every subset of columns (of four there are fifteen)."""
    best, best_error = np.zeros(A.shape[1]), float("inf")
    for count in range(1, A.shape[1] + 1):
        for columns in combinations(range(A.shape[1]), count):
            x = np.zeros(A.shape[1])
            x[list(columns)] = np.linalg.lstsq(A[:, columns], b, rcond=None)[0]
            error = float(((A @ x - b) ** 2).sum())
            if (x >= 0).all() and error < best_error:
                best, best_error = x, error
    return best


def indistinct(rows: Floats, names: tuple[str, ...]) -> tuple[str, ...]:
    """The constants that the rows leave open: those that take part in a direction along which nothing was measured."""
    scaled = rows / np.maximum(np.linalg.norm(rows, axis=0), 1e-300)
    _, values, directions = np.linalg.svd(scaled)
    values = np.concatenate([values, np.zeros(len(names) - len(values))])
    flat = directions[values <= SAME_DIRECTION * values[0]]
    return tuple(name for name, part in zip(names, np.abs(flat).max(axis=0, initial=0.0), strict=True) if part > TAKES_PART)


def pulled(A: Floats, b: Floats, prior: Floats, pull: float) -> tuple[Floats, Floats]:
    """The same system with each unknown drawn a little towards what is known of it beforehand."""
    return np.vstack([A, pull * np.diag(1 / prior)]), np.concatenate([b, np.full(len(prior), pull)])
