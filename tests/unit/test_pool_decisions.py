"""Single decisions of the pool's client and controller, with hand-computed outcomes."""

from dataclasses import replace

import pytest

from orchestrator.errors import (
    BudgetExhausted,
    SpecError,
    WorkerLost,
    WorkerRaised,
    WorkerStalled,
)
from orchestrator.pool import dispatch, supervise
from orchestrator.pool.dispatch import ClientState, Counts, Limits, Phase
from orchestrator.pool.records import Membership, ReplicaReport, RoleDescription

LOST = WorkerLost("teacher", "r", "killed")


def client(*replicas: str, **limits: float) -> ClientState:
    merged = {"window_requests": 4, "window_bytes": 100, "deadline_s": 10.0, **limits}
    state = ClientState(Limits(**merged))  # type: ignore[arg-type]
    return run(state, dispatch.MembersSeen(0.0, Membership(1, {"teacher": replicas})))[0]


def run(state: ClientState, *events: dispatch.Event) -> tuple[ClientState, list[dispatch.Command]]:
    commands: list[dispatch.Command] = []
    for event in events:
        state, more = dispatch.advance(state, event)
        commands += more
    return state, commands


def ask(name: str = "r", nbytes: int = 10, now: float = 0.0) -> dispatch.Submitted:
    return dispatch.Submitted(now, name, "teacher", nbytes)


def test_a_request_goes_out_comes_back_and_is_consumed_once():
    state, commands = run(client("a"), ask())
    assert commands == [dispatch.SendTo("r", 1, "a")]
    state, commands = run(state, dispatch.Answered(1.0, "r", 1))
    assert commands == [dispatch.Deliver("r", 1)]
    state, _ = run(state, dispatch.Consumed(2.0, "r"))
    assert state.counts == Counts(asked=1, delivered=1, consumed=1)
    assert not state.works and not state.sends
    with pytest.raises(ValueError, match="no answer to consume"):
        run(state, dispatch.Consumed(3.0, "r"))


def test_an_id_in_use_is_refused():
    state, _ = run(client("a"), ask())
    with pytest.raises(ValueError, match="asked and not consumed"):
        run(state, ask())


def test_beyond_the_window_requests_are_held_back_in_order():
    state, commands = run(client("a"), ask("r1", 60), ask("r2", 50), ask("r3", 10))
    assert [c.request_id for c in commands if isinstance(c, dispatch.SendTo)] == ["r1"]
    assert dispatch.window(state) == (1, 60) and not dispatch.has_room(state, 1)
    _, commands = run(state, dispatch.Answered(1.0, "r1", 1), dispatch.Consumed(1.0, "r1"))
    assert [c.request_id for c in commands if isinstance(c, dispatch.SendTo)] == ["r2", "r3"]


def test_a_request_larger_than_the_window_goes_alone():
    state, commands = run(client("a"), ask("huge", 1000), ask("small", 1))
    assert [c.request_id for c in commands if isinstance(c, dispatch.SendTo)] == ["huge"]
    assert state.works["small"].phase is Phase.HELD


def test_what_the_caller_waits_for_is_not_held_back():
    _, commands = run(client("a"), ask("r1", 100), ask("r2", 100), dispatch.Wanted(1.0, "r2"))
    assert [c.request_id for c in commands if isinstance(c, dispatch.SendTo)] == ["r1", "r2"]


def test_a_late_request_goes_elsewhere_and_either_answer_counts_once():
    state, commands = run(client("a", "b"), ask())
    assert isinstance(first := commands[0], dispatch.SendTo)
    assert dispatch.next_wake(state) == 10.0
    state, commands = run(state, dispatch.Tick(9.9))
    assert not commands
    state, commands = run(state, dispatch.Tick(10.0))
    assert isinstance(second := commands[0], dispatch.SendTo)
    assert second.attempt == 2 and {first.replica, second.replica} == {"a", "b"}
    state, commands = run(state, dispatch.Answered(11.0, "r", 1), dispatch.Answered(12.0, "r", 2))
    assert commands == [dispatch.Deliver("r", 1), dispatch.Drop("r", 2)]
    assert state.counts == Counts(asked=1, delivered=1, redispatched=1, late_dropped=1)


