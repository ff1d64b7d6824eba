"""One example of everything that has bytes on the wire, made from the key whose seed is bytes 0 to 31.

`python -m tests.protocol.vector_cases` writes tests/vectors/*.json again: do so only when a format is meant to change.
"""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from erasure import cipher
from node.model_folder import scan
from node.model_manifest import build_manifest
from protocol import audits, encoding, grants, messages, prints, private, records, stage_evidence, ticket, tokens
from protocol.bundles import bundle
from protocol.errors import NotFound
from protocol.framing import encode_varint, frame, pack
from protocol.grouping import SourceTensor, files_group_id, group_id, group_model
from protocol.ids import ModelId, digest, encoding_text, fingerprint, model_text, peer_from_public, public_from_peer
from protocol.manifest import Manifest, Summary, manifest_bytes, model_id, parse_manifest
from protocol.signing import peer_of, sign_bytes

VECTORS = Path(__file__).parent.parent / "vectors"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PEER = peer_of(KEY)
NOW = 1_800_000_000
ID = bytes(range(32, 64))
NONCE = bytes(range(16))

SUMMARY = Summary(
    model_type="llama", architecture="LlamaForCausalLM", layers=2, hidden=8, heads=2, vocabulary=16, dtype="bfloat16", tied=False
)
NODE = records.NodeRecord(
    sequence=7, expires=NOW + 3600, boot=NONCE, version="0.1.0", addresses=["/ip4/127.0.0.1/tcp/4840"], transfer=["127.0.0.1:4841"],
    tls=ID, lend="both", storage_free=20_000_000_000, memory=1 << 31,
)  # fmt: skip
PLACED = msgspec.structs.replace(NODE, region="eu-west", storage=40_000_000_000, coordinate=[-12_000, 34_500, 1_200, 87_000])
HOLDING = records.Holding(sequence=8, expires=NOW + 10_800, model=ID, held=[records.Held(0, ID, [1, 5])], full=[2])
REPAIRING = records.Holding(
    sequence=9, expires=NOW + 10_800, model=ID, held=[records.Held(0, ID, [1])], full=[], repairs=[records.Repairing(ID, NOW + 600)]
)
SERVING = records.Holding(
    sequence=10, expires=NOW + 10_800, model=ID, held=[], full=[],
    serves=[records.Serving(0, 15, "bf16", True, 850), records.Serving(15, 30, "bf16", False)],
)  # fmt: skip
CARD = records.Card(
    sequence=9, expires=NOW + 86_400, label="alice", name="tiny", version="1", model=ID, size=1000, parameters=400, created=NOW,
    summary=SUMMARY, license="apache-2.0",
)  # fmt: skip
CHANGED_CARD = msgspec.structs.replace(CARD, description="better words", updated=NOW + 60)
REVOCATIONS = records.Revocations(sequence=10, expires=NOW + 86_400, revoked=[records.Revoked(NONCE, NOW + 3600)], before=NOW - 60)
HOLDER = Ed25519PrivateKey.from_private_bytes(bytes(range(64, 96)))
KEY_LINK = tokens.Link(
    id=NONCE, account=ID, scopes=["inference", "models:read"], issued=NOW, expires=NOW + 86_400,
    holder=public_from_peer(peer_of(HOLDER)), name="ann", tier="free",
)  # fmt: skip
TOKEN_LINK = tokens.Link(id=NONCE[::-1], account=ID, scopes=["inference"], issued=NOW, expires=NOW + 3600, audience=PEER)
GRANT = grants.Grant(verb="get", client=PEER, server=PEER, encoding=ID, shards=[0, 255], max_bytes=1 << 20, nonce=NONCE, issued=NOW)
TICKET = ticket.Ticket(
    peers=[ticket.TicketPeer(peer=PEER, addresses=["/ip4/127.0.0.1/tcp/4840"])], trusts=[PEER], expires=NOW + 86_400, swarm=ID
)
ENCODING = encoding.Encoding(
    group=ID, scheme="s1", compression="planes2-zstd", k=2, n=3, length=524_324,
    segments=[encoding.Segment(524_224, 400_001, ID), encoding.Segment(100, 116, ID)], roots=[ID, ID, ID],
)  # fmt: skip
SAMPLING = messages.Sampling(temperature=0.5, seed=3)
MESSAGES: dict[str, messages.Record] = {
    "GrantRequest": messages.GrantRequest(verb="put", encoding=ID, shards=[1], model=ID, envelope=b"e", bytes=65_536),
    "GrantReply": messages.GrantReply(grant=b"g", urls=["https://127.0.0.1:4841"], tls=ID, held=[0]),
    "BlobRequest": messages.BlobRequest(ids=[ID]),
    "BlobHead": messages.BlobHead(id=ID, length=12),
    "OpenSession": messages.OpenSession(
        session=NONCE, epoch=1, model=ID, stages=[messages.StageSpec(PEER, 0, 2)], index=0, entry=PEER, tokens_max=64, new_max=32,
        stop_tokens=[2], sampling=SAMPLING,
    ),
    "OpenSession that scores": messages.OpenSession(
        session=NONCE, epoch=0, model=ID, stages=[messages.StageSpec(PEER, 0, 2)], index=0, entry=PEER, tokens_max=64, new_max=32,
        stop_tokens=[2], sampling=messages.Sampling(logprobs=2), score=[1, 300],
    ),
    "OpenSession of an audit": messages.OpenSession(
        session=NONCE, epoch=0, model=ID, stages=[messages.StageSpec(PEER, 0, 2)], index=0, entry=PEER, tokens_max=64, new_max=1,
        stop_tokens=[], sampling=SAMPLING, prints=NONCE, check=messages.Checked(5, [1, 300]),
    ),
    "OpenSession that waits": messages.OpenSession(
        session=NONCE, epoch=2, model=ID, stages=[messages.StageSpec(PEER, 0, 2)], index=0, entry=PEER, tokens_max=64, new_max=32,
        stop_tokens=[2], sampling=SAMPLING, wait=60.0, begun=True,
    ),
    "OpenSession that goes on from another": messages.OpenSession(
        session=NONCE, epoch=0, model=ID, stages=[messages.StageSpec(PEER, 0, 2)], index=0, entry=PEER, tokens_max=64, new_max=32,
        stop_tokens=[2], sampling=SAMPLING, keep=True, after=messages.Earlier(ID[:16], 3), known=[1, 2, 300],
    ),
    "AuditRequest": messages.AuditRequest(verb="walk", nonce=ID, targets=[messages.AuditTarget(ID, 3)], steps=32),
    "AuditReply": messages.AuditReply(signed=b"s"),
    "SessionEvent": messages.SessionEvent(kind="ready", timings={"load": 1.5}),
    "SessionEvent of a stage that has some": messages.SessionEvent(kind="ready", timings={}, position=3),
    "SessionEvent with prints": messages.SessionEvent(kind="alive", timings={"layer": 0.5}, prints=[b"p"]),
    "SessionEvent that blames": messages.SessionEvent(kind="failed", error={"code": "peer_fault"}, blames=PEER),
    "SessionEvent alive": messages.SessionEvent(kind="alive", position=7, busy=True, pace=[0.25, 0.125]),
    "SessionEvent of bytes moved": messages.SessionEvent(kind="alive", position=7, moved=[4_096, 70_000]),
    "SessionEvent in line": messages.SessionEvent(kind="loading", position=0, line=3),
    "Reroute": messages.Reroute(epoch=2, stages=[messages.StageSpec(PEER, 0, 2)], index=0, position=9, resume=0),
    "DirectRequest": messages.DirectRequest(),
    "DirectReply": messages.DirectReply(port=4842, name=NONCE, key=ID),
    "DirectReply for bundles": messages.DirectReply(port=4842, name=NONCE, key=ID, bundle=256),
}  # fmt: skip
PRINTS = prints.Prints(
    session=NONCE, model=ID, precision="bf16", first=0, end=15, position=7, count=2, inputs=bytes(64), outputs=ID + ID, gaps=[0.5, -1.0]
)
PRINTS_GIVEN = msgspec.structs.replace(PRINTS, gaps=None, given=ID + bytes(32))
EVIDENCE = stage_evidence.StageEvidence(
    at=NOW, model=ID, precision="bf16", first=0, end=15, parting="outputs", why="other rows", until=41, rows=40, apart=30, worst=0.5,
    wrong=PEER,
    said=[
        stage_evidence.Said(role="session", peer=PEER, statements=[prints.seal_prints(KEY, PRINTS)]),
        stage_evidence.Said(role="again", peer=peer_of(HOLDER), statements=[prints.seal_prints(HOLDER, PRINTS)]),
    ],
)  # fmt: skip
AUDIT_TARGETS = [messages.AuditTarget(ID, 3), messages.AuditTarget(NONCE + NONCE, 0)]
HIDDEN = messages.StepHead(session=NONCE, epoch=1, position=5, kind="hidden", dtype="bf16", shape=[2, 4], stage=1)
TOKENS = messages.StepHead(session=NONCE, epoch=1, position=5, kind="tokens", stage=0)
CUT = messages.StepHead(session=NONCE, epoch=1, position=256, kind="cut")
TIMED = messages.StepHead(session=NONCE, epoch=1, position=9, kind="token", spent=[1500, 20, -1, -1, 900, 0])
SCORES = messages.StepHead(session=NONCE, epoch=1, position=1, kind="scores", shape=[2, 1])
MORE = messages.StepHead(session=NONCE, epoch=1, position=0, kind="tokens", stage=0, more=True)


