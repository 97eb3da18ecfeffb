"""Who computes what: at most one live holder for each key. Pure: time comes in, nothing goes out.

A client whose questions wait for a key that another holds gets it as soon as it is in the store, or
may take the claim over once the holder has given it up or has not been heard for the lease.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holder:
    """One question of one life of a client."""

    client: str  # stable over restarts, `run/rank`
    life: str  # differs with each start of the client
    question: str


class Claims:
    """Claims on keys, and when their clients were last heard.

    Args:
        lease_s: seconds of silence after which a client's claims are anybody's.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._holders: dict[bytes, Holder] = {}
        self._heard: dict[tuple[str, str], float] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def heard(self, client: str, life: str, now: float) -> None:
        """The client lives. An earlier life of it has ended, and its claims with it."""
        if (client, life) not in self._heard:
            earlier = [who for who in self._heard if who[0] == client]
            for who in earlier:
                del self._heard[who]
        self._heard[client, life] = now

    def take(self, key: bytes, holder: Holder, now: float) -> bool:
        """Whether `holder` computes this key; asking twice gives the same answer."""
        held = self._holders.get(key)
        if held is not None and held != holder and self._lives(held, now):
            return False
        self._holders[key] = holder
        return True

    def settle(self, keys: Iterable[bytes]) -> None:
        """The keys are in the store, whoever computed them."""
        for key in keys:
            self._holders.pop(key, None)

    def give_up(self, keys: Iterable[bytes], holder: Holder) -> None:
        """The holder does not compute these after all."""
        for key in keys:
            if self._holders.get(key) == holder:
                del self._holders[key]

    def _lives(self, holder: Holder, now: float) -> bool:
        at = self._heard.get((holder.client, holder.life))
        return at is not None and now - at <= self._lease_s
