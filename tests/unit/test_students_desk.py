"""What the desk knows of the driver: a checkpoint waits until what was told before is heard."""

import asyncio
from typing import Any

import pytest

from orchestrator.events import Phase
from orchestrator.students.desk import DeskActor


def _desk() -> Any:
    return DeskActor.__ray_metadata__.modified_class()  # type: ignore[attr-defined]


def test_what_was_told_is_heard_once_the_driver_asks_for_what_follows() -> None:
    async def scene() -> None:
        desk = _desk()
        assert await desk.post(0, [Phase("a", "one"), Phase("a", "two")], 1) == 2
        waits = asyncio.create_task(desk.heard(2))
        events, _ = await desk.watch(0, 0, 0.01)
        assert len(events) == 2
        await asyncio.sleep(0.02)
        assert not waits.done(), "it has them, and has not dealt with them"
        await desk.watch(0, 1, 0.01)
        assert not waits.done()
        await desk.watch(0, 2, 0.01)
        await asyncio.wait_for(waits, 5)

    asyncio.run(scene())


def test_nobody_waits_for_a_driver_that_wants_no_more_jobs() -> None:
    async def scene() -> None:
        desk = _desk()
        await desk.post(0, [Phase("a", "one")], 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(desk.heard(1), 0.02)
        await desk.close()
        await asyncio.wait_for(desk.heard(1), 5)

    asyncio.run(scene())
