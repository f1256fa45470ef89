"""What may yet be spent: the worst case of a call is set aside before it is made, among all processes of a store."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass, field

from jax_rele.annotation.store import Store

CALLS_AHEAD = 16
"""Calls for which a worker asks for money at once, so that it seldom has to."""


@dataclass
class WorkerBudget:
    """A worker's share of a budget over everything that a store holds.

    A worker may spend up to its allowance, which it raises under a lock and only so far that the allowances of all
    workers that live, and what the others spent, stay within the budget. What it sets aside for calls under way counts
    as spent. So the budget holds while no call costs more than was set aside for it; only calls that were under way
    when a process was killed are unknown.

    Attributes:
      store: where costs are stored.
      budget: 0 for no limit.
      calls: under way.
      reserved: for them.
    """

    store: Store
    budget: float
    calls: int = 0
    reserved: float = 0.0
    _allowance: float = field(default=0.0, repr=False)

    def reserve(self, amount: float) -> bool:
        """Sets the worst case of a call aside; False where the budget has no room for it now."""
        if self.budget > 0 and amount > 0:
            required = self.store.spent + self.reserved + amount
            if required > self._allowance and not self._raise_to(required, CALLS_AHEAD * amount):
                return False
        self.calls += 1
        self.reserved += amount
        return True

    def settle(self, amount: float) -> None:
        """Ends what `reserve` set aside, after the call's real cost is in the store."""
        self.calls -= 1
        # Nothing is left of sums that differ in their last digit.
        self.reserved = max(0.0, self.reserved - amount) if self.calls else 0.0

    def _raise_to(self, required: float, ahead: float) -> bool:
        with open(self.store.folder / "budget.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            available = self.budget - self.store.others()
            if required > available:
                return False
            self._allowance = min(required + ahead, available)
            self.store.allow(self._allowance)
            return True
