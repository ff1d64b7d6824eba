"""Every bound of `protocol/limits.py` has a test one past it: here, or where this table says. A new bound without one fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol import limits
from protocol.encoding import Encoding, Segment, check_encoding, segment_plain
from protocol.errors import BadInput
from protocol.framing import FrameReader, encode_varint
from protocol.manifest_check import check_file_name

TESTS = Path(__file__).parents[1]

ELSEWHERE = {
    "LATEST": "protocol/test_codecs.py",
    "MAX_GROUP": "protocol/test_codecs.py",
    "MAX_GROUPS": "protocol/test_manifest_check.py",
    "MAX_SHARDS": "protocol/test_codecs.py",
    "MAX_SEGMENTS": "protocol/test_codecs.py",
    "MAX_BLOB": "node/store/conformance.py",
    "MAX_HEADER": "protocol/test_safetensors_header.py",
    "MAX_TENSORS_PER_FILE": "protocol/test_safetensors_header.py",
    "MAX_TENSORS": "protocol/test_manifest_check.py",
    "MAX_RANK": "protocol/test_safetensors_header.py",
    "MAX_NAME": "protocol/test_safetensors_header.py",
    "MAX_FILES": "protocol/test_manifest_check.py",
    "MAX_LAYERS": "protocol/test_grouping.py",
    "MAX_VOCABULARY": "protocol/test_config_summary.py",
    "MAX_HIDDEN": "protocol/test_config_summary.py",
    "MAX_HEADS": "protocol/test_config_summary.py",
    "MAX_CONTEXT": "protocol/test_config_summary.py",
    "MAX_CONFIG": "protocol/test_config_summary.py",
    "MAX_PROMPT": "node/test_generate.py",
    "MAX_FRAME": "protocol/test_codecs.py",
    "MAX_DEPTH": "protocol/test_codecs.py",
    "MAX_ARRAY": "protocol/test_codecs.py",
    "MAX_MAP": "protocol/test_codecs.py",
    "MAX_TICKET": "protocol/test_codecs.py",
    "MAX_TICKET_PEERS": "protocol/test_codecs.py",
    "MAX_CARD": "protocol/test_codecs.py",
    "MAX_LABEL": "protocol/test_codecs.py",
    "MAX_ADDRESSES": "protocol/test_codecs.py",
    "MAX_ADDRESS": "protocol/test_codecs.py",
    "MAX_GGUF_HEADER": "protocol/test_gguf_header.py",
    "MAX_GGUF_STRINGS": "protocol/test_gguf_header.py",
    "MAX_GGUF_DEPTH": "protocol/test_gguf_header.py",
    "COORDINATE_FARTHEST": "protocol/test_codecs.py",
    "COORDINATE_WORST_ERROR": "protocol/test_codecs.py",
    "MAX_REPAIRS": "protocol/test_codecs.py",
    "MAX_SERVED": "protocol/test_codecs.py",
    "MAX_LAYER_US": "protocol/test_codecs.py",
    "MAX_AUDIT_TARGETS": "protocol/test_audits.py",
    "MAX_AUDIT_STEPS": "protocol/test_audits.py",
    "MAX_AUDIT_SHOWN": "protocol/test_audits.py",
    "MAX_PRINT_ROWS": "protocol/test_prints.py",
    "MAX_PRINTS": "protocol/test_prints.py",
    "MAX_EVIDENCE": "protocol/test_stage_evidence.py",
    "MAX_CHECKED": "node/test_statements.py",
    "NODE_RECORD_LIFETIME": "protocol/test_codecs.py",
    "HOLDING_LIFETIME": "protocol/test_codecs.py",
    "CARD_LIFETIME": "protocol/test_codecs.py",
    "TICKET_LIFETIME": "protocol/test_codecs.py",
    "PROVIDER_LIFETIME": "node/network/test_kad.py",
    "GRANT_OPEN_WITHIN": "protocol/test_codecs.py",
    "CLOCK_TOLERANCE": "protocol/test_codecs.py",
    "MAX_TOKEN_TEXT": "protocol/test_tokens.py",
    "MAX_TOKEN_LINKS": "protocol/test_tokens.py",
    "MAX_TOKEN_MODELS": "protocol/test_tokens.py",
    "TOKEN_LIFETIME": "protocol/test_tokens.py",
    "KEY_LINK_LIFETIME": "protocol/test_tokens.py",
    "SWARM_KEY_LIFETIME": "protocol/test_tokens.py",
    "MAX_REVOCATIONS": "protocol/test_tokens.py",
    "MAX_READERS": "protocol/test_private.py",
    "MAX_READERS_RECORD": "node/swarm/test_books.py",
    "READERS_LIFETIME": "protocol/test_private.py",
    "REVOCATIONS_LIFETIME": "protocol/test_tokens.py",
    "MAX_GRANTS_ASKED": "node/test_grants.py",
    "MAX_SHARDS_ASKED": "node/test_grants.py",
    "MAX_CHAT_TEMPLATE": "runtime/test_text.py",
    "ALIGNMENT": "protocol/test_grouping.py",
    "MAX_LOGPROBS": "protocol/test_sampling_check.py",
    "MAX_LOGIT_BIAS": "protocol/test_sampling_check.py",
    "MAX_GRAMMAR": "protocol/test_sampling_check.py",
    "MAX_DRAFTED": "protocol/test_codecs.py",
    "MAX_BUNDLE": "protocol/test_bundles.py",
    "MAX_TIMED_STAGES": "protocol/test_codecs.py",
}
NO_BOUNDS = {"KIB", "MIB", "GIB", "LEAF", "WINDOW_LEAVES"}
"""Units, and the sizes in which bytes are hashed and signed."""


def encoding(k: int = 1, plain: int = 1000, coded: int = 1016) -> Encoding:
    segments = [Segment(plain, coded, bytes(32))]
    return Encoding(
        group=bytes(32), scheme="s1", compression="raw", k=k, n=k, length=plain, segments=segments, roots=[bytes(32)] * max(k, 1)
    )


def piece(past: int) -> None:
    """A full segment of k pieces; the last of a group may be shorter, none longer."""
    plain = limits.PIECE - 64 + past
    check_encoding(encoding(1, plain, plain + 16))


def segment_most(past: int) -> None:
    plain = segment_plain(256) + past
    assert segment_plain(256) == limits.SEGMENT_MAX - 64
    check_encoding(encoding(256, plain, plain + 16))


def segment_least(past: int) -> None:
    """k = 1 has the smallest; a segment that isn't the last must be full, and a full one is no shorter than this."""
    assert segment_plain(1) >= limits.SEGMENT_MIN
    made = encoding()
    made.segments = [Segment(limits.SEGMENT_MIN - 1 if past else segment_plain(1), limits.SEGMENT_MIN + 500, bytes(32))] * 2
    if not past:
        made.segments = [Segment(segment_plain(1), segment_plain(1) + 16, bytes(32))] * 2
    made.length = sum(segment.plain for segment in made.segments)
    check_encoding(made)


