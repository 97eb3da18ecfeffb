"""Plays Ray Tune's part for schedulers in rounds: begins legs, hears of their ends, and decides.

Promises: a decision is in the journal before anybody acts on it, and one that a killed search had
not written down is taken again as it would have been. No Ray in it.
"""

import queue
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from .board import Board
from .journal import State
from .past import last_numbers
from .rounds import Begin, Command, Decider, left_behind
from .spec import GoalSpec


class Searcher(Protocol):
    """What chooses trials, as Ray Tune's searchers do."""

    def suggest(self, trial_id: str) -> Any:
        """A mapping with the trial's `number`; anything else: there is none."""
        ...

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None: ...


class Whistle:
    """The crew's exchange, in this process: who is to go, and whose leg has ended."""

    def __init__(self) -> None:
        self._going: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()

    def go(self, trial: int) -> None:
        """Have a trial run what it has to."""
        self._going.put(("begin", trial))

    def ended(self, timeout_s: float) -> list[int]:
        """Trials whose leg has ended, or failed, since the last call; waits for one."""
        return _taken(self._ended, timeout_s)

    def messages(self, timeout_s: float) -> Sequence[tuple[str, int]]:
        return _taken(self._going, timeout_s)

    def post(self, trial: int, numbers: Mapping[str, float], *, last: bool = False) -> None:
        if last:
            self._ended.put(trial)

    def fail(self, trial: int, error: str) -> None:
        self._ended.put(trial)


def _taken(held: "queue.SimpleQueue[Any]", timeout_s: float) -> list[Any]:
    found: list[Any] = []
    try:
        found.append(held.get(timeout=timeout_s))
        while True:
            found.append(held.get_nowait())
    except queue.Empty:
        return found


class Umpire:
    """Has trials go their legs, as many at a time as there are lanes.

    Args:
        goals: of the search; the first is what trials are compared by.
        board: what is known.
        decider: the scheduler.
        searcher: chooses trials; those that are known and not over come first.
        whistle: the crew's exchange.
        lanes: legs side by side.
        changed: called after each change on the board.
        stopping: whether nothing is to begin, and so nothing to be decided, any more.
    """

    def __init__(
        self,
        goals: Sequence[GoalSpec],
        board: Board,
        decider: Decider,
        searcher: Searcher,
        whistle: Whistle,
        lanes: int,
        changed: Callable[[], None],
        stopping: Callable[[], bool],
    ) -> None:
        self._goals, self._board, self._decider = goals, board, decider
        self._searcher, self._whistle, self._lanes = searcher, whistle, lanes
        self._changed, self._stopping = changed, stopping
        self._ids: dict[int, str] = {}  # number of a trial -> what the searcher calls it
        self._away: set[int] = set()  # trials whose leg is with the crew
        self._closed = False
        states = board.states
        failed = [state for state in states if state.status == "failed"]
        self._out = {s.number for s in failed if left_behind(s, decider.rivals(states, s.number))}
        for state in states:
            if not state.over:  # the searcher knows the others
                self._suggest()

    def advance(self, timeout_s: float) -> bool:
        """Do what can be done, then wait for an end of a leg; whether all is over."""
        self._decide()
        while len(self._away) < self._lanes:
            if (ready := self._ready()) is not None:
                self._away.add(ready)
                self._whistle.go(ready)
            elif self._closed or not self._suggest():
                break
            else:
                self._decide()
        if not self._away and not self._decide():
            return True
        for number in self._whistle.ended(timeout_s):
            self._away.discard(number)
            self._ends(self._board.state(number))
        return False

    def _suggest(self) -> bool:
        """Have one more trial, known or new; whether there is one."""
        trial_id = f"trial-{len(self._ids)}"
        found = self._searcher.suggest(trial_id)
        if not isinstance(found, dict):
            # A searcher that is told to stop says the same as one that has no more: what is decided
            # of a population must not depend on when it was interrupted.
            self._closed = not self._stopping()
            return False
        self._ids[int(found["number"])] = trial_id
        return True

    def _decide(self) -> bool:
        """Write down what the scheduler wants now; whether it wanted something."""
        if self._stopping():
            return False
        states, out = self._board.states, frozenset(self._out)
        commands = self._decider.commands(states, out, self._closed)
        for command in commands:
            self._note(command)
        if commands:
            self._changed()
        return bool(commands)

    def _note(self, command: Command) -> None:
        if isinstance(command, Begin):
            leg = command.leg
            self._board.note(
                "leg",
                command.trial,
                leg=command.index,
                begin=leg.begin,
                until=leg.until,
                numbers=leg.numbers,
                parent=leg.parent,
            )
        else:
            self._tell(self._board.note("ended", command.trial, status="stopped"))

    def _ready(self) -> int | None:
        """A trial whose leg waits for a lane; who has come further first."""
        waiting = [
            state
            for state in self._board.states
            if state.legs
            and state.status in ("waiting", "running", "failed")
            and state.number not in self._away | self._out
        ]
        first = min(waiting, key=lambda state: (-state.legs[-1].begin, state.number), default=None)
        return None if first is None else first.number

    def _ends(self, state: State) -> None:
        if state.status == "failed":
            self._out.add(state.number)
        if state.over or state.status == "failed":
            self._tell(state)

    def _tell(self, state: State) -> None:
        """The searcher hears what a trial that is over has come to."""
        trial_id = self._ids.get(state.number)
        if trial_id is None:
            return
        result = last_numbers(state, self._goals)
        self._searcher.on_trial_complete(trial_id, result, result is None)
