"""docs/PROTOCOL.md says what the code does: limits, fields, domains, protocols, vectors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from protocol import audits, dtypes, encoding, grants, limits, manifest, messages, records, signing, ticket, tokens, windows
from protocol.prints import PRINTS_DOMAIN
from protocol.stage_evidence import EVIDENCE_DOMAIN, StageEvidence
from tests.protocol.vector_cases import VECTORS

TEXT = (Path(__file__).parents[2] / "docs" / "PROTOCOL.md").read_text()


def test_limits_table_is_the_code() -> None:
    stated = {name: int(value) for name, value in re.findall(r"^\| `([A-Z_]+)` \| (\d+) \|", TEXT, re.M)}
    units = {"KIB", "MIB", "GIB"}
    assert stated == {name: value for name, value in vars(limits).items() if name.isupper() and name not in units}


@pytest.mark.parametrize(
    "kind",
    [
        records.NodeRecord,
        records.Holding,
        records.Card,
        grants.Grant,
        ticket.Ticket,
        encoding.Encoding,
        audits.AuditTags,
        audits.AuditLeaves,
        StageEvidence,
        records.Revocations,
        records.Readers,
        tokens.Link,
        tokens.SignedRequest,
    ],
)
def test_signed_records_list_every_field(kind: type[msgspec.Struct]) -> None:
    section = TEXT.split(f"### {kind.__name__}\n")[1].split("\n#")[0]
    first = {field for row in re.findall(r"^\| (`.*?) \|", section, re.M) for field in re.findall(r"`(\w+)`", row)}
    assert first == set(kind.__struct_fields__)


TABLED: list[Any] = [
    manifest.Manifest, manifest.FileEntry, manifest.TensorEntry, manifest.Cut, manifest.GroupEntry, manifest.Span, manifest.Summary,
    messages.GrantRequest, messages.GrantAsk, messages.GrantReply, messages.BlobRequest, messages.BlobHead, messages.OpenSession,
    messages.StageSpec, messages.AuditRequest, messages.AuditTarget, messages.AuditReply,
    messages.Sampling, messages.SessionEvent, messages.StepHead,
]  # fmt: skip


@pytest.mark.parametrize("kind", TABLED)
def test_other_structs_list_every_field(kind: type[msgspec.Struct]) -> None:
    rows = re.findall(rf"^\| {kind.__name__} \| (.*) \|$", TEXT, re.M)
    assert len(rows) == 1
    assert set(kind.__struct_fields__) <= set(re.findall(r"`(\w+)`", rows[0]))


def test_domains_protocols_and_envelope_stand_there() -> None:
    domains = [
        records.NODE_DOMAIN,
        records.HOLDING_DOMAIN,
        records.CARD_DOMAIN,
        grants.DOMAIN,
        ticket.DOMAIN,
        encoding.DOMAIN,
        windows.DOMAIN,
        audits.TAGS_DOMAIN,
        audits.LEAVES_DOMAIN,
        PRINTS_DOMAIN,
        EVIDENCE_DOMAIN,
        records.REVOCATIONS_DOMAIN,
        records.READERS_DOMAIN,
        tokens.TOKEN_DOMAIN,
        tokens.REQUEST_DOMAIN,
    ]
    protocols = [value for name, value in vars(messages).items() if name.endswith("_PROTOCOL")]
    for word in (
        *domains,
        *protocols,
        *signing.Envelope.__struct_fields__,
        *encoding.SCHEMES,
        *manifest.RULES,
        manifest.RULE_PRIVATE,
        *encoding.COMPRESSIONS,
    ):
        assert f"`{word}`" in TEXT, word


def test_vectors_named_are_the_pinned_ones() -> None:
    rows = re.findall(r"^\| `(\w+\.json)` `([^`]+)`.* \| `([^`]+)` \|$", TEXT, re.M)
    assert len(rows) >= 8
    for file, name, value in rows:
        assert json.loads((VECTORS / file).read_text())[name] == value
    assert json.loads((VECTORS / "records.json").read_text())["peer"] in TEXT


def test_blocks_table_is_the_code() -> None:
    stated = {name: (int(elements), int(size)) for name, elements, size in re.findall(r"\| `([A-Z0-9_]+)` \| (\d+), (\d+) (?=\|)", TEXT)}
    assert stated == dtypes.BLOCKS
