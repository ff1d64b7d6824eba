"""GGUF files: kept as they are, or dequantised by a child that is shut in; both come back as they were published."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from node.model_folder import scan
from node.model_manifest import build_manifest
from node.publish import PublishRequest
from protocol.errors import BadInput, Unavailable
from protocol.ids import digest
from protocol.layout import check_runnable, layer_count
from protocol.manifest import parse_manifest
from tests.node.verb_fakes import VerbSwarm, quiet, small_model, verb_swarm
from tests.support.gguf_files import HIDDEN, VOCABULARY, safetensors_header, tiny_gguf
from tests.support.synthetic import CHAT_TEMPLATE
from tests.swarm.tools import digests


def ignore(done: int, total: int) -> None:
    pass


def refused(path: Path, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        build_manifest(scan(path), ignore)


@pytest.fixture
async def four(tmp_path: Path) -> AsyncIterator[VerbSwarm]:
    async with verb_swarm(4, tmp_path) as swarm:
        yield swarm


def left_over(scratch: Path) -> list[Path]:
    return list(scratch.glob("import-*"))


def split(path: Path, parts: int) -> list[Path]:
    """The same header and tensors in `parts` files, as gguf-split makes them: here by writing other layers into each."""
    return [tiny_gguf(path.with_name(f"{path.stem}-{number:05}-of-{parts:05}.gguf"), seed=number) for number in range(1, parts + 1)]


def test_layers_are_groups_and_tensors_stay_quantised(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf", layers=3, kind="Q4_0")
    manifest, data = build_manifest(scan(path), ignore)
    assert parse_manifest(data) == manifest
    assert [group.name for group in manifest.groups] == ["embed", "layer.0", "layer.1", "layer.2", "head", "files/0"]
    assert (manifest.rule, layer_count(manifest), manifest.summary.hidden) == ("g2", 3, HIDDEN)
    assert {tensor.dtype for tensor in manifest.tensors} == {"Q4_0", "F32"}
    in_head = {t.name for t in manifest.tensors for cut in t.cuts if manifest.groups[cut.group].name == "head"}
    assert in_head == {"output.weight", "output_norm.weight"}
    whole = path.read_bytes()
    for tensor in manifest.tensors:
        assert tensor.digest == digest(whole[tensor.offset : tensor.offset + tensor.length])
    assert manifest.parameters == sum(math.prod(tensor.shape) for tensor in manifest.tensors)


def test_a_folder_and_a_link_of_the_cache(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "m" / "tiny.gguf") if (tmp_path / "m").mkdir() is None else tmp_path
    (path.parent / "README.md").write_text("words")
    folder = scan(path.parent)
    assert ([found.name for found in folder.files], folder.gguf) == (["README.md", "tiny.gguf"], True)
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    blob = snapshot.parent.parent / "blobs" / "0123"
    blob.parent.mkdir()
    blob.write_bytes(path.read_bytes())
    (snapshot / "tiny.gguf").symlink_to(Path("../../blobs/0123"))
    assert build_manifest(scan(snapshot / "tiny.gguf"), ignore)[1] == build_manifest(scan(path), ignore)[1]
    (tmp_path / "out.gguf").symlink_to(path)
    refused(tmp_path / "out.gguf", "a link out of")


def test_several_models_and_parts(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    tiny_gguf(tmp_path / "two" / "a.gguf")
    tiny_gguf(tmp_path / "two" / "b.gguf")
    refused(tmp_path / "two", "several GGUF models")
    (tmp_path / "parts").mkdir()
    parts = split(tmp_path / "parts" / "m.gguf", 2)
    assert [found.name for found in scan(parts[0]).files] == [part.name for part in parts]
    refused(parts[0], "stands in two files")  # each of these has all tensors
    parts[1].unlink()
    refused(parts[0], "m-00002-of-00002.gguf isn't there")
    refused(tmp_path / "parts", "isn't there")


def test_bad_files_are_refused_by_name_and_rule(tmp_path: Path) -> None:
    whole = tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    for content, match in (
        (whole[:-100], r"bad\.gguf: tensor .* end beyond the file"),
        (whole[:200], r"bad\.gguf: gguf: "),
        (b"GGUF" + b"\xff" * 400, r"bad\.gguf: gguf: version"),
        (b"", r"bad\.gguf: gguf: the file has 0 bytes"),
    ):
        (tmp_path / "bad.gguf").write_bytes(content)
        refused(tmp_path / "bad.gguf", match)
    refused(tmp_path / "absent.gguf", "no such path")


async def test_kept_it_comes_back_bit_for_bit_layer_by_layer_and_isnt_run(four: VerbSwarm, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "tiny.Q8_0.gguf")
    notes: list[dict[str, Any]] = []

    async def notify(event: dict[str, Any]) -> None:
        notes.append(event)

    done = await four.nodes[0].publisher.publish(PublishRequest(path=path, gguf="keep"), notify)
    assert done["name"] == "alice/tiny.Q8_0@1"
    assert any("stored as it is" in event.get("text", "") for event in notes)
    await four.tell()
    reader = four.nodes[3]
    await reader.fetcher.fetch(done["model_id"], tmp_path / "back", quiet)
    assert digests(tmp_path / "back") == {"tiny.Q8_0.gguf": digests(tmp_path)["tiny.Q8_0.gguf"]}
    told = await reader.fetcher.fetch(done["model_id"], tmp_path / "part", quiet, groups=["layer.1"])
    assert {tensor["dtype"] for tensor in told["groups"][0]["tensors"]} == {"Q8_0", "F32"}
    located = next(iter(reader.locator._located.values()))
    with pytest.raises(BadInput, match=r"a GGUF file kept as it is \(Q8_0\)") as caught:
        check_runnable(located.manifest)
    assert "dequantise" in (caught.value.hint or "")


async def test_two_quantisations_of_one_model_share_what_is_equal(four: VerbSwarm, tmp_path: Path) -> None:
    """The same file under another name is another model, and none of its groups is stored twice."""
    path = tiny_gguf(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes(path.read_bytes())
    await four.nodes[0].publish(path, gguf="keep")
    await four.tell()
    done = await four.nodes[0].publish(tmp_path / "b.gguf", gguf="keep")
    assert done["saved_bytes"] == done["stored_bytes"]


async def test_dequantised_it_is_a_folder_with_tokenizer_and_template(four: VerbSwarm, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf", kind="Q8_0")
    events: list[dict[str, Any]] = []

    async def notify(event: dict[str, Any]) -> None:
        events.append(event)

    done = await four.nodes[0].publisher.publish(PublishRequest(path=path), notify)
    await four.tell()
    await four.nodes[3].fetcher.fetch(done["model_id"], tmp_path / "back", quiet)
    header = safetensors_header(tmp_path / "back" / "model.safetensors")
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"BF16"}
    assert header["model.embed_tokens.weight"]["shape"] == [VOCABULARY, HIDDEN]
    assert "model.layers.2.self_attn.q_proj.weight" in header
    config = (tmp_path / "back" / "tokenizer_config.json").read_text()
    kept = config + "".join(path.read_text() for path in (tmp_path / "back").glob("chat_template*"))
    assert "assistant" in kept
    assert CHAT_TEMPLATE[:20] in kept.replace("\\", "")
    words = " ".join(event.get("text", "") for event in events)
    assert "dequantising tiny.gguf (F32, Q8_0" in words
    assert re.search(r"carried over: tokenizer \(26\d tokens\), chat template\.", words), words
    assert [event["done"] for event in events if event.get("stage") == "import"] == [1, 2, 3, 4]
    assert not left_over(tmp_path), "nothing is left of the conversion"


async def test_what_cant_be_dequantised(four: VerbSwarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = four.nodes[0].publisher
    with pytest.raises(BadInput, match="--gguf says what becomes of GGUF files"):
        await publisher.publish(PublishRequest(path=small_model(tmp_path / "m"), gguf="keep"), quiet)
    path = tiny_gguf(tmp_path / "tiny.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"general.architecture", b"general.architecturf"))
    with pytest.raises(BadInput, match="can't be dequantised"):
        await publisher.publish(PublishRequest(path=path), quiet)
    monkeypatch.setattr("node.convert_gguf.available_memory", lambda: 1 << 30)
    with pytest.raises(Unavailable, match=r"takes about \d+ MiB of memory, 1024 MiB are free"):
        await publisher.publish(PublishRequest(path=path), quiet)
    assert not left_over(tmp_path)
