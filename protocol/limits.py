"""Every bound of the wire in one place. Each has a test one past it, and stands in docs/PROTOCOL.md."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

MAX_SHARDS = 256
"""n_max: shards that one encoding may commit to (1 <= k <= n <= n_max <= 256, GF(2^8))."""

LEAF = 64 * KIB
"""Bytes of a shard hashed together; the last leaf of a shard may be shorter."""

PIECE = 256 * KIB
"""Most bytes of one piece."""

WINDOW_LEAVES = 16
"""Leaves between two of the sender's signatures on the data plane."""

SEGMENT_MIN = 64 * KIB
SEGMENT_MAX = 16 * MIB
"""Plain bytes of a segment, except the last of a group, which may be shorter than SEGMENT_MIN."""

ZSTD_WINDOW = 1 << 20
MAX_GROUP = GIB
MAX_GROUPS = 65_536
MAX_SEGMENTS = 16_384
"""A 1 GiB group in the smallest segments."""

MAX_BLOB = 64 * MIB
MAX_HEADER = 10 * MIB
MAX_GGUF_HEADER = 48 * MIB
"""Tokenizer included."""
MAX_GGUF_STRINGS = 1 << 20
"""Strings in the lists of a GGUF header."""
MAX_GGUF_DEPTH = 4
MAX_TENSORS_PER_FILE = 65_536
MAX_TENSORS = 262_144
MAX_RANK = 8
MAX_NAME = 512
MAX_FILES = 16_384
MAX_FILE_NAME = 1_024
MAX_LAYERS = 4_096
MAX_VOCABULARY = 4_194_304
MAX_HIDDEN = 1 << 20
MAX_HEADS = 65_536
MAX_CONTEXT = 1 << 30
MAX_CONFIG = MIB
"""Bytes of a config.json."""
MAX_CHAT_TEMPLATE = 256 * KIB
MAX_PROMPT = 4 * MIB
"""Bytes of what a reply is asked for, all messages together."""
MAX_LOGPROBS = 20
"""Likeliest tokens told beside each one of a reply."""
MAX_LOGIT_BIAS = 1_024
"""Tokens that one request may bias."""
MAX_GRAMMAR = 64 * KIB
"""Characters of a schema, pattern or grammar that a reply must keep to."""
MAX_DRAFTED = 32
"""Guessed tokens in one step."""
MAX_TIMED_STAGES = 16
"""Stages of a pipeline, the first ones, whose times travel with its steps."""
ALIGNMENT = 64
"""Every tensor begins at a multiple of this in its group."""

MAX_FRAME = MIB
"""Control frames."""
MAX_ACTIVATION_FRAME = 64 * MIB
MAX_BUNDLE = 256
"""Step frames that travel as one."""
MAX_DEPTH = 16
MAX_ARRAY = 65_536
MAX_MAP = 4_096

MAX_TICKET = 2 * KIB
MAX_TICKET_PEERS = 8
LATEST = 253_402_300_799
"""Unix seconds of what a card or readers' record tells: the last second of the year 9999, which every calendar has."""
MAX_CARD = 8 * KIB
MAX_LABEL = 128
"""Characters of a node's version, machine and operator label."""
MAX_ADDRESSES = 16
MAX_ADDRESS = 256

NODE_RECORD_LIFETIME = 3_600
HOLDING_LIFETIME = 3 * 3_600
PROVIDER_LIFETIME = 3 * 3_600
CARD_LIFETIME = 30 * 86_400
TICKET_LIFETIME = 30 * 86_400
GRANT_OPEN_WITHIN = 60
MAX_GRANTS_ASKED = 256
"""Encodings in one request for leave beside the first."""
MAX_SHARDS_ASKED = 1_024
"""Shards in one request for leave, over all its encodings."""
COORDINATE_FARTHEST = 60_000_000
"""Microseconds of round trip: no node's coordinate is farther from the middle in any direction."""
COORDINATE_WORST_ERROR = 1_500_000
"""Millionths: how wrong a node's coordinate may foretell round trips, relative to them."""
MAX_REPAIRS = 64
"""Encodings of a model whose missing shards one node makes anew at once."""
MAX_SERVED = 16
"""Ranges of one model's layers that one node serves at once."""
MAX_LAYER_US = 60_000_000
"""Microseconds a token may be said to take in one layer."""
MAX_AUDIT_TARGETS = 8
"""Shards of one peer in one audit."""
MAX_AUDIT_STEPS = 64
"""Leaves that one audit makes a peer read."""
MAX_AUDIT_SHOWN = 16
"""Leaves that one audit makes a peer send."""
MAX_TOKEN_TEXT = 6 * KIB
"""Characters of a bearer token, and of a signed request's header."""
MAX_TOKEN_LINKS = 4
MAX_TOKEN_MODELS = 16
TOKEN_LIFETIME = 3_600
KEY_LINK_LIFETIME = 86_400
"""Of a home's word for a key, from which the key's holder makes tokens."""
SWARM_KEY_LIFETIME = 30 * 86_400
MAX_REVOCATIONS = 4_096
REVOCATIONS_LIFETIME = 30 * 86_400
MAX_READERS = 256
"""Who may read a private model, decoys included."""
MAX_READERS_RECORD = 64 * KIB
READERS_LIFETIME = 30 * 86_400
MAX_PRINT_ROWS = 256
"""Rows in one signed statement of prints."""
MAX_PRINTS = 64 * KIB
"""Bytes of such a statement."""
MAX_EVIDENCE = MIB
"""Bytes of what is kept of two runs that parted."""
MAX_CHECKED = 65_536
"""Tokens that one audit asks a last stage to check."""
CLOCK_TOLERANCE = 300
"""Seconds; signed times of others may be off by this much."""


def coded_limit(plain: int) -> int:
    """Most bytes a segment of `plain` bytes may take once compressed and sealed."""
    return plain * 256 // 255 + 64
