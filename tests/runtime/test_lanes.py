"""A step's result sent to the next stage's node by the worker itself: what is, what isn't, and when a lane has ended."""

from __future__ import annotations

import dataclasses
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.errors import BadInput
from protocol.messages import StepHead, TokenLogprob, parse_step
from runtime import interface as api
from runtime.lanes import BROKEN, MOST, Lanes
from tests.runtime.support import stored_tensors, tiny_config, tiny_model
from tests.runtime.test_engine import engine_with, load, opening

KEY = bytes(range(32))
SESSION = b"s" * 16
HIDDEN = torch.arange(4, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()


@dataclasses.dataclass
class Other:
    """The other end of lane 7."""

    lanes: Lanes
    sock: socket.socket
    count: int = 0

    def frame(self) -> tuple[StepHead, bytes]:
        length = self.sock.recv(4, socket.MSG_WAITALL)
        sealed = self.sock.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
        opened = AESGCM(KEY).decrypt(self.count.to_bytes(12, "big"), sealed, length)
        self.count += 1
        head, raw = parse_step(opened)
        return head, bytes(raw)

    def nothing(self) -> bool:
        self.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            self.sock.recv(1)
        self.sock.setblocking(True)
        return True


def connected() -> tuple[socket.socket, socket.socket]:
    door = socket.create_server(("127.0.0.1", 0))
    mine = socket.create_connection(door.getsockname())
    theirs, _ = door.accept()
    door.close()
    theirs.settimeout(5.0)
    return mine, theirs


def give(lanes: Lanes, sock: socket.socket, lane: int = 7, key: bytes = KEY) -> None:
    """As the node does: its own descriptor is closed afterwards."""
    try:
        lanes.take(api.TakeLane(lane=lane, key=key), [sock.fileno()])
    finally:
        sock.close()


@pytest.fixture
def other() -> Iterator[Other]:
    mine, theirs = connected()
    lanes = Lanes()
    give(lanes, mine)
    yield Other(lanes, theirs)
    theirs.close()


def hidden_on(position: int = 5, spent: list[int] | None = None) -> api.Onward:
    head = StepHead(session=SESSION, epoch=2, position=position, kind="hidden", stage=2, spent=spent)
    return api.Onward(lane=7, head=head, index=1, asked=10.0, tells=True, stop=[], end=0)


def token_on(*, tells: bool = True, stop: tuple[int, ...] = (3,), end: int = 20) -> api.Onward:
    head = StepHead(session=SESSION, epoch=2, position=6, kind="token", stage=0, spent=[1, 2])
    return api.Onward(lane=7, head=head, index=1, asked=10.0, tells=tells, stop=list(stop), end=end)


def made(**fields: object) -> api.Stepped:
    return api.Stepped(began=10.002, seconds=0.001, **fields)  # type: ignore[arg-type]


def test_hidden_states_go_as_the_node_would_send_them(other: Other) -> None:
    for position in (5, 6):
        sent = other.lanes.send(hidden_on(position, [4, 5]), made(hidden=HIDDEN, dtype="bf16", shape=[1, 4]))
        head, raw = other.frame()
        assert raw == HIDDEN
        wanted = StepHead(session=SESSION, epoch=2, position=position, kind="hidden", stage=2, dtype="bf16", shape=[1, 4])
        wanted.spent = [4, 5, 1_000, 2_000]
        assert head == wanted
        assert sent > len(raw)
    assert other.lanes.sent == 2


@pytest.mark.parametrize("tells", [True, False])
def test_a_token_goes_to_the_first_stage_and_tells_the_entry_alone(other: Other, tells: bool) -> None:
    logprobs = [TokenLogprob(9, -0.5)]
    assert other.lanes.send(token_on(tells=tells), made(token=9, logprobs=logprobs)) > 0
    head, raw = other.frame()
    assert struct.unpack("<i", raw) == (9,)
    assert (head.kind, head.position, head.stage, head.finish) == ("token", 6, 0, None)
    assert (head.logprobs, head.spent) == ((logprobs, [1, 2, 1_000, 2_000]) if tells else (None, [1, 2]))


@pytest.mark.parametrize(
    ("onward", "answer"),
    [
        (token_on(), made(token=3)),
        (token_on(end=7), made(token=9)),
        (token_on(), made(token=9, more=[4])),
        (token_on(), made()),
        (hidden_on(), made()),
        (hidden_on(), made(hidden=2 * HIDDEN, dtype="bf16", shape=[2, 4])),
        (hidden_on(), made(hidden=struct.pack("<4H", 0, 0x7FC0, 0, 0), dtype="bf16", shape=[1, 4])),
        (hidden_on(), made(hidden=struct.pack("<4H", 0, 0, 0, 0xFF80), dtype="bf16", shape=[1, 4])),
        (hidden_on(), made(hidden=struct.pack("<4f", 0, 1, float("inf"), 0), dtype="fp32", shape=[1, 4])),
        (hidden_on(), made(hidden=struct.pack("<4e", 0, 1, 0, float("nan")), dtype="fp16", shape=[1, 4])),
    ],
    ids=["stops", "fills the room", "several", "no token", "nothing", "two rows", "nan", "infinite", "fp32", "fp16"],
)
def test_what_is_the_nodes_to_send(other: Other, onward: api.Onward, answer: api.Stepped) -> None:
    assert other.lanes.send(onward, answer) == 0
    assert other.nothing()


def test_a_lane_whose_other_end_is_gone_has_ended(other: Other) -> None:
    other.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    other.sock.close()
    answer = made(hidden=HIDDEN, dtype="bf16", shape=[1, 4])
    assert other.lanes.send(hidden_on(), answer) == BROKEN
    assert other.lanes.send(hidden_on(), answer) == BROKEN


def test_one_that_takes_no_whole_frame_has_ended(other: Other) -> None:
    wide = bytes(1 << 20)
    answers = [other.lanes.send(hidden_on(), made(hidden=wide, dtype="bf16", shape=[1, 1 << 19])) for _ in range(64)]
    full = answers.index(BROKEN)
    assert all(sent > len(wide) for sent in answers[:full])
    assert set(answers[full:]) == {BROKEN}


def test_a_lane_that_is_dropped_is_closed(other: Other) -> None:
    other.lanes.drop(api.DropLane(lane=7))
    assert other.sock.recv(1) == b""
    other.lanes.drop(api.DropLane(lane=7))
    assert other.lanes.send(token_on(), made(token=9)) == BROKEN


def test_lanes_that_cant_be_are_refused(other: Other) -> None:
    for lane, key in ((7, KEY), (8, KEY[:31])):
        mine, theirs = connected()
        with pytest.raises(BadInput, match="take_lane"):
            give(other.lanes, mine, lane, key)
        theirs.close()
    with pytest.raises(BadInput):
        other.lanes.take(api.TakeLane(lane=8, key=KEY), [])
    for lane in range(8, 8 + MOST - 1):
        other.lanes.take(api.TakeLane(lane=lane, key=KEY), [other.sock.fileno()])
    with pytest.raises(BadInput):
        other.lanes.take(api.TakeLane(lane=500, key=KEY), [other.sock.fileno()])
    before = len(os.listdir("/proc/self/fd"))
    for lane in range(8, 8 + MOST - 1):
        other.lanes.drop(api.DropLane(lane=lane))
    assert len(os.listdir("/proc/self/fd")) == before - MOST + 1


def test_an_engine_sends_what_a_step_alone_came_to(tmp_path: Path) -> None:
    config = tiny_config()
    engine = engine_with(tmp_path, config)
    load(engine, stored_tensors(tiny_model(config)), 0, 3)
    mine, theirs = connected()
    give(engine.lanes, mine)
    end, answers = Other(engine.lanes, theirs), list[api.Stepped]()
    for session in ("a", "b"):
        engine.open_sequence(api.OpenSequence(stage="0-3-bf16", session=session, tokens_max=64, sampling=opening(9).sampling))

    def step(session: str, position: int, tokens: list[int]) -> None:
        asked = api.Step(session=session, epoch=0, position=position, tokens=tokens, count=len(tokens), onward=hidden_on(position))
        engine.take_step(asked, answers.append)  # type: ignore[arg-type]

    def compute() -> list[api.Stepped]:
        answers.clear()
        while engine.working:
            engine.step()
        return list(answers)

    step("a", 0, [5, 6, 7])
    assert [one.sent for one in compute()] == [0]  # a prompt
    step("a", 3, [8])
    (alone,) = compute()
    head, raw = end.frame()
    assert (head.position, head.shape, raw) == (3, [1, engine._sequences["a"].runner.hidden], alone.hidden)
    assert alone.sent > 0
    step("a", 4, [9])
    step("b", 0, [9])
    assert [one.sent for one in compute()] == [0, 0]  # a crowd's go as one
    assert engine.usage().sent == 1
    theirs.close()
