"""Which job a lane takes next, which can never run, and how long the rest will take. Pure.

A lane is a driver that runs one job after another and keeps its workers and its pool between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .plan import PlannedJob, StudyPlan


@dataclass(frozen=True, slots=True)
class Board:
    """Where a study stands. Keys of jobs."""

    done: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    running: frozenset[str] = frozenset()

    def blocked(self, plan: StudyPlan) -> frozenset[str]:
        """Jobs that need one that failed, at any remove."""
        stuck: set[str] = set(self.failed)
        for job in plan.jobs:  # those a job needs come before it
            if stuck.intersection(job.needs):
                stuck.add(job.key)
        return frozenset(stuck - self.failed)

    def waiting(self, plan: StudyPlan) -> list[PlannedJob]:
        """Jobs still to begin, in order, without those that never can."""
        over = self.done | self.failed | self.running | self.blocked(plan)
        return [job for job in plan.jobs if job.key not in over]

    def ready(self, plan: StudyPlan) -> list[PlannedJob]:
        """Jobs that could begin now."""
        return [job for job in self.waiting(plan) if self.done.issuperset(job.needs)]


def choose(
    plan: StudyPlan, board: Board, last: PlannedJob | None, others: Sequence[PlannedJob]
) -> PlannedJob | None:
    """What a lane takes next: what its own pool serves, then what it has just made possible, then
    what no other lane has a pool for; ties go by the plan's order.

    Args:
        plan: of the study.
        board: where it stands.
        last: the job the lane did last.
        others: the jobs that other lanes are at.

    Returns:
        None: nothing can begin now.
    """
    theirs = {job.pool for job in others if job.pool}
    makers = {job.key for job in others}

    def cost(job: PlannedJob) -> tuple[bool, bool, bool]:
        warm = last is not None and job.pool == last.pool != ""
        mine = last is not None and last.key in job.needs
        elsewhere = job.pool in theirs or bool(makers.intersection(job.needs))
        return not warm, not mine, elsewhere

    return min(board.ready(plan), key=cost, default=None)


def left_s(plan: StudyPlan, board: Board, took_s: Mapping[str, float], lanes: int) -> float | None:
    """Seconds until a study ends, told from the jobs that are done.

    Args:
        plan: of the study.
        board: where it stands; a running job counts half.
        took_s: seconds of each job done in this session, by key.
        lanes: side by side.

    Returns:
        None: no job is done yet.
    """
    if not took_s:
        return None
    by_template: dict[str, list[float]] = {}
    for key, seconds in took_s.items():
        by_template.setdefault(plan.job(key).template, []).append(seconds)
    overall = sum(took_s.values()) / len(took_s)

    def expected(job: PlannedJob) -> float:
        known = by_template.get(job.template)
        return sum(known) / len(known) if known else overall

    begun = sum(expected(plan.job(key)) for key in board.running) / 2
    return (begun + sum(expected(job) for job in board.waiting(plan))) / lanes
