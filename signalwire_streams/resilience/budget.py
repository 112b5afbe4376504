"""A shared allowance for retries, so that an outage is not answered with a storm."""

from attrs import define

CAPACITY = 500
COST_TRANSIENT = 14
COST_CHEAP = 5
"""For what certainly was not carried out: throttled, or not sent."""
EARNED_BY_SUCCESS = 1


@define(eq=False)
class RetryBudget:
    """Tokens that retries cost and successes earn.

    In a full outage the bucket runs dry and calls fail after their first attempt; while the Space serves, a
    retry that succeeds gives back what it cost.
    """

    tokens: int = CAPACITY

    def spend(self, cost: int) -> bool:
        """Take ``cost`` tokens; False when there are not enough, and then none are taken."""
        if cost > self.tokens:
            return False
        self.tokens -= cost
        return True

    def succeed(self, spent: int) -> None:
        """Note a success: its last retry's cost comes back, or a first-time success earns one token."""
        self.tokens = min(CAPACITY, self.tokens + (spent or EARNED_BY_SUCCESS))
