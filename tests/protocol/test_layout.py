"""Which bytes make a group and which groups a stage takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.model_folder import scan
from node.model_manifest import build_manifest
from protocol import layout
from protocol.errors import BadInput
from protocol.ids import digest
from protocol.manifest import Manifest
from tests.support.synthetic import tiny_llama


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest, bool]:
    folder = tiny_llama(tmp_path_factory.mktemp("model"), layers=11, tied=request.param, files=2)
    return folder, build_manifest(scan(folder), lambda done, total: None)[0], request.param


def names(manifest: Manifest, groups: list[int]) -> list[str]:
    return [manifest.groups[index].name for index in groups]


def test_stages(made: tuple[Path, Manifest, bool]) -> None:
    _, manifest, tied = made
    assert names(manifest, layout.stage_groups(manifest, 0, 2)) == ["embed", "layer.0", "layer.1"]
    assert names(manifest, layout.stage_groups(manifest, 5, 6)) == ["layer.5"]
    assert names(manifest, layout.stage_groups(manifest, 9, 11)) == ["embed"] * tied + ["layer.9", "layer.10", "head"]
    every = layout.stage_groups(manifest, 0, 11)
    assert names(manifest, every) == [group.name for group in manifest.groups if not group.name.startswith("files")]
    for first, end in ((0, 0), (-1, 3), (3, 2), (0, 12)):
        with pytest.raises(BadInput):
            layout.stage_groups(manifest, first, end)


def test_stage_tensors_are_what_transformers_expects(made: tuple[Path, Manifest, bool]) -> None:
    _, manifest, tied = made
    slots = layout.stage_tensors(manifest, layout.stage_groups(manifest, 10, 11))
    ends = {slot.tensor.name for slot in slots if "layers" not in slot.tensor.name}
    assert ends == {"model.norm.weight", "model.embed_tokens.weight" if tied else "lm_head.weight"}
    assert {slot.tensor.name.split(".")[2] for slot in slots if "layers" in slot.tensor.name} == {"10"}


def test_layer_bytes_add_up(made: tuple[Path, Manifest, bool]) -> None:
    _, manifest, tied = made
    planned = layout.layer_bytes(manifest)
    assert planned.tied == tied
    assert len(planned.layers) == 11
    assert planned.embed + sum(planned.layers) + planned.head == sum(g.length for g in manifest.groups if g.spans is None)


def test_group_spans_give_each_tensor_its_bytes(made: tuple[Path, Manifest, bool]) -> None:
    folder, manifest, _ = made
    for index, spans in enumerate(layout.all_group_spans(manifest)):
        group = bytearray(manifest.groups[index].length)
        for span in spans:
            with (folder / manifest.files[span.file].name).open("rb") as file:
                file.seek(span.offset)
                group[span.at : span.at + span.length] = file.read(span.length)
        for slot in layout.stage_tensors(manifest, [index]):
            assert digest(bytes(group[slot.cut.at : slot.cut.at + slot.cut.length])) == slot.tensor.digest
        assert layout.group_spans(manifest, index) == spans


def test_small_files(made: tuple[Path, Manifest, bool]) -> None:
    folder, manifest, _ = made
    wanted = layout.text_files(manifest)
    assert wanted == ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert names(manifest, layout.text_groups(manifest)) == ["files/0"]
    spans = layout.group_spans(manifest, layout.text_groups(manifest)[0])
    plain = b"".join((folder / manifest.files[s.file].name).read_bytes()[s.offset : s.offset + s.length] for s in spans)
    for name, places in layout.small_files(manifest, [*wanted, "unknown"]).items():
        assert b"".join(plain[p.at : p.at + p.length] for p in places) == (folder / name).read_bytes()
    with pytest.raises(BadInput, match="holds tensors"):
        layout.small_files(manifest, ["model-00001-of-00002.safetensors"])
