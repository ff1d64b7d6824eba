from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from protocol.errors import BadInput
from runtime.interface import TensorPlace
from runtime.weights import build_tensors, check_finite, map_groups


@pytest.fixture
def group() -> Iterator[int]:
    fd = os.memfd_create("group")
    os.write(fd, bytes(range(256)))
    yield fd
    os.close(fd)


def place(**changes: object) -> TensorPlace:
    fields = {"name": "w", "dtype": "U8", "shape": [4, 8], "group": 0, "at": 64, "length": 32, "part": 0} | changes
    return TensorPlace(**fields)  # type: ignore[arg-type]


def test_bytes_become_a_tensor(group: int) -> None:
    tensor = build_tensors(map_groups([group], [256]), [place()])["w"]
    assert tensor.shape == (4, 8)
    assert tensor.flatten().tolist() == list(range(64, 96))


def test_writing_never_reaches_the_group(group: int) -> None:
    tensor = build_tensors(map_groups([group], [256]), [place()])["w"]
    tensor.fill_(0)
    assert os.pread(group, 4, 64) == bytes([64, 65, 66, 67])


def test_the_mapping_outlives_its_descriptor() -> None:
    fd = os.memfd_create("group")
    os.write(fd, bytes(range(128)))
    tensor = build_tensors(map_groups([fd], [128]), [place()])["w"]
    os.close(fd)
    assert tensor[0, 0] == 64


def test_cuts_are_joined_in_their_order(group: int) -> None:
    cuts = [place(shape=[24], at=128, length=8, part=1), place(shape=[24], at=0, length=16, part=0)]
    assert build_tensors(map_groups([group], [256]), cuts)["w"].tolist() == [*range(16), *range(128, 136)]


def test_bf16_bits_are_kept() -> None:
    fd = os.memfd_create("group")
    wanted = torch.tensor([1.5, -2.25, 3e38]).to(torch.bfloat16)
    os.write(fd, bytes(wanted.view(torch.uint8).numpy()))
    tensor = build_tensors(map_groups([fd], [6]), [place(dtype="BF16", shape=[3], at=0, length=6)])["w"]
    os.close(fd)
    assert torch.equal(tensor, wanted)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": "PICKLE"}, "dtype 'PICKLE'"),
        ({"shape": [5, 8]}, "32 bytes for shape"),
        ({"shape": [-4, -8]}, "impossible shape"),
        ({"shape": [1] * 9}, "impossible shape"),
        ({"at": 65}, "not at a multiple of 64"),
        ({"at": 256}, "outside of group 0"),
        ({"at": -64}, "outside of group 0"),
        ({"group": 1}, "outside of group 1"),
        ({"group": -1}, "outside of group -1"),
        ({"part": 1}, "its cuts are"),
        ({"at": 0, "length": 1 << 40, "shape": [1 << 40]}, "outside of group 0"),
    ],
)
def test_places_that_lie_are_refused(changes: dict[str, object], said: str, group: int) -> None:
    with pytest.raises(BadInput, match=said):
        build_tensors(map_groups([group], [256]), [place(**changes)])


def test_a_group_shorter_than_announced_is_refused(group: int) -> None:
    with pytest.raises(BadInput, match="announces 300 bytes, its descriptor holds 256"):
        map_groups([group], [300])
    with pytest.raises(BadInput, match="0 descriptors came for 1 groups"):
        map_groups([], [10])


def test_nan_names_its_tensor() -> None:
    with pytest.raises(BadInput, match="'bad' holds values"):
        check_finite({"good": torch.ones(3), "bad": torch.tensor([1.0, float("nan")]).to(torch.bfloat16)})