def records_vectors() -> dict[str, Any]:
    sealed_encoding = encoding.seal_encoding(KEY, ENCODING)
    leaves = encoding.leaf_digests(bytes(70_000))
    window = ID + struct.pack(">HIH", 3, 16, 2) + digest(b"".join(leaves))
    return {
        "peer": PEER,
        "fingerprint": fingerprint(bytes(32)),
        "model text": model_text(ModelId(ID)),
        "NodeRecord": records.seal_record(KEY, NODE).hex(),
        "NodeRecord with a place": records.seal_record(KEY, PLACED).hex(),
        "Holding": records.seal_record(KEY, HOLDING).hex(),
        "Holding that repairs": records.seal_record(KEY, REPAIRING).hex(),
        "Holding that serves": records.seal_record(KEY, SERVING).hex(),
        "Card": records.seal_record(KEY, CARD).hex(),
        "Card that was changed": records.seal_record(KEY, CHANGED_CARD).hex(),
        "Prints": prints.seal_prints(KEY, PRINTS).hex(),
        "Prints with tokens given": prints.seal_prints(KEY, PRINTS_GIVEN).hex(),
        "StageEvidence": stage_evidence.seal_evidence(KEY, EVIDENCE).hex(),
        "token print": prints.token_print(NONCE, 7, 300).hex(),
        "Grant": grants.seal_grant(KEY, GRANT).hex(),
        "Ticket": ticket.seal_ticket(KEY, TICKET),
        "Encoding": sealed_encoding.hex(),
        "encoding text": encoding_text(encoding.encoding_id(sealed_encoding)),
        "root of 70,000 zeros": encoding.shard_root(70_000, leaves).hex(),
        "window signature": sign_bytes(KEY, "mf/window/1", window).hex(),
        "peer of key zero": peer_from_public(bytes(32)),
    }


