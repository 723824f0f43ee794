"""Logistic regression with a ridge, by Newton's method. Pure numpy, deterministic.

Owns the arithmetic only: which columns go in, and what the result means, is the caller's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewise.contracts import FloatArray

_STEPS = 50
_TOLERANCE = 1e-9
_HALVINGS = 30
_INTERCEPT_RIDGE = 1e-2
"""Without any the intercept runs to infinity where all targets are the same."""


class Logistic(NamedTuple):
    """Log-odds = columns @ weights + intercept + effects[group].

    Attributes:
        weights: Shape (columns,).
        intercept: The intercept.
        effects: What each group adds, shape (groups,).
    """

    weights: FloatArray
    intercept: float
    effects: FloatArray


def sigmoid(log_odds: FloatArray) -> FloatArray:
    """Probability of log-odds, without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * log_odds)))


def standardiser(columns: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and scale of each column; a column that is constant but for rounding has scale 1.

    Args:
        columns: Shape (n, columns), n at least 1.
    """
    mean, scale = columns.mean(axis=0), columns.std(axis=0)
    return mean, np.where(scale > 1e-9 * (1.0 + np.abs(mean)), scale, 1.0)


def fit_logistic(
    columns: FloatArray, target: NDArray[np.bool_], groups: NDArray[np.intp], group_count: int, *, ridge: float
) -> Logistic:
    """Fit by penalised maximum likelihood; the penalty is a normal prior of precision `ridge` on each coefficient.

    The groups' effects are a random intercept: a group of few items stays near 0. They are eliminated first (Schur
    complement), so that a thousand groups cost no more than their items.

    Args:
        columns: Shape (n, columns), standardised.
        target: Shape (n,).
        groups: Group of each item, shape (n,), in [0, group_count).
        group_count: Groups; with one, its effect is nothing but a second intercept.
        ridge: Precision of the priors, above 0.
    """
    design = np.column_stack([columns, np.ones(len(columns))]).astype(np.float64)
    penalty = np.full(design.shape[1], ridge)
    penalty[-1] = _INTERCEPT_RIDGE
    beta, effects = np.zeros(design.shape[1]), np.zeros(group_count)
    truth = target.astype(np.float64)

    def loss(beta: FloatArray, effects: FloatArray) -> float:
        log_odds = design @ beta + effects[groups]
        fit = np.logaddexp(0.0, log_odds).sum() - truth @ log_odds
        return float(fit + 0.5 * penalty @ beta**2 + 0.5 * ridge * effects @ effects)

    current = loss(beta, effects)
    for _ in range(_STEPS):
        share = sigmoid(design @ beta + effects[groups])
        step, step_effects = _newton_step(design, share, truth - share, groups, penalty, ridge, beta, effects)
        size, found = 1.0, loss(beta + step, effects + step_effects)
        for _ in range(_HALVINGS):
            if found <= current:
                break
            size /= 2
            found = loss(beta + size * step, effects + size * step_effects)
        if not found <= current:
            break
        beta, effects = beta + size * step, effects + size * step_effects
        gained, current = current - found, found
        if gained <= _TOLERANCE * (1.0 + abs(current)):
            break
    return Logistic(beta[:-1], float(beta[-1]), effects)


def _newton_step(
    design: FloatArray,
    share: FloatArray,
    residual: FloatArray,
    groups: NDArray[np.intp],
    penalty: FloatArray,
    ridge: float,
    beta: FloatArray,
    effects: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """The step of the coefficients, and that of the groups' effects."""
    weight = share * (1.0 - share)
    gradient = design.T @ residual - penalty * beta
    group_gradient = np.bincount(groups, residual, len(effects)) - ridge * effects
    among = (design.T * weight) @ design + np.diag(penalty)
    across = np.stack([np.bincount(groups, weight * column, len(effects)) for column in design.T])
    own = np.bincount(groups, weight, len(effects)) + ridge
    step = np.linalg.solve(among - (across / own) @ across.T, gradient - across @ (group_gradient / own))
    return step, (group_gradient - across.T @ step) / own