def test_a_dead_replica_gets_nothing_more_though_the_membership_still_lists_it():
    state, _ = run(client("a"), ask("r1"))
    state, commands = run(state, dispatch.Lost(1.0, "r1", 1, True, LOST), ask("r2", now=2.0))
    assert not commands and state.works["r1"].phase is Phase.WAITING
    born = Membership(2, {"teacher": ("a2",)})
    _, commands = run(state, dispatch.MembersSeen(3.0, born))
    assert commands == [dispatch.SendTo("r1", 2, "a2"), dispatch.SendTo("r2", 1, "a2")]


def test_a_replica_that_left_the_membership_is_not_waited_for():
    state, _ = run(client("a"), ask())
    state, commands = run(state, dispatch.MembersSeen(1.0, Membership(2, {"teacher": ("b",)})))
    assert commands == [dispatch.SendTo("r", 2, "b")]
    # Ray's own news of the same death comes later and changes nothing.
    state, commands = run(state, dispatch.Lost(2.0, "r", 1, True, LOST))
    assert not commands and state.counts.redispatched == 1


def test_the_loss_of_an_attempt_that_was_given_up_sends_nothing_again():
    state, _ = run(client("a", "b"), ask(), dispatch.Tick(10.0))
    state, commands = run(state, dispatch.Lost(11.0, "r", 1, True, LOST))
    assert not commands and state.works["r"].losses == 1


def test_losses_beyond_the_budget_fail_the_request_with_the_last_cause():
    state, _ = run(client("a", losses=2), ask())
    for attempt in (1, 2):
        state, commands = run(state, dispatch.Tick(10.0 * attempt))
        assert commands == [dispatch.SendTo("r", attempt + 1, "a")]
    state, commands = run(state, dispatch.Tick(30.0))
    (failure,) = commands
    assert isinstance(failure, dispatch.Fail) and isinstance(failure.error, BudgetExhausted)
    assert "lost or late 3 times, 2 are made good" in str(failure.error)
    assert "no answer from a in 10 s" in str(failure.error)


def test_a_replica_out_of_reach_for_long_costs_the_request_nothing_but_patience():
    state, _ = run(client("a", patience_s=60.0), ask())
    for second in range(1, 30):
        attempt = state.works["r"].attempt
        out_of_reach = dispatch.Lost(float(second), "r", attempt, False, LOST)
        state, commands = run(state, out_of_reach, dispatch.Tick(second + 0.9))
        assert [type(command) for command in commands] == [dispatch.SendTo]
    attempt = state.works["r"].attempt
    state, commands = run(state, dispatch.Answered(31.0, "r", attempt))
    assert commands == [dispatch.Deliver("r", attempt)]

    state, _ = run(client("a", patience_s=60.0), ask())
    state, commands = run(state, dispatch.Lost(59.9, "r", 1, False, LOST), dispatch.Tick(60.1))
    assert [type(command) for command in commands] == [dispatch.Fail]


def test_an_error_of_the_data_is_tried_on_two_replicas_and_names_the_request():
    state, commands = run(client("a", "b"), ask())
    error = WorkerRaised("teacher", "r", "ValueError: bad token")
    state, again = run(state, dispatch.Raised(1.0, "r", 1, error))
    assert isinstance(commands[0], dispatch.SendTo) and isinstance(again[0], dispatch.SendTo)
    assert {commands[0].replica, again[0].replica} == {"a", "b"}
    state, commands = run(state, dispatch.Raised(2.0, "r", 2, error))
    (failure,) = commands
    assert isinstance(failure, dispatch.Fail) and isinstance(failure.error, WorkerRaised)
    assert failure.error.request_id == "r" and "in 2 tries" in str(failure.error)
    assert state.counts == Counts(asked=1, failed=1, redispatched=1)


def test_an_error_that_is_the_same_everywhere_by_its_kind_is_not_retried():
    wrong = SpecError("roles.teacher", "serves another model", "Change one")
    state, _ = run(client("a", "b"), ask())
    _, commands = run(state, dispatch.Raised(1.0, "r", 1, wrong, final=True))
    assert commands == [dispatch.Fail("r", wrong)]