def token_vectors() -> dict[str, Any]:
    first = tokens.seal_link(KEY, KEY_LINK)
    return {
        "Revocations": records.seal_record(KEY, REVOCATIONS).hex(),
        "Link": first.hex(),
        "token": tokens.token_text([first, tokens.narrow(HOLDER, first, TOKEN_LINK)]),
        "signed request": tokens.sign_request(HOLDER, PEER, "post", "/v1/chat/completions?x=1", b"{}", NOW, NONCE),
        "signed request abroad": tokens.sign_request(HOLDER, PEER, "GET", "/v1/models", b"", NOW, NONCE, [first]),
    }


def frames_vectors() -> dict[str, Any]:
    bodies = {name: pack(message).hex() for name, message in MESSAGES.items()}
    return bodies | {
        "reply": messages.reply_frame(MESSAGES["BlobHead"]).hex(),
        "refusal": messages.refusal_frame(NotFound("no such model", hint="try another")).hex(),
        "step hidden": messages.step_frame(HIDDEN, bytes(range(16))).hex(),
        "step tokens": messages.step_frame(TOKENS, struct.pack("<3i", 1, 2, 300)).hex(),
        "step cut": messages.step_frame(CUT, b"").hex(),
        "step tokens, more to come": messages.step_frame(MORE, struct.pack("<3i", 1, 2, 300)).hex(),
        "step timed": messages.step_frame(TIMED, struct.pack("<i", 300)).hex(),
        "step scores": messages.step_frame(SCORES, struct.pack("<ifif", 2, -0.5, 300, -1.25)).hex(),
        "bundle": bundle([messages.step_frame(HIDDEN, bytes(range(16))), messages.step_frame(CUT, b"")]).hex(),
        "frame of 3 bytes": frame(b"abc").hex(),
        "varint 300": encode_varint(300).hex(),
    }


