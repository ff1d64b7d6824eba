"""Who is in the next pass: nobody twice, no more than fits, everybody in the end."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from runtime.scheduler import CUT, PATIENCE, SHORT, Scheduler, Share


class Weights:
    def weight(self, account: str) -> float:
        return 2.0 if account == "double" else 1.0


def sessions(shares: list[Share]) -> list[str]:
    return [share.session for share in shares]


def test_tokens_go_first_and_prompts_share_a_cut_beside_them() -> None:
    scheduler = Scheduler()
    scheduler.put("long", "s", 1_000, token=False)
    scheduler.put("short", "s", 20, token=False)
    for number in range(100):
        scheduler.put(f"t{number}", "s", 1, token=True)
    shares = scheduler.next_pass()
    assert sessions(shares)[:100] == [f"t{number}" for number in range(100)]
    assert shares[100:] == [Share("long", CUT)]
    assert scheduler.next_pass() == [Share("short", 20), Share("long", CUT - 20)]


def test_a_pass_is_of_one_stage_and_stages_take_turns() -> None:
    scheduler = Scheduler()
    for stage in ("a", "b"):
        scheduler.put(stage, stage, 3 * CUT, token=False)
    assert [sessions(scheduler.next_pass())[0] for _ in range(4)] == ["a", "b", "a", "b"]


def test_where_rows_are_few_they_go_round() -> None:
    scheduler = Scheduler()
    scheduler.limit("s", 2)
    served: dict[str, int] = {}
    for number in range(5):
        scheduler.put(f"t{number}", "s", 1, token=True, account=f"a{number}")
    for _ in range(10):
        shares = scheduler.next_pass()
        assert len(shares) == 2
        for share in shares:
            served[share.session] = served.get(share.session, 0) + 1
            scheduler.put(share.session, "s", 1, token=True, account=f"a{share.session[1:]}")
    assert set(served.values()) == {4}


def test_accounts_share_by_their_weight_however_many_sessions_they_have() -> None:
    scheduler = Scheduler(Weights())
    left = {"double": 0, "many": 0}
    for number in range(50):
        scheduler.put(f"m{number}", "s", 10_000, token=False, account="many")
    scheduler.put("d", "s", 100_000, token=False, account="double")
    for _ in range(60):
        for share in scheduler.next_pass():
            left["double" if share.session == "d" else "many"] += share.count
    assert 1.8 < left["double"] / left["many"] < 2.2


def test_who_comes_back_after_a_pause_has_saved_nothing_up() -> None:
    scheduler = Scheduler()
    scheduler.put("a", "s", 100 * CUT, token=False, account="a")
    for _ in range(50):
        scheduler.next_pass()
    scheduler.put("b", "s", 100 * CUT, token=False, account="b")
    assert {sessions(scheduler.next_pass())[0] for _ in range(4)} == {"a", "b"}


def test_priority_goes_first_but_not_for_ever() -> None:
    scheduler = Scheduler()
    scheduler.put("low", "s", CUT, token=False, account="low")
    passes = 0
    while passes < 2 * PATIENCE:
        passes += 1
        scheduler.put("high", "s", CUT, token=False, account="high", priority=1)
        if "low" in sessions(scheduler.next_pass()):
            break
    assert passes == PATIENCE


class Passes(RuleBasedStateMachine):
    """Sequences come, wait and leave at random; each pass keeps the rules."""

    @initialize(rows=st.integers(1, 40))
    def begin(self, rows: int) -> None:
        self.scheduler, self.rows = Scheduler(Weights()), rows
        self.left: dict[str, tuple[str, int, bool]] = {}
        for stage in ("a", "b"):
            self.scheduler.limit(stage, rows)

    @rule(
        session=st.integers(0, 60).map(str),
        stage=st.sampled_from("ab"),
        count=st.integers(1, 2_000),
        token=st.booleans(),
        account=st.sampled_from(["", "double", "other"]),
        priority=st.integers(-1, 2),
    )
    def put(self, session: str, stage: str, count: int, token: bool, account: str, priority: int) -> None:
        self.scheduler.put(session, stage, count, token=token, account=account, priority=priority)
        self.left[session] = (stage, count, token and count <= SHORT)

    @rule(session=st.integers(0, 60).map(str))
    def drop(self, session: str) -> None:
        self.scheduler.drop(session)
        self.left.pop(session, None)

    @rule()
    def one_pass(self) -> None:
        shares = self.scheduler.next_pass()
        assert bool(shares) == bool(self.left)
        assert len(set(sessions(shares))) == len(shares) <= self.rows
        assert len({self.left[session][0] for session in sessions(shares)}) <= 1
        prompts = 0
        for share in shares:
            stage, left, token = self.left[share.session]
            assert 0 < share.count <= left
            assert share.count == left or not token
            prompts += 0 if token else share.count
            if share.count == left:
                del self.left[share.session]
            else:
                self.left[share.session] = (stage, left - share.count, token)
        assert prompts <= CUT

    @rule()
    def until_nothing_waits(self) -> None:
        positions = sum(count for _stage, count, _token in self.left.values())
        for _ in range(2 * len(self.left) + 2 * positions // min(CUT, 64) + 2):
            self.one_pass()
        assert not self.left

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "left"):
            assert len(self.scheduler) == len(self.left)


TestPasses = Passes.TestCase
TestPasses.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_rows_of_logits_are_bounded_and_a_crowd_leaves_room_for_a_prompt() -> None:
    scheduler = Scheduler()
    scheduler.limit("s", 16)
    for number in range(30):
        scheduler.put(f"t{number}", "s", 3, token=True, rows=3)
    assert len(scheduler.next_pass()) == 5
    scheduler.put("prompt", "s", 8, token=False, rows=8)
    shares = scheduler.next_pass()
    assert [share.session for share in shares].count("prompt") == 1
    assert len(shares) == 3
    scheduler.put("large", "alone", 40, token=True, rows=40)
    assert Share("large", 40) in scheduler.next_pass()
