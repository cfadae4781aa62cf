"""What a calibration found, to look at and to print."""

import dataclasses
import typing

import numpy as np


class Walk(typing.NamedTuple):
    """What was measured at each candidate, from the most careful on.

    Args:
        thresholds: Array (L,), or (L, E) with one for each early exit.
        risks: Array (L,), mean loss on the calibration set.
        bounds: Array (L,), what the method says the risk is at most.
        relative_costs: Array (L,), mean relative cost.
        cost_bounds: Array (L,), what the method says the mean relative cost
            is at most; `None` unless a cost was asked for.
    """

    thresholds: np.ndarray
    risks: np.ndarray
    bounds: np.ndarray
    relative_costs: np.ndarray
    cost_bounds: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class RiskReport:
    """What `calibrate` found; `print` it, or see `plot`.

    Args:
        threshold: The threshold that was set, or a tuple (E,) of them; `inf`:
            nobody leaves early.
        risk_bound: What the risk is at most, by the method, in units of the
            loss; 0 if nobody leaves early.
        empirical_risk: The mean loss on the calibration set.
        expected_relative_cost: Mean relative cost on the calibration set; the
            model without exits is 1.
        exit_shares: Array (E + 1,), share of the samples that leave at each
            exit.
        n: Number of calibration samples.
        epsilon: The risk that was allowed.
        delta: The chance that the risk is above `epsilon`, or the cost above
            `max_cost`, all the same.
        method: The rule, as in `control_risk`.
        risk: `consistency` or `performance_gap`.
        loss: Name of the loss.
        message: In a sentence, what is promised or why nothing is.
        walk: A `Walk`, the candidates that the threshold was chosen from.
        max_cost: The mean relative cost that was allowed, or `None`.
        cost_bound: What the mean relative cost is at most, by the method;
            `None` unless it was asked for and found.
    """

    threshold: float | tuple
    risk_bound: float
    empirical_risk: float
    expected_relative_cost: float
    exit_shares: np.ndarray
    n: int
    epsilon: float
    delta: float
    method: str
    risk: str
    loss: str
    message: str
    walk: Walk = dataclasses.field(repr=False)
    max_cost: float | None = None
    cost_bound: float | None = None

    def __str__(self):
        rows = {
            "risk": f"{self.risk}, loss {self.loss}, method {self.method}",
            "threshold": thresholds_text(self.threshold),
            "empirical risk": f"{self.empirical_risk:.4f} on {self.n} samples",
            "risk bound": f"{self.risk_bound:.4f} (allowed {self.epsilon:g})",
            "relative cost": cost_text(self.expected_relative_cost),
        }
        if self.cost_bound is not None:
            rows["cost bound"] = (
                f"{self.cost_bound:.4f} (allowed {self.max_cost:g})"
            )
        rows["exits taken"] = shares_text(self.exit_shares)
        return as_text("RiskReport", rows, self.message)

    def plot(self, path=None):
        """Risk against relative cost, with the level and what was chosen.

        Args:
            path: Where to save the picture (`.png`, `.svg`, `.pdf`), or
                `None`.

        Returns:
            A `matplotlib.figure.Figure`.
        """
        from keras_earlyexit.plots import risk_curve

        return risk_curve(self, path=path)


@dataclasses.dataclass(frozen=True, eq=False)
class BudgetReport:
    """What `calibrate_budget` set; `print` it.

    Args:
        threshold: Tuple (E,), one threshold for each early exit.
        expected_relative_cost: Mean relative cost on the calibration set; the
            model without exits is 1.
        exit_shares: Array (E + 1,), share of the samples that leave at each
            exit.
        asked_shares: Array (E + 1,), the shares that were aimed at.
        n: Number of calibration samples.
        budget: The mean relative cost that was asked for, or `None`.
    """

    threshold: tuple
    expected_relative_cost: float
    exit_shares: np.ndarray
    asked_shares: np.ndarray
    n: int
    budget: float | None = None

    def __str__(self):
        cost = cost_text(self.expected_relative_cost)
        if self.budget is not None:
            cost += f" (budget {self.budget:.1%})"
        rows = {
            "threshold": thresholds_text(self.threshold),
            "relative cost": f"{cost}, on {self.n} samples",
            "exits taken": shares_text(self.exit_shares),
            "asked for": shares_text(self.asked_shares),
        }
        message = "An estimate; nothing is promised about risk."
        return as_text("BudgetReport", rows, message)


def as_text(title, rows, message):
    """A title, aligned rows and a sentence below."""
    lines = [f"  {name:<16}{text}" for name, text in rows.items()]
    return "\n".join([title, *lines, f"  {message}"])


def thresholds_text(threshold):
    """One threshold, or one for each early exit, in a line."""
    return ", ".join(f"{value:.6g}" for value in np.atleast_1d(threshold))


def cost_text(relative_cost):
    return f"{relative_cost:.1%} of the plain model's multiply-adds"


def shares_text(shares):
    """Shares of all exits by name, `final` last."""
    names = [*(f"exit_{k}" for k in range(len(shares) - 1)), "final"]
    return ", ".join(
        f"{name} {share:.1%}" for name, share in zip(names, shares, strict=True)
    )
