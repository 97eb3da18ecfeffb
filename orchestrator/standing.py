"""`stillhouse pool`: pools that outlive the command that starts them, on a cluster that runs.

A local Ray of our own would end with the command, so these join a cluster and never start one.
"""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from orchestrator.data import Reading
from orchestrator.errors import SpecError
from orchestrator.planner import Inventory, Node, check_roles_fit
from orchestrator.pool import Pool, PoolPlan, readings
from orchestrator.pool.records import NAMESPACE
from orchestrator.spec import JobSpec
from orchestrator.spec.job import StandingPool
from orchestrator.spec.paths import absolute_paths


def pool_up(jobs: Sequence[JobSpec]) -> dict[str, Any]:
    """Start the standing pool that a job file names, and leave it running.

    Args:
        jobs: the jobs of one file. All of them name the same standing pool; it serves every role
            that one of them asks.

    Returns:
        The pool's status.

    Raises:
        SpecError: no standing pool is named, or several, or a role is given in two ways; no
            cluster runs, or it can never hold the pool; the name is taken.
        StillhouseError: a role did not come up.
    """
    wanted = standing_plan([absolute_paths(job) for job in jobs])
    with joined(jobs[0].ray.address) as inventory:
        check_roles_fit(wanted.roles, inventory)
        return Pool.up(wanted).status()


def pool_status(name: str, address: str | None) -> dict[str, Any]:
    """What a standing pool serves, and how it fares.

    Raises:
        SpecError: no cluster runs, or no such pool.
    """
    with joined(address):
        return Pool.attach(name).status()


def pool_down(name: str, address: str | None) -> None:
    """End a standing pool.

    Raises:
        SpecError: no cluster runs, or no such pool.
    """
    with joined(address):
        Pool.attach(name).down()


def standing_plan(jobs: Sequence[JobSpec]) -> PoolPlan:
    """The one standing pool that the jobs of a file name. Starts nothing.

    Raises:
        SpecError: none is named, or several, or a role is given in two ways.
    """
    first = jobs[0]
    if not isinstance(first.pool, StandingPool):
        raise SpecError(
            "pool.kind", f"is {first.pool.kind}", "Write pool: {kind: standing, name: ...}"
        )
    roles: dict[str, Any] = {}
    read: dict[str, Reading] = {}
    for job in jobs:
        if job.pool != first.pool:
            raise SpecError(
                "pool", f"of {job.name} differs from that of {first.name}", "Name one pool a file"
            )
        for name in job.used_roles:
            if roles.setdefault(name, job.roles[name]).served() != job.roles[name].served():
                raise SpecError(
                    f"roles.{name}", f"of {job.name} differs from an earlier job's", "Make it equal"
                )
        for name, reading in readings(job).items():
            if read.setdefault(name, reading) != reading:
                raise SpecError(
                    f"roles.{name}",
                    f"reads samples as {reading.label} in {job.name}, and as {read[name].label} in "
                    "an earlier job",
                    "Make the formats of their data equal, or start two pools",
                )
    for name, role in roles.items():
        if role.job is not None:
            raise SpecError(
                f"roles.{name}.job",
                f"is {role.job!r}, which is not trained yet when the pool starts",
                "Give its export as path",
            )
    if not roles:
        raise SpecError("roles", "no job asks any", "Add the role that the pool is to serve")
    return PoolPlan(
        first.pool.name,
        roles,
        standing=True,
        restarts=first.pool.restarts,
        deterministic=first.deterministic,
        seed=first.seed,
        readings=read,
    )


@contextmanager
def joined(address: str | None) -> Iterator[Inventory]:
    """A cluster that runs, joined for as long as the block lasts.

    Args:
        address: `host:port`; None: the cluster that was started on this machine.

    Raises:
        SpecError: there is none.
    """
    paths = os.pathsep.join(dict.fromkeys([os.getcwd(), *filter(os.path.isdir, sys.path)]))
    try:
        ray.init(
            address=address or "auto",
            namespace=NAMESPACE,
            logging_level=logging.WARNING,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": paths}},
        )
    except ConnectionError as error:
        raise SpecError(
            "ray.address",
            f"no Ray cluster answers at {address or 'this machine'}",
            "Start one that stays (ray start --head), or set RAY_ADDRESS",
        ) from error
    try:
        yield Inventory(
            tuple(
                Node(node["NodeManagerAddress"], dict(node["Resources"]))
                for node in ray.nodes()
                if node["Alive"]
            )
        )
    finally:
        ray.shutdown()
