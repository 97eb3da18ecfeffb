"""Actors that write what a shelf lacks. Ray room.

As many authors as the role has replicas, but never more than there are parts; each has one part at
a time. One that dies is replaced while the budget lasts, and its part is written anew: whoever
writes a part, it is the same. Authors live and die with the call, as do those of a killed driver.
"""

import time
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayError

from orchestrator.errors import BudgetExhausted, WorkerStalled
from orchestrator.pool.translate import translated

from .records import Part, Task, Text, Written
from .shelf import Shelf

if TYPE_CHECKING:
    from .author import Author

LOOK_S = 1.0
"""One wait for an answer; then a Ctrl-C is heard."""
PLACE_S = 600.0
"""So long a cluster may have no room for any author before the run ends; a node may yet come."""


class _Author:
    """Body of the actor. Loads when first asked: a role that cannot be loaded is no death."""

    def __init__(self, task: Task) -> None:
        self._task = task

    @cached_property
    def _author(self) -> "Author":
        from .author import Author

        return Author(self._task)

    def hello(self) -> None:
        """Answered as soon as the cluster has placed the actor."""

    def fingerprint(self) -> str:
        return self._author.fingerprint

    def write(self, part: Part) -> list[Text]:
        return self._author.write(part)


def hire(task: Task) -> Any:
    """An author with what one replica takes. Returns at once."""
    wanted = task.spec.resources
    return (
        ray.remote(_Author)
        .options(
            num_cpus=wanted.cpus,
            num_gpus=wanted.gpus,
            resources=dict(wanted.custom),
            max_restarts=0,
            max_task_retries=0,
        )
        .remote(task)
    )


def fingerprint_of(task: Task) -> str:
    """The role's fingerprint, for which it has to be loaded.

    Raises:
        WorkerStalled: the cluster has no room for it.
        StillhouseError: it cannot be.
    """
    author = hire(task)
    try:
        placed, _ = ray.wait([author.hello.remote()], timeout=PLACE_S)
        if not placed:
            raise _no_room(task, "fingerprint")
        return ray.get(author.fingerprint.remote())
    except RayError as error:
        raise translated(error, task.role, "fingerprint") from error
    finally:
        ray.kill(author)


def written(task: Task, shelf: Shelf, restarts: int) -> Iterator[Written]:
    """Write what the shelf lacks; says how far it is, first before anything is written.

    Args:
        task: what is written, and by whom.
        shelf: where it is kept; bound at the end.
        restarts: authors that may die.

    Raises:
        SpecError: a prompt is too long, or the role cannot be loaded.
        BudgetExhausted: more authors died.
        WorkerStalled: the cluster has had no room for any author for `PLACE_S`.
        StillhouseError: the role cannot write.
    """
    source, left = task.source, deque(shelf.missing())
    missing = sum(len(part.prompts) for part in left)
    done, began = source.count - missing, time.monotonic()

    def told(fresh: int) -> Written:
        rest = source.count - done
        each_s = (time.monotonic() - began) / fresh if fresh else None
        seconds = None if each_s is None else rest * each_s
        return Written(done, source.count, rest * source.length, seconds)

    yield told(0)
    at_work: dict[Any, tuple[Any, Part]] = {}
    unplaced: dict[Any, Any] = {}  # authors by the hello that they owe
    try:
        for _ in range(min(task.spec.replicas, len(left))):
            _engage(task, at_work, unplaced, left)
        fresh, room_at = 0, time.monotonic()
        while at_work:
            ready, _ = ray.wait([*at_work, *unplaced], num_returns=1, timeout=LOOK_S)
            for hello in [ref for ref in ready if ref in unplaced]:
                del unplaced[hello]
            now = time.monotonic()
            if len(unplaced) < len(at_work):
                room_at = now
            elif now - room_at > PLACE_S:
                raise _no_room(task, f"part {next(iter(at_work.values()))[1].number}")
            for ref in [ref for ref in ready if ref in at_work]:
                author, part = at_work.pop(ref)
                try:
                    texts: list[Text] = ray.get(ref)
                except RayActorError as error:
                    lost = translated(error, task.role, f"part {part.number}")
                    if restarts == 0:
                        raise BudgetExhausted(
                            f"role {task.role} died too often while it wrote; the parts that are "
                            f"there stay, so start the job again; last: {lost}"
                        ) from error
                    restarts -= 1
                    left.appendleft(part)
                    _engage(task, at_work, unplaced, left)
                    continue
                except RayError as error:
                    raise translated(error, task.role, f"part {part.number}") from error
                shelf.put(part, texts)
                done, fresh = done + len(texts), fresh + len(texts)
                yield told(fresh)
                if left:
                    _give(at_work, author, left)
                else:
                    ray.kill(author)
    finally:
        for author, _ in at_work.values():
            ray.kill(author)
    shelf.bind()


def _engage(
    task: Task,
    at_work: dict[Any, tuple[Any, Part]],
    unplaced: dict[Any, Any],
    left: deque[Part],
) -> None:
    author = hire(task)
    unplaced[author.hello.remote()] = author
    _give(at_work, author, left)


def _no_room(task: Task, request: str) -> WorkerStalled:
    return WorkerStalled(
        task.role,
        request,
        f"the cluster has had no room for a writer for {PLACE_S:g} s; free what others hold, or "
        f"lower roles.{task.role}.resources",
    )


def _give(at_work: dict[Any, tuple[Any, Part]], author: Any, left: deque[Part]) -> None:
    part = left.popleft()
    at_work[author.write.remote(part)] = (author, part)
