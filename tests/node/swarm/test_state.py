"""What outlives a restart: the state file, the trust in it, own records' numbers and renewals."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from node.swarm.announce import AGAIN, RETRY, Announcer
from node.swarm.archive import Archive
from node.swarm.book import Outcome
from node.swarm.own import Facts, OwnRecords, SwarmConfig
from node.swarm.state import StateFile, fresh_state
from node.swarm.tickets import make_ticket
from node.swarm.trust import Trust
from node.swarm.wire import MAX_SECRETS
from protocol import limits
from protocol.errors import BadInput, Conflict, TooLarge
from protocol.ids import PeerId, digest
from protocol.records import Held, NodeRecord
from protocol.signing import peer_of
from protocol.ticket import Ticket, TicketPeer, parse_ticket
from tests.node.swarm.nodes import NOW, card, key_of, model_of

OWN, OTHER, THIRD = (peer_of(key_of(seed)) for seed in (1, 2, 3))


def test_a_state_comes_back_and_only_the_owner_reads_it(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "swarm")
    assert file.load() is None
    state = fresh_state(b"s" * 32)
    state.trusts = [OTHER]
    file.save(state)
    assert file.load() == state
    assert stat.S_IMODE((tmp_path / "swarm").stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["swarm"]


def test_a_broken_state_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "swarm").write_bytes(b"\xc1 nonsense")
    with pytest.raises(Conflict, match="can't be read"):
        StateFile(tmp_path / "swarm").load()
    with pytest.raises(BadInput):
        fresh_state(b"short")


def test_two_nodes_with_one_secret_are_members_to_each_other() -> None:
    one, other = Trust(OWN, fresh_state(b"a" * 32)), Trust(OTHER, fresh_state(b"b" * 32))
    assert not one.greeted(OTHER, other.hello(OWN, bytes(16), "1"))
    other.adopt(OWN, Ticket(peers=[], trusts=[THIRD], expires=0, swarm=one.secret))
    assert one.greeted(OTHER, other.hello(OWN, bytes(16), "1"))
    assert other.greeted(OWN, one.hello(OTHER, bytes(16), "1"))
    assert one.trusted(OTHER)
    assert other.secret == one.secret
    assert other.believed(THIRD)
    assert not other.trusted(THIRD)


def test_secrets_and_the_allow_list_are_kept_in_the_state_and_bounded() -> None:
    state = fresh_state(b"a" * 32)
    trust = Trust(OWN, state)
    for number in range(12):
        trust.adopt(OTHER, Ticket(peers=[], trusts=[], expires=0, swarm=digest(b"%d" % number)))
    assert len(trust.secrets()) == MAX_SECRETS
    assert trust.secret == digest(b"11")
    assert trust.allow(THIRD)
    assert not trust.allow(THIRD)
    with pytest.raises(BadInput):
        trust.allow(PeerId("nobody"))
    trust.into(state)
    again = Trust(OWN, state)
    assert again.secrets() == trust.secrets()
    assert again.trusted(THIRD)
    assert again.believed(OTHER)


def test_a_ticket_fits_and_names_publishers_of_known_cards() -> None:
    trust = Trust(OWN, fresh_state(b"a" * 32))
    trust.allow(OTHER)
    others = [(peer_of(key_of(seed)), [f"/ip4/10.0.0.{seed}/tcp/4840"] * 16) for seed in range(2, 12)]
    cards = [(OTHER, card()), (THIRD, card())]
    text = make_ticket(key_of(1), (OWN, ["/ip4/10.0.0.1/tcp/4840"]), others, trust, cards, NOW)
    assert len(text) <= limits.MAX_TICKET
    issuer, ticket = parse_ticket(text, NOW)
    assert issuer == OWN
    assert ticket.peers[0] == TicketPeer(peer=OWN, addresses=["/ip4/10.0.0.1/tcp/4840"])
    assert 1 < len(ticket.peers) <= 8
    assert ticket.trusts == [OTHER]
    assert ticket.swarm == b"a" * 32


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


def own_records(clock: Clock, boot: bytes = bytes(16)) -> OwnRecords:
    config = SwarmConfig(label="ann", lend="both", version="1")
    return OwnRecords(key_of(1), config, Facts(boot=boot), lambda: ["/ip4/127.0.0.1/tcp/1"] * 20, clock)


def everyone(_peer: PeerId) -> bool:
    return True


def test_own_records_are_renewed_at_a_third_of_their_life() -> None:
    clock, archive = Clock(), Archive()
    own = own_records(clock)
    made = [own.node(archive), own.holding(archive, model_of(1), [Held(0, bytes(32), [1])], []), own.card(archive, card())]
    for envelope in [*made, own.holding(archive, model_of(2), [], [])]:
        archive.take(envelope, clock.now, everyone)
    assert own.renewals(archive) == []
    for passed, count in ((limits.NODE_RECORD_LIFETIME, 1), (limits.HOLDING_LIFETIME, 2), (limits.CARD_LIFETIME, 3)):
        clock.now = NOW + passed / 3 + 2
        assert len(own.renewals(archive)) == count
    for envelope in own.renewals(archive):
        taken = archive.take(envelope, clock.now, everyone)
        assert taken is not None
        assert taken.outcome is Outcome.NEW
    assert own.renewals(archive) == []


def test_numbers_rise_even_when_the_clock_steps_back_or_the_node_restarts() -> None:
    clock, archive = Clock(), Archive()
    for _ in range(3):
        own = own_records(clock)
        clock.now -= 50
        for _ in range(2):
            taken = archive.take(own.node(archive), clock.now, everyone)
            assert taken is not None
            assert taken.outcome is Outcome.NEW


def test_a_record_from_before_the_restart_is_no_duplicate() -> None:
    clock = Clock()
    before = own_records(clock, b"a" * 16)
    archive = Archive()
    archive.take(before.node(archive), clock.now, everyone)
    clock.now += 1
    after = own_records(clock, b"b" * 16)
    old = archive.peers.get(OWN)
    assert old is not None
    assert not after.check_duplicate(old.record)
    clock.now += 1
    archive.take(before.node(archive), clock.now, everyone)
    new = archive.peers.get(OWN)
    assert new is not None
    assert isinstance(new.record, NodeRecord)
    assert after.check_duplicate(new.record)
    assert not after.check_duplicate(new.record)


def test_a_holding_too_large_for_a_frame_is_refused() -> None:
    held = [Held(group, bytes(32), list(range(200))) for group in range(4_000)]
    with pytest.raises(TooLarge, match="Holding"):
        own_records(Clock()).holding(Archive(), model_of(1), held, [])


class SlowDoor:
    def __init__(self) -> None:
        self.times: list[float] = []
        self.receipts = 0

    async def join(self, peers: list[tuple[PeerId, list[str]]]) -> int:
        return 0

    async def announce(self, key: bytes) -> int:
        self.times.append(asyncio.get_running_loop().time())
        return self.receipts

    def withdraw(self, key: bytes) -> None:
        raise AssertionError("nothing was withdrawn")

    async def lookup(self, key: bytes, timeout: float) -> list[object]:
        return []


async def test_announcements_are_paced_tried_again_and_renewed() -> None:
    door, loop = SlowDoor(), asyncio.get_running_loop()
    announcer = Announcer(door, loop.time)  # type: ignore[arg-type]
    task = asyncio.create_task(announcer.run())
    for number in range(5):
        announcer.add(model_of(number))
        announcer.add(model_of(number))
    await asyncio.sleep(5)
    assert len(door.times) == 5
    assert all(later - earlier >= 0.0999 for earlier, later in zip(door.times, door.times[1:], strict=False))
    door.receipts = 3
    await asyncio.sleep(RETRY + 2)
    assert len(door.times) == 10
    await asyncio.sleep(AGAIN - RETRY)
    assert len(door.times) == 10
    await asyncio.sleep(RETRY)
    assert len(door.times) == 15
    task.cancel()