def test_a_full_replica_rests_and_a_free_one_is_asked_at_once():
    state, commands = run(client("a", "b"), ask())
    assert isinstance(first := commands[0], dispatch.SendTo)
    state, commands = run(state, dispatch.Refused(1.0, "r", 1, retry_after_s=5.0))
    assert isinstance(second := commands[0], dispatch.SendTo) and second.replica != first.replica
    state, commands = run(state, dispatch.Refused(2.0, "r", 2, retry_after_s=5.0))
    assert not commands and dispatch.next_wake(state) == 6.0
    _, commands = run(state, dispatch.Tick(6.0))
    assert commands == [dispatch.SendTo("r", 3, first.replica)]


def test_without_any_replica_patience_ends_and_says_so():
    state, commands = run(client(patience_s=60.0), ask(), dispatch.Tick(59.0))
    assert not commands
    state, (failure,) = run(state, dispatch.Tick(60.0))
    assert isinstance(failure, dispatch.Fail) and isinstance(failure.error, BudgetExhausted)
    assert "none is alive" in str(failure.error)


def test_a_failed_role_fails_what_waits_for_it():
    gone = BudgetExhausted("restarts are used")
    state, _ = run(client("a"), ask())
    members = Membership(2, {"teacher": ()}, failed={"teacher": gone})
    _, commands = run(state, dispatch.MembersSeen(1.0, members))
    assert commands == [dispatch.Fail("r", gone)]


def test_an_id_that_comes_again_does_not_reuse_an_attempt_still_in_flight():
    state, _ = run(client("a", "b"), ask(), dispatch.Tick(10.0))
    state, _ = run(state, dispatch.Answered(11.0, "r", 1), dispatch.Consumed(11.0, "r"))
    _, (sent,) = run(state, ask(now=12.0))
    assert isinstance(sent, dispatch.SendTo) and sent.attempt == 3


def test_the_less_loaded_of_two_replicas_is_chosen_and_all_get_work():
    names = ["a", "b", "c"]
    chosen = [dispatch.choose(f"r{i}", 1, names, {"a": 1000}) for i in range(300)]
    assert "a" not in chosen and {"b", "c"} == set(chosen)
    even = [dispatch.choose(f"r{i}", 1, names, {}) for i in range(3000)]
    assert all(800 < even.count(name) < 1200 for name in names)


@pytest.mark.parametrize("field", ["window_requests", "window_bytes", "deadline_s", "patience_s"])
def test_limits_that_let_nothing_through_are_refused(field):
    with pytest.raises(ValueError, match=field):
        Limits(**{"window_requests": 1, "window_bytes": 1, field: 0})


# --- the controller ------------------------------------------------------------------------------

POLICY = supervise.Policy(restarts=1, missed_pings=2, start_s=100.0)


def ready(name: str, fingerprint: str = "w", now: float = 1.0) -> supervise.Reported:
    role = name.split("/")[1]
    description = RoleDescription(role, fingerprint, 100, 4, 7)
    return supervise.Reported(now, name, ReplicaReport("ready", 1, "n", description=description))


def pool(
    copies: int = 1, policy: supervise.Policy = POLICY
) -> tuple[supervise.PoolState, list[str]]:
    state, commands = supervise.begin("p", {"teacher": copies}, policy, now=1.0)
    names = [command.name for command in commands]
    for name in names:
        state, _ = supervise.advance(state, ready(name))
    assert supervise.membership(state).replicas == {"teacher": tuple(names)}
    return state, names


def test_a_death_within_the_budget_is_made_good_and_one_beyond_fails_the_role():
    state, (name,) = pool()
    state, commands = supervise.advance(state, supervise.Died(2.0, name, "killed"))
    (start,) = commands
    assert isinstance(start, supervise.StartReplica) and start.name != name
    assert supervise.membership(state).replicas == {"teacher": ()}
    state, commands = supervise.advance(state, supervise.Died(3.0, start.name, "killed again"))
    assert not commands
    error = supervise.membership(state).failed["teacher"]
    assert isinstance(error, BudgetExhausted) and "killed again" in str(error)


def test_a_role_goes_on_with_the_copies_it_has():
    state, (one, two) = pool(copies=2, policy=replace(POLICY, restarts=0))
    state, _ = supervise.advance(state, supervise.Died(2.0, one, "killed"))
    assert supervise.membership(state).replicas == {"teacher": (two,)} and not state.failed
    state, _ = supervise.advance(state, supervise.Died(2.0, two, "killed"))
    assert isinstance(state.failed["teacher"], BudgetExhausted)