_REAL_NAMES = """
lm_head.weight model.embed_tokens.weight model.layers.0.self_attn.q_proj.weight model.layers.10.mlp.up_proj.weight
model.layers.2.mlp.experts.7.w1.weight model.norm.weight model.rotary_emb.inv_freq
transformer.wte.weight transformer.wpe.weight transformer.h.0.attn.c_attn.weight transformer.ln_f.weight
gpt_neox.embed_in.weight gpt_neox.layers.1.attention.dense.weight gpt_neox.final_layer_norm.weight embed_out.weight
transformer.word_embeddings_layernorm.weight embeddings.LayerNorm.weight encoder.layer.3.output.dense.weight pooler.dense.weight
encoder.block.2.layer.0.SelfAttention.q.weight decoder.block.1.layer.2.DenseReluDense.wi.weight shared.weight
model.decoder.layers.4.fc1.weight model.vision_tower.encoder.layers.5.mlp.fc1.weight model.vision_tower.post_layernorm.weight
model.visual.blocks.6.attn.proj.weight model.language_model.layers.7.mlp.gate.weight backbone.blocks.0.norm.weight
model.embedding_norm.weight
"""
NAMES = _REAL_NAMES.split()


_GGUF_NAMES = """
token_embd.weight output.weight output_norm.weight rope_freqs.weight blk.0.attn_q.weight blk.11.ffn_gate_exps.weight
enc.blk.3.attn_k.weight enc.output_norm.weight dec.blk.2.cross_attn_q.weight v.blk.5.ffn_up.weight v.patch_embd.weight mm.0.weight
"""
GGUF_NAMES = _GGUF_NAMES.split()


def rows(name: str, offset: int, count: int, content: bytes) -> SourceTensor:
    return SourceTensor(name, "U8", (count, 100), 0, offset, count * 100, digest(content))


TABLE = [
    rows("lm_head.weight", 64, 25, b"e"),
    rows("model.embed_tokens.weight", 2564, 25, b"e"),
    rows("model.layers.0.a.weight", 5064, 6, b"a"),
    rows("model.layers.0.b.weight", 5664, 5, b"b"),
    rows("model.norm.weight", 6200, 1, b"n"),
]
"""Tied weights, a gap of 36 bytes, a layer over the limit, a tensor over the limit."""


def grouping_vectors() -> dict[str, Any]:
    """Groups by name; and a small model cut at 1,000 bytes, with tied weights and a gap."""
    tensors = [SourceTensor(name, "U8", (1,), 0, 100 + at, 1, digest(name.encode())) for at, name in enumerate(NAMES)]
    grouping = group_model([100 + len(NAMES)], tensors)
    cut = group_model([7600, 3], TABLE, limit=1000)
    short = [SourceTensor(name, "Q8_0", (32,), 0, 100 + 34 * at, 34, digest(name.encode())) for at, name in enumerate(GGUF_NAMES)]
    gguf = group_model([100 + 34 * len(short)], short, rule="g2")
    return {
        "names": {name: grouping.groups[cuts[0].group].name for name, cuts in zip(NAMES, grouping.cuts, strict=True)},
        "gguf names": {name: gguf.groups[cuts[0].group].name for name, cuts in zip(GGUF_NAMES, gguf.cuts, strict=True)},
        "order": [group.name for group in grouping.groups],
        "cut": [
            {
                "name": group.name,
                "length": group.length,
                "id": known.hex() if (known := group.known_id()) else None,
                "spans": [[s.file, s.offset, s.length, s.at] for s in group.spans or ()],
            }
            for group in cut.groups
        ],
        "cuts": {t.name: [[c.group, c.at, c.length] for c in cuts] for t, cuts in zip(TABLE, cut.cuts, strict=True)},
        "group id": group_id([("BF16", (2, 3), ID)]).hex(),
        "files group id": files_group_id(10, ID).hex(),
    }


def audit_vectors() -> dict[str, Any]:
    """A walk over two shards, of 200,000 zeros and of 70,000 bytes of 01, with a nonce of 20 … 3f."""
    shards = [bytes(200_000), b"\x01" * 70_000]
    walk = audits.Walk(ID, [len(shard) for shard in shards], 6)
    tags = walk.go(lambda target, leaf: shards[target][leaf * 65_536 : (leaf + 1) * 65_536])
    said = audits.AuditTags(auditor=PEER, nonce=ID, targets=AUDIT_TARGETS, tags=tags)
    sent = audits.AuditLeaves(auditor=PEER, nonce=ID, shown=[0, 5], roots=ID + ID, digests=ID + ID)
    return {
        "places": [list(walk.where(step, tags)) for step in range(6)],
        "tag 2": tags[64:96].hex(),
        "AuditTags": audits.seal_tags(KEY, said).hex(),
        "AuditLeaves": audits.seal_leaves(KEY, sent).hex(),
    }


