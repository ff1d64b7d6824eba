"""Rule g1: where tensors go, how large groups are cut, and that every byte lies in exactly one place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import BadInput
from protocol.grouping import SourceTensor, group_model, layer_of, row_cuts
from protocol.ids import digest
from tests.protocol.vector_cases import TABLE


def tensor(name: str, offset: int, length: int = 4, file: int = 0, content: bytes | None = None) -> SourceTensor:
    shape = (length // 2, 2) if length % 2 == 0 else (length,)
    return SourceTensor(name, "U8", shape, file, offset, length, digest(content or name.encode()))


def test_literal_order_decides_where_names_do_not() -> None:
    names = ["model.aaa.weight", "model.layers.0.w", "model.zzz.weight"]
    grouping = group_model([12], [tensor(name, 4 * at) for at, name in enumerate(names)])
    assert [group.name for group in grouping.groups] == ["embed", "layer.0", "head"]


def test_layers_are_ascending_though_files_sort_10_before_2() -> None:
    names = ["model.layers.10.w", "model.layers.2.w"]
    grouping = group_model([8], [tensor(name, 4 * at) for at, name in enumerate(names)])
    assert [group.name for group in grouping.groups] == ["layer.2", "layer.10"]


def test_several_files_are_one_table() -> None:
    table = [tensor("model.layers.0.a", 8, file=0), tensor("model.layers.0.b", 8, file=1)]
    grouping = group_model([12, 12, 5], table)
    assert [cut.at for cuts in grouping.cuts for cut in cuts] == [0, 64]
    assert [(s.file, s.offset, s.length, s.at) for s in grouping.groups[-1].spans or ()] == [(0, 0, 8, 0), (1, 0, 8, 8), (2, 0, 5, 16)]


def test_tied_weights_lie_once_and_count_once() -> None:
    table = [
        tensor("lm_head.weight", 0, content=b"same"),
        tensor("model.embed_tokens.weight", 4, content=b"same"),
        tensor("model.layers.0.w", 8),
    ]
    grouping = group_model([12], table)
    assert grouping.cuts[0] == grouping.cuts[1]
    assert [group.name for group in grouping.groups] == ["embed", "layer.0"]
    assert grouping.parameters == 8


def test_equal_norms_are_not_taken_for_tied() -> None:
    table = [tensor("embeddings.norm.weight", 0, 3, content=b"ones"), tensor("h.0.w", 4), tensor("ln_f.weight", 8, 3, content=b"ones")]
    assert [group.name for group in group_model([12], table).groups] == ["embed", "layer.0", "head", "files/0"]


def test_layer_number_one_past() -> None:
    assert layer_of(f"model.layers.{limits.MAX_LAYERS - 1}.w") == ("", limits.MAX_LAYERS - 1)
    for number in (limits.MAX_LAYERS, 10**30):
        with pytest.raises(BadInput, match="layer"):
            layer_of(f"model.layers.{number}.w")


def test_group_one_past_is_cut_at_tensors_and_rows() -> None:
    big = SourceTensor("model.embed_tokens.weight", "U8", (limits.MAX_GROUP // 1024 + 1, 1024), 0, 0, limits.MAX_GROUP + 1024, b"x" * 32)
    grouping = group_model([big.length], [big])
    assert [(group.name, group.length) for group in grouping.groups] == [("embed/0", limits.MAX_GROUP), ("embed/1", 1024)]
    exact = SourceTensor("model.embed_tokens.weight", "U8", (limits.MAX_GROUP // 1024, 1024), 0, 0, limits.MAX_GROUP, b"x" * 32)
    assert [group.name for group in group_model([exact.length], [exact]).groups] == ["embed"]
    small = tensor("model.embed_positions.weight", exact.length)
    assert [group.name for group in group_model([exact.length + 4], [exact, small]).groups] == ["embed/0", "embed/1"]


def test_a_row_over_the_limit_is_refused() -> None:
    with pytest.raises(BadInput, match="rows"):
        row_cuts((2, 2000), 4000, 1000)


def test_group_count_one_past() -> None:
    with pytest.raises(BadInput, match="groups"):
        group_model([limits.MAX_GROUPS + 1], [], limit=1)
    assert len(group_model([limits.MAX_GROUPS], [], limit=1).groups) == limits.MAX_GROUPS


NAMES = st.sampled_from(["lm_head.weight", "model.embed.weight", "model.layers.1.w", "model.layers.0.w", "model.norm.weight", "x"])


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[int], list[SourceTensor]]:
    lengths, table = [], []
    for file in range(draw(st.integers(1, 3))):
        end = 0
        for number in range(draw(st.integers(0, 4))):
            offset = end + draw(st.integers(0, 5))
            length = 10 * draw(st.integers(0, 60))
            name = f"{draw(NAMES)}.{'abc'[file]}{number}"
            table.append(SourceTensor(name, "U8", (length // 10, 10), file, offset, length, digest(bytes([draw(st.integers(0, 3))]))))
            end = offset + length
        lengths.append(end + draw(st.integers(0, 900)))
    return lengths, table


@given(tables())
def test_every_byte_of_every_file_lies_in_one_place(case: tuple[list[int], list[SourceTensor]]) -> None:
    lengths, table = case
    grouping = group_model(lengths, table, limit=256)
    seen = [bytearray(length) for length in lengths]
    for source, cuts in zip(table, grouping.cuts, strict=True):
        assert sum(cut.length for cut in cuts) == source.length
        for at in range(source.offset, source.offset + source.length):
            seen[source.file][at] += 1
    for group in grouping.groups:
        assert group.length <= 256
        for span in group.spans or ():
            for at in range(span.offset, span.offset + span.length):
                seen[span.file][at] += 1
    assert all(set(file) <= {1} for file in seen)
    ends: dict[int, int] = {}
    for index, group in enumerate(grouping.groups):
        for member in group.members:
            assert member.at % limits.ALIGNMENT == 0
            assert ends.get(index, 0) <= member.at <= group.length - member.length
            ends[index] = member.at + member.length


def test_the_pinned_table_covers_its_cases() -> None:
    grouping = group_model([7600, 3], TABLE, limit=1000)
    assert [group.name for group in grouping.groups][:3] == ["embed/0", "embed/1", "embed/2"]
