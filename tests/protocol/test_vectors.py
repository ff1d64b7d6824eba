"""Golden vectors: the bytes of every record, message, frame, id and group stay what they are."""

from __future__ import annotations

import json
import struct

import pytest

from protocol import encoding, grants, messages, prints, records, stage_evidence, ticket
from protocol.framing import pack, unpack
from protocol.manifest import manifest_bytes, model_id, parse_manifest
from tests.protocol import vector_cases as cases


@pytest.mark.parametrize("name", sorted(cases.ALL))
def test_vectors_are_what_the_code_makes(name: str) -> None:
    pinned = json.loads((cases.VECTORS / name).read_text())
    assert cases.ALL[name]() == pinned


def _pinned(file: str, name: str) -> bytes:
    return bytes.fromhex(json.loads((cases.VECTORS / file).read_text())[name])


def test_pinned_records_are_read_back() -> None:
    for kind, record in ((records.NodeRecord, cases.NODE), (records.Holding, cases.HOLDING), (records.Card, cases.CARD)):
        assert records.open_record(_pinned("records.json", kind.__name__), kind, cases.NOW) == (cases.PEER, record)
    assert records.open_record(_pinned("records.json", "NodeRecord with a place"), records.NodeRecord, cases.NOW)[1] == cases.PLACED
    repairing = _pinned("records.json", "Holding that repairs")
    assert records.open_record(repairing, records.Holding, cases.NOW) == (cases.PEER, cases.REPAIRING)
    serving = _pinned("records.json", "Holding that serves")
    assert records.open_record(serving, records.Holding, cases.NOW) == (cases.PEER, cases.SERVING)
    assert grants.open_grant(_pinned("records.json", "Grant"), cases.PEER, cases.NOW) == cases.GRANT
    assert encoding.parse_encoding(_pinned("records.json", "Encoding")) == (cases.PEER, cases.ENCODING)
    assert prints.open_prints(_pinned("records.json", "Prints")) == (cases.PEER, cases.PRINTS)
    assert prints.open_prints(_pinned("records.json", "Prints with tokens given")) == (cases.PEER, cases.PRINTS_GIVEN)
    assert stage_evidence.open_evidence(_pinned("records.json", "StageEvidence")) == (cases.PEER, cases.EVIDENCE)
    text = json.loads((cases.VECTORS / "records.json").read_text())["Ticket"]
    assert ticket.parse_ticket(text, cases.NOW) == (cases.PEER, cases.TICKET)


@pytest.mark.parametrize("name", sorted(cases.MESSAGES))
def test_pinned_messages_are_read_back(name: str) -> None:
    message = cases.MESSAGES[name]
    assert unpack(_pinned("frames.json", name), type(message), name) == message


def test_pinned_steps_are_read_back() -> None:
    head, raw = messages.parse_step(_pinned("frames.json", "step hidden"))
    assert (head, bytes(raw)) == (cases.HIDDEN, bytes(range(16)))
    head, raw = messages.parse_step(_pinned("frames.json", "step tokens"))
    assert head == cases.TOKENS
    assert messages.parse_step(_pinned("frames.json", "step cut"))[0] == cases.CUT
    assert messages.parse_step(_pinned("frames.json", "step tokens, more to come"))[0] == cases.MORE
    assert list(memoryview(bytes(raw)).cast("i")) == [1, 2, 300]
    assert messages.parse_step(_pinned("frames.json", "step timed"))[0] == cases.TIMED
    head, raw = messages.parse_step(_pinned("frames.json", "step scores"))
    assert (head, list(struct.iter_unpack("<if", raw))) == (cases.SCORES, [(2, -0.5), (300, -1.25)])


def test_pinned_manifest_is_canonical() -> None:
    data = _pinned("manifest.json", "manifest")
    manifest = parse_manifest(data)
    assert manifest_bytes(manifest) == data
    assert [group.name for group in manifest.groups] == ["embed", "layer.0", "layer.1", "head", "files/0"]
    assert len(model_id(data)) == 32


def test_message_names_a_wrong_type() -> None:
    """GrantRequest has a field named `bytes`, which once hid the type from its other fields."""
    from protocol.errors import BadInput

    with pytest.raises(BadInput, match="encoding"):
        unpack(pack({"verb": "get", "encoding": "text", "shards": [1]}), messages.GrantRequest, "grant")
