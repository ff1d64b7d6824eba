"""Framing, ids, signatures and every record: round trips, hostile bytes, and one past each limit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import encoding, grants, ids, limits, messages, records, ticket
from protocol.errors import BadInput, Conflict, Forbidden, MfError, NotFound, error_from_wire
from protocol.framing import FrameReader, encode_varint, frame, pack, unpack, unpack_plain
from protocol.signing import seal, verify_bytes
from tests.protocol import vector_cases as cases

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.binary(max_size=20) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
SEALED = {
    "node": records.seal_record(cases.KEY, cases.NODE),
    "holding": records.seal_record(cases.KEY, cases.HOLDING),
    "card": records.seal_record(cases.KEY, cases.CARD),
    "grant": grants.seal_grant(cases.KEY, cases.GRANT),
    "encoding": encoding.seal_encoding(cases.KEY, cases.ENCODING),
}
OPEN: dict[str, Callable[[bytes], Any]] = {
    "node": lambda data: records.open_record(data, records.NodeRecord, cases.NOW),
    "holding": lambda data: records.open_record(data, records.Holding, cases.NOW),
    "card": lambda data: records.open_record(data, records.Card, cases.NOW),
    "grant": lambda data: grants.open_grant(data, cases.PEER, cases.NOW),
    "encoding": encoding.parse_encoding,
}


@given(PLAIN)
def test_plain_values_come_back_and_bytes_are_canonical(value: Any) -> None:
    data = pack(value)
    assert unpack_plain(data, "x") == value
    assert pack(unpack_plain(data, "x")) == data


@given(st.binary(max_size=300))
def test_hostile_bytes_raise_nothing_else(data: bytes) -> None:
    readers: list[Callable[[bytes], Any]] = [
        *OPEN.values(), lambda d: unpack_plain(d, "x"), messages.parse_step, lambda d: messages.parse_reply(d, messages.BlobHead, "x"),
        lambda d: ticket.parse_ticket(ids.ticket_text(d), 0), lambda d: ids.model_from(d.decode("latin1")),
        lambda d: ids.public_from_peer(d.decode("latin1")), lambda d: grants.grant_from_header(d.decode("latin1")),
    ]  # fmt: skip
    for read in readers:
        with contextlib.suppress(MfError):
            read(data)


@given(st.sampled_from(sorted(SEALED)), st.data())
def test_a_flipped_byte_is_refused(name: str, data: st.DataObject) -> None:
    changed = bytearray(SEALED[name])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MfError):
        OPEN[name](bytes(changed))


@pytest.mark.parametrize("name", sorted(OPEN))
def test_one_kind_is_never_read_as_another(name: str) -> None:
    OPEN[name](SEALED[name])
    for other in SEALED.keys() - {name}:
        with pytest.raises(BadInput, match="signed for"):
            OPEN[name](SEALED[other])


@pytest.mark.parametrize(
    "data",
    [msgpack.packb({1: 2}), msgpack.packb(msgpack.ExtType(3, b"x")), msgpack.packb(msgpack.Timestamp(1)), b"\x82\xa1a\x01\xa1a\x02",
     b"\xc1", b"\x91", b"\xa1\xff", b"\x00\x00", b""],
    ids=["int key", "extension", "timestamp", "repeated key", "unused code", "cut short", "not UTF-8", "trailing", "empty"],
)  # fmt: skip
def test_refused_msgpack(data: bytes) -> None:
    with pytest.raises(BadInput):
        unpack_plain(data, "x")


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (nested(limits.MAX_DEPTH), nested(limits.MAX_DEPTH + 1)),
        ([0] * limits.MAX_ARRAY, [0] * (limits.MAX_ARRAY + 1)),
        ({str(n): 0 for n in range(limits.MAX_MAP)}, {str(n): 0 for n in range(limits.MAX_MAP + 1)}),
        (bytes(limits.MAX_FRAME - 5), bytes(limits.MAX_FRAME - 4)),
    ],
    ids=["depth", "array", "map", "frame"],
)
def test_framing_limits_one_past(good: Any, bad: Any) -> None:
    unpack_plain(pack(good), "x")
    with pytest.raises(BadInput):
        unpack_plain(pack(bad), "x")


def test_blob_one_past() -> None:
    with pytest.raises(BadInput, match="at most"):
        encoding.parse_encoding(bytes(limits.MAX_BLOB + 1))


def test_large_blobs_keep_the_same_rules() -> None:
    class Blob(messages.Record):
        data: bytes

    big = bytes(limits.MAX_FRAME)
    assert unpack(pack({"data": big, "later": 1}), Blob, "blob", limits.MAX_BLOB).data == big
    wrong = [{"data": big, "!must": 1}, {"data": 1, "pad": big}, {str(n): big[:300] for n in range(limits.MAX_MAP + 1)}, [big]]
    for value in wrong:
        with pytest.raises(BadInput):
            unpack(pack(value), Blob, "blob", limits.MAX_BLOB)


def test_unknown_fields_are_ignored_and_critical_ones_refuse() -> None:
    fields = msgspec.to_builtins(cases.MESSAGES["BlobHead"], builtin_types=(bytes,))
    assert unpack(pack(fields | {"later": 1}), messages.BlobHead, "x") == cases.MESSAGES["BlobHead"]
    with pytest.raises(BadInput, match="critical"):
        unpack(pack(fields | {"!later": 1}), messages.BlobHead, "x")


@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 50))
def test_frames_come_back_however_the_stream_is_cut(payloads: list[bytes], step: int) -> None:
    stream, reader, got = b"".join(map(frame, payloads)), FrameReader(), []
    for at in range(0, len(stream), step):
        reader.feed(stream[at : at + step])
        while (payload := reader.next_frame()) is not None:
            got.append(payload)
    assert got == payloads


def test_frame_length_one_past_and_endless_prefix() -> None:
    reader = FrameReader()
    reader.feed(encode_varint(limits.MAX_FRAME))
    assert reader.next_frame() is None
    for start in (encode_varint(limits.MAX_FRAME + 1), b"\x80" * 5):
        reader = FrameReader()
        reader.feed(start)
        with pytest.raises(BadInput):
            reader.next_frame()


@given(st.binary(min_size=32, max_size=32))
def test_ids_come_back_and_have_one_spelling(raw: bytes) -> None:
    text = ids.model_text(ids.ModelId(raw))
    assert ids.model_from(text) == raw
    peer = ids.peer_from_public(raw)
    assert ids.public_from_peer(peer) == raw
    for other in (text.upper(), text + "a", text[:-1], "mfe1" + text[4:]):
        with pytest.raises(BadInput):
            ids.model_from(other)
    for other in (peer + " ", peer + "\n", peer[:-1], "1" + peer):
        with pytest.raises(BadInput):
            ids.public_from_peer(other)
        assert not verify_bytes(other, "d", b"", bytes(64))


def resealed(record: Any, **changes: Any) -> bytes:
    """The record with fields changed, signed without any check."""
    domain = {records.NodeRecord: "mf/node/1", records.Holding: "mf/holding/1", records.Card: "mf/card/1"}[type(record)]
    return seal(cases.KEY, domain, msgspec.structs.replace(record, **changes))


WRONG_RECORDS = [
    (cases.NODE, {"expires": cases.NOW - limits.CLOCK_TOLERANCE - 1}),
    (cases.NODE, {"expires": cases.NOW + limits.NODE_RECORD_LIFETIME + limits.CLOCK_TOLERANCE + 1}),
    (cases.HOLDING, {"expires": cases.NOW + limits.HOLDING_LIFETIME + limits.CLOCK_TOLERANCE + 1}),
    (cases.CARD, {"expires": cases.NOW + limits.CARD_LIFETIME + limits.CLOCK_TOLERANCE + 1}),
    (cases.NODE, {"sequence": -1}),
    (cases.NODE, {"sequence": 1 << 63}),
    (cases.NODE, {"boot": b"x"}),
    (cases.NODE, {"lend": "all"}),
    (cases.NODE, {"addresses": ["a"] * (limits.MAX_ADDRESSES + 1)}),
    (cases.NODE, {"transfer": ["a" * (limits.MAX_ADDRESS + 1)]}),
    (cases.NODE, {"version": "v" * (limits.MAX_LABEL + 1)}),
    (cases.NODE, {"memory": -1}),
    (cases.NODE, {"storage": -1}),
    (cases.NODE, {"region": "r" * (limits.MAX_LABEL + 1)}),
    (cases.PLACED, {"coordinate": [0, 0, 0]}),
    (cases.PLACED, {"coordinate": [limits.COORDINATE_FARTHEST + 1, 0, 0, 0]}),
    (cases.PLACED, {"coordinate": [0, -limits.COORDINATE_FARTHEST - 1, 0, 0]}),
    (cases.PLACED, {"coordinate": [0, 0, limits.COORDINATE_FARTHEST + 1, 0]}),
    (cases.PLACED, {"coordinate": [0, 0, -1, 0]}),
    (cases.PLACED, {"coordinate": [0, 0, 0, limits.COORDINATE_WORST_ERROR + 1]}),
    (cases.HOLDING, {"model": b"x"}),
    (cases.HOLDING, {"held": [records.Held(limits.MAX_GROUPS, cases.ID, [1])]}),
    (cases.HOLDING, {"held": [records.Held(0, cases.ID, [limits.MAX_SHARDS])]}),
    (cases.HOLDING, {"held": [records.Held(0, cases.ID, [1, 1])]}),
    (cases.HOLDING, {"full": [limits.MAX_GROUPS]}),
    (cases.HOLDING, {"repairs": [records.Repairing(cases.ID, cases.NOW)] * (limits.MAX_REPAIRS + 1)}),
    (cases.HOLDING, {"repairs": [records.Repairing(b"x", cases.NOW)]}),
    (cases.HOLDING, {"repairs": [records.Repairing(cases.ID, -1)]}),
    (cases.HOLDING, {"serves": [records.Serving(0, 1, "bf16", True)] * (limits.MAX_SERVED + 1)}),
    (cases.HOLDING, {"serves": [records.Serving(0, limits.MAX_LAYERS + 1, "bf16", True)]}),
    (cases.HOLDING, {"serves": [records.Serving(4, 4, "bf16", True)]}),
    (cases.HOLDING, {"serves": [records.Serving(-1, 4, "bf16", True)]}),
    (cases.HOLDING, {"serves": [records.Serving(0, 4, "p" * 17, True)]}),
    (cases.HOLDING, {"serves": [records.Serving(0, 4, "bf16", True, 0)]}),
    (cases.HOLDING, {"serves": [records.Serving(0, 4, "bf16", True, limits.MAX_LAYER_US + 1)]}),
    (cases.CARD, {"name": "../x"}),
    (cases.CARD, {"name": "n" * 97}),
    (cases.CARD, {"size": -1}),
    (cases.CARD, {"description": "d" * limits.MAX_CARD}),
    (cases.CARD, {"summary": msgspec.structs.replace(cases.SUMMARY, layers=limits.MAX_LAYERS + 1)}),
]


@pytest.mark.parametrize(("record", "changes"), WRONG_RECORDS, ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "")
def test_records_one_past(record: Any, changes: dict[str, Any]) -> None:
    records.open_record(resealed(record), type(record), cases.NOW)
    with pytest.raises(BadInput):
        records.open_record(resealed(record, **changes), type(record), cases.NOW)


def test_a_card_one_past_is_not_signed() -> None:
    room = limits.MAX_CARD - len(records.seal_record(cases.KEY, msgspec.structs.replace(cases.CARD, description="d" * 4000)))
    records.seal_record(cases.KEY, msgspec.structs.replace(cases.CARD, description="d" * (4000 + room)))
    with pytest.raises(BadInput, match="Card"):
        records.seal_record(cases.KEY, msgspec.structs.replace(cases.CARD, description="d" * (4001 + room)))


def test_grants_one_past() -> None:
    def opened(now: float = cases.NOW, **changes: Any) -> grants.Grant:
        return grants.open_grant(grants.seal_grant(cases.KEY, msgspec.structs.replace(cases.GRANT, **changes)), cases.PEER, now)

    assert grants.grant_from_header(grants.header_from(SEALED["grant"])) == SEALED["grant"]
    opened(cases.NOW + limits.GRANT_OPEN_WITHIN)
    with pytest.raises(Forbidden):
        opened(cases.NOW + limits.GRANT_OPEN_WITHIN + 1)
    with pytest.raises(Forbidden):
        opened(cases.NOW - limits.CLOCK_TOLERANCE - 1)
    with pytest.raises(Forbidden):
        opened(server=ids.peer_from_public(bytes(32)))
    for wrong in ({"verb": "delete"}, {"shards": []}, {"shards": [256]}, {"shards": [1, 1]}, {"max_bytes": 0}, {"nonce": b""}):
        with pytest.raises(BadInput):
            opened(**wrong)


def test_tickets_one_past() -> None:
    def parsed(now: float = cases.NOW, **changes: Any) -> Any:
        return ticket.parse_ticket(ticket.seal_ticket(cases.KEY, msgspec.structs.replace(cases.TICKET, **changes)), now)

    peer = ticket.TicketPeer(peer=cases.PEER, addresses=["/ip4/127.0.0.1/tcp/1"])
    parsed(peers=[peer] * limits.MAX_TICKET_PEERS)
    with pytest.raises(BadInput, match="expired"):
        parsed(cases.TICKET.expires + limits.CLOCK_TOLERANCE + 1)
    latest = cases.NOW + limits.TICKET_LIFETIME + limits.CLOCK_TOLERANCE
    parsed(expires=latest)
    wrong: list[dict[str, Any]] = [
        {"expires": latest + 1},
        {"peers": [peer] * (limits.MAX_TICKET_PEERS + 1)}, {"peers": []}, {"swarm": b"short"}, {"trusts": ["nobody"]},
        {"peers": [ticket.TicketPeer(peer="nobody", addresses=[])]}, {"peers": [ticket.TicketPeer(peer=cases.PEER, addresses=["a"] * 17)]},
        {"peers": [ticket.TicketPeer(peer=cases.PEER, addresses=["a" * limits.MAX_TICKET])]},
    ]  # fmt: skip
    for changes in wrong:
        with pytest.raises(BadInput, match=r"ticket|PeerID"):
            parsed(**changes)
    for text in ("", "mft1", "hello", "mft1" + "a" * limits.MAX_TICKET):
        with pytest.raises(BadInput):
            ticket.parse_ticket(text, cases.NOW)


def test_encodings_one_past() -> None:
    good, segment = cases.ENCODING, cases.ENCODING.segments[0]

    def checked(**changes: Any) -> None:
        encoding.check_encoding(msgspec.structs.replace(good, **changes))

    checked(n=3, roots=[cases.ID] * limits.MAX_SHARDS)
    tiny = encoding.Segment(1, 17, cases.ID)
    wrong: list[dict[str, Any]] = [
        {"k": 0}, {"k": 4}, {"n": 4}, {"roots": [cases.ID] * (limits.MAX_SHARDS + 1)}, {"scheme": "s2"}, {"compression": "gzip"},
        {"group": b"x"}, {"roots": [b"x"] * 3}, {"length": limits.MAX_GROUP + 1}, {"length": 1}, {"segments": []},
        {"segments": [tiny] * (limits.MAX_SEGMENTS + 1)}, {"segments": [segment, encoding.Segment(100, 16, cases.ID)]},
        {"segments": [segment, encoding.Segment(100, limits.coded_limit(100) + 1, cases.ID)]},
        {"segments": [segment, encoding.Segment(100, 116, b"x")]}, {"segments": [encoding.Segment(100, 116, cases.ID), segment]},
    ]  # fmt: skip
    for changes in wrong:
        with pytest.raises(BadInput):
            checked(**changes)


@given(st.binary(max_size=3 * 70_000).map(lambda seed: seed * 7))
@settings(max_examples=20)
def test_roots_pin_length_and_leaves(shard: bytes) -> None:
    leaves = encoding.leaf_digests(shard)
    assert len(leaves) == encoding.leaf_count(len(shard))
    root = encoding.shard_root(len(shard), leaves)
    assert root == encoding.shard_root(len(shard), b"".join(leaves))
    assert root != encoding.shard_root(len(shard) + 1, leaves)


def test_tokens_of_one_frame_are_few() -> None:
    most = limits.MAX_DRAFTED
    for kind, fits in (("token", most + 1), ("guess", most)):
        head = messages.StepHead(session=bytes(16), epoch=0, position=5, kind=kind)
        assert len(messages.parse_step(messages.step_frame(head, bytes(4 * fits)))[1]) == 4 * fits
        for count in (0, fits + 1):
            with pytest.raises(BadInput):
                messages.parse_step(messages.step_frame(head, bytes(4 * count)))
    for guessed in (-1, most + 1):
        with pytest.raises(BadInput):
            messages.parse_step(messages.step_frame(msgspec.structs.replace(cases.HIDDEN, guessed=guessed), bytes(16)))


def test_steps_with_wrong_shapes_are_refused() -> None:
    def parsed(raw: int, **changes: Any) -> None:
        messages.parse_step(messages.step_frame(msgspec.structs.replace(cases.HIDDEN, **changes), bytes(raw)))

    parsed(16)
    parsed(32, dtype="fp32")
    for raw, changes in [(17, {}), (16, {"shape": [4]}), (16, {"shape": [0, 4]}), (16, {"dtype": "int8"}), (16, {"kind": "x"}),
                         (16, {"session": b"x"}), (16, {"position": -1}), (16, {"epoch": -1}),
                         (7, {"kind": "token"}), (7, {"kind": "tokens"}),
                         (0, {"shape": [(1 << 20) + 1, 1]})]:  # fmt: skip
        with pytest.raises(BadInput):
            parsed(raw, **changes)  # type: ignore[arg-type]
    scores: dict[str, Any] = {"kind": "scores", "shape": [2, 1]}
    parsed(16, **scores)
    for raw, changes in [(15, {}), (24, {}), (16, {"shape": [2]}), (16, {"shape": None}), (0, {"shape": [0, 1]}), (16, {"shape": [-2, -1]}),
                         (8 * (limits.MAX_ARRAY + 1), {"shape": [limits.MAX_ARRAY + 1, 1]}),
                         (8 * (limits.MAX_LOGPROBS + 2), {"shape": [1, limits.MAX_LOGPROBS + 2]})]:  # fmt: skip
        with pytest.raises(BadInput):
            parsed(raw, **scores | changes)


def test_times_of_too_many_stages_are_refused() -> None:
    def parsed(spent: list[int]) -> list[int] | None:
        head = messages.StepHead(session=bytes(16), epoch=0, position=5, kind="cut", spent=spent)
        return messages.parse_step(messages.step_frame(head, b""))[0].spent

    for right in ([], [0, -1], [(1 << 31) - 1] * 2 * limits.MAX_TIMED_STAGES):
        assert parsed(right) == right
    for wrong in ([1], [0, -2], [1 << 31, 0], [0] * 2 * (limits.MAX_TIMED_STAGES + 1)):
        with pytest.raises(BadInput, match="times of stages"):
            parsed(wrong)


def test_refusals_arrive_as_their_own_class() -> None:
    with pytest.raises(NotFound, match="no such") as caught:
        messages.parse_reply(messages.refusal_frame(NotFound("no such", details={"candidates": ["a"]})), messages.BlobHead, "x")
    assert caught.value.details == {"candidates": ["a"]}
    assert isinstance(error_from_wire(Conflict("x").to_wire()), Conflict)
    assert type(error_from_wire({"code": "from the future"})) is MfError
    assert messages.parse_reply(messages.reply_frame(cases.MESSAGES["BlobHead"]), messages.BlobHead, "x") == cases.MESSAGES["BlobHead"]


@pytest.mark.parametrize(
    ("field", "most"), [("size", (1 << 63) - 1), ("parameters", (1 << 63) - 1), ("created", limits.LATEST), ("updated", limits.LATEST)]
)
def test_a_cards_figures_fit_calendars_and_indexes(field: str, most: int) -> None:
    """A size that no database takes, or a time that no calendar has, would break the list of everybody's models."""

    def back(value: int) -> object:
        data = records.seal_record(cases.KEY, msgspec.structs.replace(cases.CARD, **{field: value}))
        return getattr(records.open_record(data, records.Card, cases.NOW)[1], field)

    assert back(most) == most
    for wrong in (most + 1, -1):
        with pytest.raises(BadInput, match="out of range"):
            back(wrong)
