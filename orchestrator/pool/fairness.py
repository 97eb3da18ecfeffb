"""A bounded queue that is fair between tenants: start-time fair queueing by virtual time.

Pure data structure: no clock, no locks, no Ray. Each tenant gets a share of the *cost* served
(tokens, not requests) by its weight, whoever asks faster; a tenant alone gets everything.

Source: Goyal, Vin, Cheng, "Start-Time Fair Queueing", IEEE/ACM Transactions on Networking 5(5),
1997, equations 4 and 5.
"""

import heapq
from collections import Counter
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items by tenant, popped in the order of virtual start time.

    Args:
        limit: items held. A tenant that has none waiting may always add one, so that a full
            queue of one tenant cannot shut another out; hence at most `limit` + tenants items.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"limit is {limit}; a queue must hold at least 1 item")
        self._limit = limit
        self._heap: list[tuple[float, int, str, T]] = []  # (start, order, tenant, item)
        self._held: Counter[str] = Counter()
        self._finish: dict[str, float] = {}  # virtual time at which a tenant's last item ends
        self._now = 0.0  # virtual time
        self._order = count()

    def __len__(self) -> int:
        return len(self._heap)

    def offer(self, tenant: str, cost: float, item: T, weight: float = 1.0) -> bool:
        """Take an item, or say False: the queue or the tenant's share of it is full.

        Args:
            tenant: whose it is.
            cost: > 0.
            item: what `pop` gives back.
            weight: > 0; a tenant of weight 2 is served twice what one of weight 1 is.
        """
        held = self._held[tenant]
        tenants = len(+self._held) + (held == 0)
        if held and (len(self._heap) >= self._limit or held >= max(1, self._limit // tenants)):
            return False
        start = max(self._now, self._finish.get(tenant, 0.0))
        self._finish[tenant] = start + cost / weight
        self._held[tenant] += 1
        heapq.heappush(self._heap, (start, next(self._order), tenant, item))
        return True

    def pop(self) -> T:
        """The next item to serve.

        Raises:
            IndexError: the queue is empty.
        """
        start, _, tenant, item = heapq.heappop(self._heap)
        self._now = start
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        if not self._heap:  # a busy period is over: nobody owes anything
            self._finish, self._now = {}, 0.0
        return item