def write_small_model(path: Path) -> None:
    """Two layers of one small tensor each, every byte by formula, and a gap at the end."""
    names = ["lm_head.weight", "model.embed_tokens.weight", "model.layers.0.w", "model.layers.1.w", "model.norm.weight"]
    header: dict[str, Any] = {}
    for at, name in enumerate(names):
        header[name] = {"dtype": "BF16", "shape": [4, 5], "data_offsets": [40 * at, 40 * at + 40]}
    text = json.dumps(header).encode()
    data = bytes((at * 7 + 1) % 256 for at in range(200))
    (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data + b"gap")
    (path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 5, "vocab_size": 4}')


def write_small_gguf(path: Path) -> None:
    """Two layers, every byte by formula."""

    def text(words: str) -> bytes:
        return struct.pack("<Q", len(words)) + words.encode()

    values = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    values += text("llama.block_count") + struct.pack("<II", 4, 2)
    names = ["token_embd.weight", "blk.0.w", "blk.1.w", "output_norm.weight"]
    table = b"".join(text(name) + struct.pack("<IQQIQ", 2, 32, 2, 8, 96 * at) for at, name in enumerate(names))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(names), 2) + values + table
    data = bytes((at * 7 + 1) % 256 for at in range(96 * len(names)))
    path.write_bytes(head + bytes(-len(head) % 32) + data)


def manifest_vectors() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        write_small_gguf(Path(folder) / "small.gguf")
        kept, gguf = build_manifest(scan(Path(folder) / "small.gguf"), lambda done, total: None)
        (Path(folder) / "small.gguf").unlink()
        write_small_model(Path(folder))
        manifest, data = build_manifest(scan(folder), lambda done, total: None)
    return {
        "gguf manifest": gguf.hex(),
        "gguf model text": model_text(model_id(gguf)),
        "gguf groups": [[g.name, g.id.hex()] for g in kept.groups],
        "manifest": data.hex(),
        "model text": model_text(model_id(data)),
        "groups": [[g.name, g.id.hex()] for g in manifest.groups],
    }


SECRET = bytes(range(32))
WRAPPED = bytes.fromhex(
    "c295ac53181eae3a190eb274c4b1b79e51f8ca0807f72590ff5efbeb838d1975a514c70fd9694d01"
    "662961fd7fc0f5aa4c2b3bcb815b030e262b5b97d9be13e5eaabd8802d5c1e2302fd9fcf1b755b1d"
)
"""SECRET for PEER's key, the model ID and the publisher PEER; wraps are random, so this one is kept."""

SAID = private.Said(
    name="demo",
    version="1",
    label="ann",
    size=5_000,
    parameters=1_000,
    created=NOW,
    summary=Summary(model_type="llama"),
    readers=[private.Reader(public_from_peer(PEER), "owner")],
    nodes=[PEER],
)
READERS = records.Readers(sequence=5, expires=NOW + 3_600, model=ID, wraps=[WRAPPED], sealed=private.seal_said(SECRET, SAID))


def example_manifest() -> Manifest:
    return parse_manifest(bytes.fromhex(json.loads((VECTORS / "manifest.json").read_text())["manifest"]))


def private_vectors() -> dict[str, Any]:
    cover = private.cover_of(SECRET, manifest_bytes(example_manifest()), PEER)
    return {
        "exchange key": private.exchange_key(public_from_peer(PEER)).public_bytes_raw().hex(),
        "group id": private.group_id(SECRET, 3, ID).hex(),
        "segment name": cipher.name_of(SECRET, "p1", ID, 5, bytes(range(64))).hex(),
        "segment key and nonce": b"".join(cipher.derive(SECRET, "p1", 5, ID)).hex(),
        "cover": manifest_bytes(cover).hex(),
        "cover model text": model_text(model_id(manifest_bytes(cover))),
        "wrap": WRAPPED.hex(),
        "Readers": records.seal_record(KEY, READERS).hex(),
    }


ALL = {
    "records.json": records_vectors,
    "frames.json": frames_vectors,
    "grouping.json": grouping_vectors,
    "manifest.json": manifest_vectors,
    "audit.json": audit_vectors,
    "tokens.json": token_vectors,
    "private.json": private_vectors,
}

if __name__ == "__main__":
    VECTORS.mkdir(exist_ok=True)
    for name, make in ALL.items():
        (VECTORS / name).write_text(json.dumps(make(), indent=1) + "\n")