def coded(past: int) -> None:
    check_encoding(encoding(1, 2550, limits.coded_limit(2550) + past))


def zstd_window(past: int) -> None:
    import zstandard

    from erasure.compression import decompress_into

    log = limits.ZSTD_WINDOW.bit_length() - 1
    data = bytes(limits.ZSTD_WINDOW * 4)
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=log + past)
    decompress_into("zstd", zstandard.ZstdCompressor(compression_params=parameters).compress(data), memoryview(bytearray(len(data))))


def file_name(past: int) -> None:
    check_file_name("/".join(["a" * 127] * 8) + "a" * (1 + past))


def activation_frame(past: int) -> None:
    reader = FrameReader(limits.MAX_ACTIVATION_FRAME)
    reader.feed(encode_varint(limits.MAX_ACTIVATION_FRAME + past))
    reader.next_frame()


HERE: dict[str, Callable[[int], Any]] = {
    "PIECE": piece,
    "SEGMENT_MAX": segment_most,
    "SEGMENT_MIN": segment_least,
    "ZSTD_WINDOW": zstd_window,
    "MAX_FILE_NAME": file_name,
    "MAX_ACTIVATION_FRAME": activation_frame,
    "coded_limit": coded,
}


@pytest.mark.parametrize("name", HERE)
def test_at_the_limit_and_one_past_it(name: str) -> None:
    HERE[name](0)
    with pytest.raises(BadInput):
        HERE[name](1)


def test_every_bound_has_its_test() -> None:
    stated = set(re.findall(r"^([A-Z_]+) = ", Path(limits.__file__).read_text(), re.MULTILINE))
    assert stated == (set(HERE) - {"coded_limit"}) | set(ELSEWHERE) | NO_BOUNDS


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_table_is_true(name: str) -> None:
    assert re.search(rf"\blimits\.{name}\b|\b{name}\b", (TESTS / ELSEWHERE[name]).read_text()), f"{ELSEWHERE[name]} says nothing of {name}"
