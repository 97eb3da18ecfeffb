"""What to bring up: the whole description of a pool. No Ray, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.data import Reading, reading_of
from orchestrator.spec import JobSpec
from orchestrator.spec.models import RoleSpec

from .engine import load_role
from .records import Loader, RoleLoad
from .supervise import Policy


def readings(job: JobSpec) -> dict[str, Reading]:
    """How the roles of a job read its samples; nothing for causal models."""
    reading = reading_of(job.data)
    return {} if reading is None else dict.fromkeys(job.used_roles, reading)


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """A pool. Ephemeral pools go when their driver goes; standing ones stay until taken down."""

    name: str
    roles: Mapping[str, RoleSpec]
    standing: bool = False
    restarts: int = 8  # replica deaths made good
    restart_window_s: float | None = None  # only deaths this recent count; None: all
    deterministic: bool = False
    seed: int = 0  # of fresh weights
    readings: Mapping[str, Reading] = field(default_factory=dict)  # by role that is a classifier
    env: Mapping[str, str] = field(default_factory=dict)  # environment variables of replicas
    load: Loader = load_role
    lease_s: float = 120.0  # an ephemeral pool whose driver is silent this long ends itself
    ping_every_s: float = 1.0
    ping_timeout_s: float = 10.0
    missed_pings: int = 6  # in a row, after which a replica is given up
    start_s: float = 900.0  # for a replica to be scheduled and loaded

    @property
    def policy(self) -> Policy:
        """Budgets of its controller."""
        return Policy(self.restarts, self.restart_window_s, self.missed_pings, self.start_s)

    @property
    def copies(self) -> dict[str, int]:
        """Wanted replicas by role."""
        return {role: spec.replicas for role, spec in self.roles.items()}

    def load_of(self, role: str) -> RoleLoad:
        """What a replica of a role loads."""
        reading = self.readings.get(role)
        return RoleLoad(role, self.roles[role], self.deterministic, self.seed, reading)
