"""Budgets: the most that a call can cost is reserved before it is made, among all processes of a store."""

from __future__ import annotations

from dataclasses import dataclass, field

from jax_rele.annotation.store import Store
from jax_rele.io import lock

CALLS_AHEAD = 16
"""Calls for which a worker raises its allowance at once, so that it seldom has to."""


@dataclass
class WorkerBudget:
    """One worker's part of a budget for everything that a store holds.

    A worker may spend up to its allowance. It raises that under a lock, and only so far that the allowances of all
    running workers, and what the ended ones spent, stay within the budget. Reservations for calls in flight count as
    spent. So the budget holds while no call costs more than its reservation; the costs of calls that were in flight
    when a process was killed are unknown.

    Attributes:
      store: where costs are stored.
      budget: 0 for no limit.
      calls: in flight.
      reserved: for them.
    """

    store: Store
    budget: float
    calls: int = 0
    reserved: float = 0.0
    _allowance: float = field(default=0.0, repr=False)

    def reserve(self, amount: float) -> bool:
        """Reserves the most that a call can cost; False where the budget cannot cover it now."""
        if self.budget > 0 and amount > 0:
            required = self.store.spent + self.reserved + amount
            if required > self._allowance and not self._raise_to(required, CALLS_AHEAD * amount):
                return False
        self.calls += 1
        self.reserved += amount
        return True

    def settle(self, amount: float) -> None:
        """Ends a reservation, after the call's real cost is in the store."""
        self.calls -= 1
        # Rounding must not leave a remainder.
        self.reserved = max(0.0, self.reserved - amount) if self.calls else 0.0

    def _raise_to(self, required: float, ahead: float) -> bool:
        with lock(self.store.folder / "budget.lock"):
            available = self.budget - self.store.others()
            if required > available:
                return False
            self._allowance = min(required + ahead, available)
            self.store.allow(self._allowance)
            return True
