"""The client's and the controller's decisions under any order, loss, repetition and delay.

Faults planted by hand that these machines caught: a second answer delivered again, the window
ignored on admission, a stale membership accepted, an attempt number used twice, patience without
end; a restart budget off by one, a death that does not empty its slot, a name used twice, news
without a new version, a silent replica replaced but not ended.
"""

from collections import Counter
from dataclasses import dataclass, replace

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.errors import SpecError, WorkerError, WorkerLost, WorkerRaised
from orchestrator.pool import dispatch, supervise
from orchestrator.pool.dispatch import ClientState, Limits, Phase
from orchestrator.pool.records import Membership, ReplicaReport, RoleDescription

LIMITS = Limits(
    window_requests=4,
    window_bytes=100,
    deadline_s=10.0,
    patience_s=60.0,
    losses=3,
    data_tries=2,
    rest_s=1.0,
)
ROLES = ("teacher", "assistant")


@dataclass(frozen=True)
class Sent:
    """A message on the wire: it may be answered at any time, often, or never."""

    request_id: str
    attempt: int
    replica: str


class AnyOrderOfMessages(RuleBasedStateMachine):
    """A client between callers that ask and take, and a network that does what it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.state = ClientState(LIMITS)
        self.now = 0.0
        self.version = 0
        self.living: dict[str, tuple[str, ...]] = dict.fromkeys(ROLES, ())
        self.dead: set[str] = set()
        self.born = 0
        self.asked = 0
        self.wire: list[Sent] = []
        self.sizes: dict[str, int] = {}
        self.done: dict[str, str] = {}  # request -> delivered | failed
        self.consumed: Counter[str] = Counter()

    def apply(self, event: dispatch.Event) -> list[dispatch.Command]:
        self.state, commands = dispatch.advance(self.state, event)
        for command in commands:
            match command:
                case dispatch.SendTo(request_id, attempt, replica):
                    sent = Sent(request_id, attempt, replica)
                    assert sent not in self.wire, "an attempt was sent twice"
                    assert replica in {r for names in self.living.values() for r in names}
                    assert request_id not in self.done, "sent after it was done"
                    self.wire.append(sent)
                case dispatch.Deliver(request_id, _):
                    assert request_id not in self.done, "done twice"
                    self.done[request_id] = "delivered"
                case dispatch.Fail(request_id, _):
                    assert request_id not in self.done, "done twice"
                    self.done[request_id] = "failed"
                case dispatch.Drop():
                    pass
        return commands

    # --- the caller ---

    @rule(role=st.sampled_from(ROLES), nbytes=st.integers(1, 150))
    def ask(self, role, nbytes):
        request_id = f"r{self.asked}"
        self.asked += 1
        self.sizes[request_id] = nbytes
        self.apply(dispatch.Submitted(self.now, request_id, role, nbytes))

    @precondition(lambda self: any(self.open()))
    @rule(data=st.data())
    def wait_for(self, data):
        request_id = data.draw(st.sampled_from(self.open()))
        self.apply(dispatch.Wanted(self.now, request_id))

    @precondition(lambda self: any(self.ready()))
    @rule(data=st.data())
    def take(self, data):
        self.consume(data.draw(st.sampled_from(self.ready())))

    def consume(self, request_id: str) -> None:
        self.apply(dispatch.Consumed(self.now, request_id))
        self.consumed[request_id] += 1

    def open(self) -> list[str]:
        return [w.request_id for w in self.state.works.values() if w.phase not in dispatch.DONE]

    def ready(self) -> list[str]:
        return [w.request_id for w in self.state.works.values() if w.phase in dispatch.DONE]

    # --- the network; `wire` is never emptied, so everything may be late and repeated ---

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def answer(self, data):
        sent = data.draw(st.sampled_from(self.wire))
        first = sent.request_id not in self.done
        commands = self.apply(dispatch.Answered(self.now, sent.request_id, sent.attempt))
        kinds = [type(command) for command in commands if not isinstance(command, dispatch.SendTo)]
        assert kinds == [dispatch.Deliver if first else dispatch.Drop]

    @precondition(lambda self: self.wire)
    @rule(data=st.data(), kind=st.sampled_from(["away", "full", "raised", "wrong"]))
    def refuse(self, data, kind):
        sent = data.draw(st.sampled_from(self.wire))
        send = (self.now, sent.request_id, sent.attempt)
        error = WorkerError("teacher", sent.request_id, kind)
        match kind:
            case "away":
                self.apply(dispatch.Lost(*send, gone=False, error=error))
            case "full":
                self.apply(dispatch.Refused(*send, retry_after_s=2.0))
            case "raised":
                self.apply(dispatch.Raised(*send, error))
            case "wrong":
                self.apply(dispatch.Raised(*send, SpecError("f", "p", "r"), final=True))

    @precondition(lambda self: any(sent.replica in self.dead for sent in self.wire))
    @rule(data=st.data())
    def notice_a_death(self, data):
        sent = data.draw(st.sampled_from([s for s in self.wire if s.replica in self.dead]))
        error = WorkerLost("teacher", sent.request_id, "killed")
        self.apply(dispatch.Lost(self.now, sent.request_id, sent.attempt, True, error))

    # --- the pool ---

    @rule(role=st.sampled_from(ROLES))
    def replica_joins(self, role):
        self.born += 1
        self.living[role] = (*self.living[role], f"{role}/{self.born}")
        self.publish()

    @precondition(lambda self: any(self.living.values()))
    @rule(data=st.data(), known=st.booleans())
    def replica_dies(self, data, known):
        name = data.draw(st.sampled_from([n for names in self.living.values() for n in names]))
        self.dead.add(name)
        if known:  # the controller saw it; otherwise the client sends there for a while
            self.bury(name)

    def bury(self, name: str) -> None:
        self.living = {r: tuple(n for n in ns if n != name) for r, ns in self.living.items()}
        self.publish()

    def publish(self) -> None:
        self.version += 1
        self.apply(dispatch.MembersSeen(self.now, self.members()))

    def members(self) -> Membership:
        return Membership(self.version, dict(self.living))

    @precondition(lambda self: self.version > 1)
    @rule(back=st.integers(1, 3))
    def old_news_arrives(self, back):
        stale = replace(self.members(), version=self.version - back, replicas={"teacher": ("x",)})
        before = self.state.members
        self.apply(dispatch.MembersSeen(self.now, stale))
        assert self.state.members == before

    @rule(seconds=st.floats(0.1, 15.0))
    def time_passes(self, seconds):
        self.now += seconds
        self.apply(dispatch.Tick(self.now))
        wake = dispatch.next_wake(self.state)
        assert wake is None or wake > self.now, "a tick that leaves itself due would spin"

    # --- what always holds ---

    @invariant()
    def the_window_is_kept(self):
        calm = [
            work.nbytes
            for work in self.state.works.values()
            if work.phase is not Phase.HELD and not work.urgent
        ]
        assert len(calm) <= LIMITS.window_requests
        assert sum(calm) <= LIMITS.window_bytes or len(calm) == 1

    @invariant()
    def held_back_work_was_never_sent(self):
        sent = {message.request_id for message in self.wire}
        held = {w.request_id for w in self.state.works.values() if w.phase is Phase.HELD}
        assert not sent & held

    @invariant()
    def the_counts_balance(self):
        counts = self.state.counts
        assert counts.asked == self.asked
        assert counts.delivered + counts.failed == len(self.done)
        assert counts.asked == counts.delivered + counts.failed + len(self.open())
        assert counts.consumed == sum(self.done[r] == "delivered" for r in self.consumed)
        assert all(times == 1 for times in self.consumed.values())

    @invariant()
    def retries_stay_in_their_budgets(self):
        for work in self.state.works.values():
            assert work.losses <= LIMITS.losses + (work.phase is Phase.FAILED)
            assert work.errors <= LIMITS.data_tries

    def teardown(self):
        """The network heals and the caller takes everything: nothing may be left or lost."""
        for name in sorted(self.dead & {n for names in self.living.values() for n in names}):
            self.bury(name)
        for role in ROLES:
            self.replica_joins(role)
        for _ in range(200):
            for request_id in self.ready():
                self.consume(request_id)
            for work in list(self.state.works.values()):
                if work.phase is Phase.SENT:
                    self.apply(dispatch.Answered(self.now, work.request_id, work.attempt))
            if not self.state.works:
                break
            self.now += 1.0
            self.apply(dispatch.Tick(self.now))
        counts = self.state.counts
        assert not self.state.works, "something waits for ever"
        assert counts.asked == self.asked == counts.delivered + counts.failed
        assert counts.consumed == counts.delivered
        assert set(self.consumed) == set(self.sizes)


TestAnyOrderOfMessages = AnyOrderOfMessages.TestCase
TestAnyOrderOfMessages.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, print_blob=True
)


POLICY = supervise.Policy(restarts=3, missed_pings=2, start_s=100.0)
COPIES = {"teacher": 2, "assistant": 1}


class AnyFateOfReplicas(RuleBasedStateMachine):
    """A controller whose replicas come up, fall silent and die, and that dies itself."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000
        self.running: set[str] = set()
        self.buried: set[str] = set()
        self.lives = 0
        self.life, commands = supervise.begin("p", COPIES, POLICY, now=self.now)
        self.known_version = self.life.version
        self.execute(commands)

    def execute(self, commands: list[supervise.Command]) -> None:
        for command in commands:
            match command:
                case supervise.StartReplica(_, name):
                    assert name not in self.running | self.buried, "a name came back"
                    self.running.add(name)
                case supervise.KillReplica(name):
                    self.end(name)

    def end(self, name: str) -> None:
        self.running.discard(name)
        self.buried.add(name)

    def apply(self, event: supervise.Event) -> None:
        before = supervise.membership(self.life)
        self.life, commands = supervise.advance(self.life, event)
        after = supervise.membership(self.life)
        changed = replace(before, version=0) != replace(after, version=0)
        assert (after.version > before.version) or not changed, "news without a new version"
        self.execute(commands)

    def some(self, data: st.DataObject, names: set[str]) -> str:
        return data.draw(st.sampled_from(sorted(names)))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def comes_up(self, data):
        name = self.some(data, self.running)
        role = name.split("/")[1]
        report = ReplicaReport("ready", 1, "n", description=RoleDescription(role, "w", 9, 2, 7))
        self.apply(supervise.Reported(self.now, name, report))
        assert not self.life.closed and name in supervise.membership(self.life).replicas[role]

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def dies(self, data):
        name = self.some(data, self.running)
        self.end(name)
        self.apply(supervise.Died(self.now, name, "killed"))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def is_silent(self, data):
        self.apply(supervise.Missed(self.now, self.some(data, self.running)))

    @precondition(lambda self: self.buried)
    @rule(data=st.data())
    def a_dead_name_is_heard_of_again(self, data):
        before = self.life
        self.apply(supervise.Died(self.now, self.some(data, self.buried), "again"))
        assert self.life == before

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def cannot_load(self, data):
        name = self.some(data, self.running)
        error = WorkerRaised("teacher", "load", "no disk")
        self.apply(supervise.Reported(self.now, name, ReplicaReport("failed", 1, "n", error=error)))
        assert name not in self.running

    @rule(seconds=st.integers(1, 150))
    def time_passes(self, seconds):
        self.now += seconds
        self.apply(supervise.Tick(self.now))

    @rule(lag=st.integers(0, 50))
    def the_controller_is_killed(self, lag):
        """Its successor finds the living by name, their memo, and a clock that may lag."""
        seen = self.known_version
        restarts = self.life.restarts if self.running else ()
        self.lives += 1
        self.life, commands = supervise.begin(
            "p",
            COPIES,
            POLICY,
            now=self.now - lag + 0.0005 * self.lives,  # no two lives start in one microsecond
            found=sorted(self.running),
            restarts=restarts,
        )
        self.execute(commands)
        self.apply(supervise.VersionSeen(self.now, seen))
        assert self.life.version >= seen

    @invariant()
    def the_budget_holds(self):
        assert len(self.life.restarts) <= POLICY.restarts

    @invariant()
    def what_is_published_runs(self):
        published = {
            n for names in supervise.membership(self.life).replicas.values() for n in names
        }
        assert published <= self.running
        self.known_version = max(self.known_version, self.life.version)

    @invariant()
    def every_running_replica_fills_a_slot_of_its_own(self):
        slots = [s.name for s in self.life.slots.values() if s.phase is not supervise.Phase.DEAD]
        assert sorted(slots) == sorted(self.running)
        assert len(slots) <= sum(COPIES.values())

    @invariant()
    def a_role_fails_when_it_has_no_replica_left_and_only_then(self):
        for role in COPIES:
            left = [name for name in self.running if name.split("/")[1] == role]
            assert (role in self.life.failed) == (not left)

    def teardown(self):
        error = WorkerLost("pool", "-", "taken down")
        self.apply(supervise.Closing(self.now, error))
        assert not self.running and set(self.life.failed) == set(COPIES)


TestAnyFateOfReplicas = AnyFateOfReplicas.TestCase
TestAnyFateOfReplicas.settings = settings(
    max_examples=80, stateful_step_count=30, deadline=None, print_blob=True
)
