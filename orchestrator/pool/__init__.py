"""RAY ROOM: actors that serve roles, and the client that asks them. Starts nothing at import."""

from .client import PoolClient
from .dispatch import Counts
from .plan import PoolPlan, readings
from .pool import Pool
from .records import Engine, Membership, PoolHandle, RoleDescription, RoleLoad

__all__ = [
    "Counts",
    "Engine",
    "Membership",
    "Pool",
    "PoolClient",
    "PoolHandle",
    "PoolPlan",
    "RoleDescription",
    "RoleLoad",
    "readings",
]