def test_old_deaths_are_forgiven_when_the_plan_says_so():
    state, (name,) = pool(policy=replace(POLICY, restart_window_s=100.0))
    for now in (1000.0, 1101.0):
        state, (start,) = supervise.advance(state, supervise.Died(now, name, "killed"))
        name = start.name
    state, commands = supervise.advance(state, supervise.Died(1102.0, name, "killed"))
    assert not commands and "teacher" in state.failed


def test_missed_pings_end_a_ready_replica_but_not_one_that_loads():
    state, commands = supervise.begin("p", {"teacher": 1}, POLICY, now=1.0)
    name = commands[0].name
    for _ in range(5):
        state, commands = supervise.advance(state, supervise.Missed(2.0, name))
        assert not commands
    state, _ = supervise.advance(state, ready(name))
    state, commands = supervise.advance(state, supervise.Missed(3.0, name))
    assert not commands
    state, _ = supervise.advance(state, ready(name))  # an answer wipes the slate
    state, _ = supervise.advance(state, supervise.Missed(4.0, name))
    state, commands = supervise.advance(state, supervise.Missed(5.0, name))
    assert isinstance(commands[0], supervise.KillReplica)
    assert isinstance(commands[1], supervise.StartReplica)


def test_a_replica_that_never_comes_up_is_given_up_and_resources_are_named():
    state, commands = supervise.begin("p", {"teacher": 1}, replace(POLICY, restarts=0), now=1.0)
    state, none = supervise.advance(state, supervise.Tick(101.0))
    assert not none
    state, (kill,) = supervise.advance(state, supervise.Tick(101.1))
    assert kill == supervise.KillReplica(commands[0].name)
    assert "resources that role teacher asks for" in str(state.failed["teacher"])


def test_a_wrong_spec_is_never_loaded_twice_and_another_error_once_more():
    wrong = SpecError("roles.teacher.path", "holds no model", "Name another")
    for error, tries in ((wrong, 1), (WorkerRaised("teacher", "load", "no disk"), 2)):
        policy = replace(POLICY, restarts=8)
        state, commands = supervise.begin("p", {"teacher": 1}, policy, now=1.0)
        starts = 0
        while isinstance(command := commands[-1], supervise.StartReplica):
            starts += 1
            report = ReplicaReport("failed", 1, "n", error=error)
            state, commands = supervise.advance(
                state, supervise.Reported(2.0, command.name, report)
            )
            assert starts < 10
        assert starts == tries and state.failed["teacher"] is error


def test_a_replica_with_other_weights_than_its_siblings_is_refused():
    state, (one, two) = pool(copies=2)
    state, (start,) = supervise.advance(state, supervise.Died(2.0, one, "killed"))
    state, (kill,) = supervise.advance(state, ready(start.name, fingerprint="other"))
    assert kill == supervise.KillReplica(start.name)
    assert supervise.membership(state).replicas == {"teacher": (two,)}


def test_a_restarted_controller_takes_over_the_living_and_ends_duplicates():
    state, commands = supervise.begin(
        "p",
        {"teacher": 2},
        POLICY,
        now=1.0,
        found=["p/teacher/0/7", "p/teacher/0/9", "p/teacher/5/8", "p/controller", "q/teacher/1/3"],
        restarts=(0.5,),
    )
    assert {c.name for c in commands if isinstance(c, supervise.KillReplica)} == {
        "p/teacher/0/7",
        "p/teacher/5/8",
    }
    (started,) = (c for c in commands if isinstance(c, supervise.StartReplica))
    assert started.name.startswith("p/teacher/1/")
    assert supervise.membership(state).replicas == {"teacher": ("p/teacher/0/9",)}
    assert supervise.used_restarts(state, 2.0) == 1


def test_a_pool_that_closes_starts_nothing_and_tells_why():
    state, (name,) = pool()
    down = WorkerStalled("pool", "-", "taken down")
    state, commands = supervise.advance(state, supervise.Closing(2.0, down))
    assert commands == [supervise.KillReplica(name)]
    assert supervise.membership(state).failed == {"teacher": down}
    assert supervise.advance(state, supervise.Died(3.0, name, "ended")) == (state, [])
    assert supervise.advance(state, supervise.Tick(1e9)) == (state, [])
