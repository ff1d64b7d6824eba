"""XML where it is asked for: what JSON says, whatever characters are in it; never read."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.http.xml import to_xml, wants_xml
from tests.node.http.conftest import Site, Start
from tests.support.fake_gateway import MODEL, FakeGateway

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
XML = {"Accept": "application/xml"}
DOCTYPE = "<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>"
HOSTILE = ["<script>", "&lol;", "]]>", DOCTYPE, "\x00\x1b[31m", "\ud800", "\u202e", "a'\"b", "\ufffe"]


@given(PLAIN)
def test_anything_is_well_formed(value: Any) -> None:
    ElementTree.fromstring(to_xml(value))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_strings_are_text(text: str) -> None:
    root = ElementTree.fromstring(to_xml({"a": text, text: 1}))
    assert root[0].tag == "a"
    assert len(root[0]) == 0
    assert (root[1].tag, root[1].text) == ("field", "1") or root[1].tag == text


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [("application/xml", True), ("text/xml;q=0.5", True), ("*/*", False), ("", False), ("application/json", False),
     ("application/xml;q=0.1, application/json", False), ("application/json;q=0.1, application/xml;q=x", True)],
)  # fmt: skip
def test_who_wants_it(accept: str, wanted: bool) -> None:
    assert wants_xml(accept) is wanted


async def test_models_and_errors_as_xml(start: Start) -> None:
    site = await start(FakeGateway())
    reply, raw = await site.call("GET", "/api/v1/models/ann%2Fdemo@1", headers=XML)
    assert reply.content_type == "application/xml"
    root = ElementTree.fromstring(raw)
    assert (root.findtext("status"), root.findtext("data/id")) == ("success", MODEL.model_id)
    reply, raw = await site.call("GET", "/api/v1/models/nobody", headers=XML)
    assert reply.status == 404
    assert ElementTree.fromstring(raw).findtext("error/code") == "not_found"
    reply, _ = await site.call("GET", "/v1/models", headers=XML)
    assert reply.content_type == "application/json"


async def test_xml_is_not_read(site: Site) -> None:
    bomb = b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"
    reply, _ = await site.call("POST", "/api/v1/models/ann%2Fdemo@1/inference", data=bomb, headers={"Content-Type": "application/xml"})
    assert reply.status == 400
    assert not site.gateway.asked
