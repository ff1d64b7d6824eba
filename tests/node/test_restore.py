"""Files put together from groups: bit-identical, or nothing at all."""

from __future__ import annotations

import filecmp
import os
import tempfile
from pathlib import Path

import pytest

from node.model_folder import scan
from node.model_manifest import build_manifest
from node.restore import MARKS, WORK, FileWriter
from node.transfer.marks import Mark
from node.transfer.sink import Sink
from protocol.errors import BadInput, Conflict, StorageFull
from protocol.layout import all_group_spans
from protocol.manifest import Manifest
from tests.support.synthetic import tiny_llama


@pytest.fixture(params=["untied", "tied"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Manifest]:
    folder = tiny_llama(tmp_path / "model", tied=request.param == "tied", files=2)
    (folder / "sub").mkdir()
    (folder / "sub" / "empty.txt").touch()
    return folder, build_manifest(scan(folder), lambda done, total: None)[0]


def group_bytes(folder: Path, manifest: Manifest, group: int) -> bytes:
    plain = bytearray(manifest.groups[group].length)
    for span in all_group_spans(manifest)[group]:
        data = (folder / manifest.files[span.file].name).read_bytes()
        plain[span.at : span.at + span.length] = data[span.offset : span.offset + span.length]
    return bytes(plain)


def restore(folder: Path, manifest: Manifest, target: Path) -> None:
    writer = FileWriter(manifest, target)
    writer.open()
    for group in reversed(writer.wanted()):
        writer.write_group(group, group_bytes(folder, manifest, group))
    writer.finish()


def assert_equal(folder: Path, manifest: Manifest, target: Path) -> None:
    assert not (target / WORK).exists()
    assert {str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()} == {entry.name for entry in manifest.files}
    assert all(filecmp.cmp(folder / entry.name, target / entry.name, shallow=False) for entry in manifest.files)


def test_bit_identical_into_a_new_folder(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    restore(*made, tmp_path / "new" / "deep")
    assert_equal(*made, tmp_path / "new" / "deep")


def test_groups_from_a_descriptor(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder, manifest = made
    writer = FileWriter(manifest, tmp_path / "out")
    writer.open()
    for group in writer.wanted():
        with tempfile.TemporaryFile() as file:
            file.write(b"pad" + group_bytes(folder, manifest, group))
            file.flush()
            with pytest.raises(BadInput, match="fewer bytes"):
                writer.write_group(group, file.fileno(), 4)
            writer.write_group(group, file.fileno(), 3)
    assert [path.name for path in writer.finish()] == [Path(entry.name).name for entry in manifest.files]
    assert_equal(folder, manifest, tmp_path / "out")


def test_own_files_are_kept_and_the_rest_fetched(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder, manifest = made
    target = tmp_path / "out"
    restore(folder, manifest, target)
    (target / "config.json").unlink()
    writer = FileWriter(manifest, target)
    writer.open()
    assert [manifest.groups[group].name for group in writer.wanted()] == ["files/0"]
    writer.abort()
    restore(folder, manifest, target)
    assert_equal(folder, manifest, target)


def test_files_of_others_are_left_alone(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    manifest = made[1]
    for name in ("mine.txt", "config.json"):
        target = tmp_path / f"out-{name}"
        target.mkdir()
        (target / name).write_text("mine")
        with pytest.raises(Conflict, match=name):
            FileWriter(manifest, target).open()
        assert [path.name for path in target.iterdir()] == [name]


def test_links_in_the_target_are_not_followed(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder, manifest = made
    for name in ("config.json", "sub", WORK):
        target, elsewhere = tmp_path / f"out-{name}", tmp_path / f"elsewhere-{name}"
        target.mkdir()
        elsewhere.mkdir()
        (target / name).symlink_to(elsewhere)
        with pytest.raises(Conflict):
            restore(folder, manifest, target)
        assert list(elsewhere.iterdir()) == []


def test_wrong_bytes_leave_nothing(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder, manifest = made
    writer = FileWriter(manifest, tmp_path / "a" / "b")
    writer.open()
    for group in writer.wanted():
        plain = bytearray(group_bytes(folder, manifest, group))
        if group == 1:
            plain[0] ^= 1
        writer.write_group(group, plain)
    with pytest.raises(BadInput, match="not the file's"):
        writer.finish()
    assert not (tmp_path / "a").exists()


def test_abort_leaves_nothing_and_may_be_repeated(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    writer = FileWriter(made[1], tmp_path / "out")
    writer.abort()
    writer.open()
    writer.write_group(0, group_bytes(*made, 0))
    writer.abort()
    writer.abort()
    assert not (tmp_path / "out").exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_appears_meanwhile_is_not_overwritten(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder, manifest = made
    target = tmp_path / "out"
    writer = FileWriter(manifest, target)
    writer.open()
    for group in writer.wanted():
        writer.write_group(group, group_bytes(folder, manifest, group))
    (target / "tokenizer.json").write_text("mine")
    with pytest.raises(Conflict, match="appeared"):
        writer.finish()
    assert [path.name for path in target.iterdir()] == ["tokenizer.json"]


def test_two_fetches_and_what_a_killed_one_left(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder, manifest = made
    target = tmp_path / "out"
    first = FileWriter(manifest, target)
    first.open()
    with pytest.raises(Conflict, match="another fetch"):
        FileWriter(manifest, target).open()
    assert (target / WORK).exists()
    first.abort()
    (target / WORK).mkdir(parents=True)
    (target / WORK / "0").write_text("left")
    restore(folder, manifest, target)
    assert_equal(folder, manifest, target)


def test_too_little_room_and_no_folder(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    huge = made[1]
    huge.files[0].length = 1 << 62
    with pytest.raises(StorageFull, match="are free"):
        FileWriter(huge, tmp_path / "out").open()
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(Conflict, match="not a folder"):
        FileWriter(huge, tmp_path / "file" / "x").open()


def test_groups_written_straight_to_their_places_are_checked_by_whole_files(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder, manifest = made
    writer = FileWriter(manifest, tmp_path / "out")
    writer.open()
    everything = writer.wrong_files()
    for group in writer.wanted():
        spans, fds = writer.targets(group)
        Sink(spans, fds).write(memoryview(group_bytes(folder, manifest, group)), 0)
    assert not writer.wrong_files()
    assert everything
    group = writer.wanted()[-1]
    spans, fds = writer.targets(group)
    os.pwrite(fds[0], bytes([os.pread(fds[0], 1, spans[0].offset)[0] ^ 1]), spans[0].offset)
    wrong = writer.wrong_files()
    assert len(wrong) == 1
    assert group in writer.groups_of(wrong)
    writer.write_group(group, group_bytes(folder, manifest, group))
    writer.finish()
    assert_equal(folder, manifest, tmp_path / "out")


MODEL = b"m" * 32


def taken_up(manifest: Manifest, target: Path, model: bytes = MODEL) -> FileWriter:
    writer = FileWriter(manifest, target, model)
    writer.open()
    return writer


def test_what_a_killed_fetch_wrote_is_taken_up(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder, manifest = made
    target = tmp_path / "out"
    first = taken_up(manifest, target)
    spans, fds = first.targets(0)
    fd, place = first.mark(0)
    Sink(spans, fds, Mark(fd, place)).write(memoryview(group_bytes(folder, manifest, 0))[:1000], 0)
    first.write_group(1, group_bytes(folder, manifest, 1))
    first.leave()
    second = taken_up(manifest, target)
    assert [second.in_place(group) for group in range(3)] == [1000, manifest.groups[1].length, 0]
    for group in second.wanted():
        plain = group_bytes(folder, manifest, group)
        spans, fds = second.targets(group)
        Sink(spans, fds).write(memoryview(plain)[second.in_place(group) :], second.in_place(group))
    second.finish()
    assert_equal(folder, manifest, target)


def test_a_mark_that_promises_too_much_costs_its_group_alone(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    """As after a loss of power: the mark is on the disk, the bytes aren't."""
    folder, manifest = made
    first = taken_up(manifest, tmp_path / "out")
    lost = next(number for number, group in enumerate(manifest.groups) if group.name == "layer.2")
    for group in first.wanted():
        if group == lost:
            first.complete(group)
        else:
            first.write_group(group, group_bytes(folder, manifest, group))
    first.leave()
    second = taken_up(manifest, tmp_path / "out")
    assert all(second.in_place(group) == manifest.groups[group].length for group in second.wanted())
    wrong = second.wrong_groups(second.wrong_files())
    assert [manifest.groups[group].name for group in wrong] == ["layer.2", "files/0"]
    for group in wrong:
        second.write_group(group, group_bytes(folder, manifest, group))
    second.finish()
    assert_equal(folder, manifest, tmp_path / "out")


@pytest.mark.parametrize("change", ["another model", "a file gone", "a file cut", "marks gone"])
def test_what_doesnt_fit_is_begun_anew(made: tuple[Path, Manifest], tmp_path: Path, change: str) -> None:
    folder, manifest = made
    target = tmp_path / "out"
    first = taken_up(manifest, target)
    for group in first.wanted():
        first.write_group(group, group_bytes(folder, manifest, group))
    first.leave()
    weights = next(number for number, entry in enumerate(manifest.files) if entry.name.endswith("1.safetensors") or entry.length > 10**5)
    path = target / WORK / str(weights)
    match change:
        case "a file gone":
            path.unlink()
        case "a file cut":
            os.truncate(path, 7)
        case "marks gone":
            (target / WORK / MARKS).unlink()
    second = taken_up(manifest, target, b"o" * 32 if change == "another model" else MODEL)
    assert not any(second.in_place(group) for group in second.groups_of({weights}))
    second.abort()
    assert not target.exists() or list(target.iterdir()) == []


def test_a_link_planted_among_what_was_left_is_refused(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    first = taken_up(made[1], tmp_path / "out")
    first.leave()
    mine = tmp_path / "mine"
    mine.write_bytes(bytes(made[1].files[0].length))
    planted = tmp_path / "out" / WORK / "0"
    for plant in (planted.hardlink_to, planted.symlink_to):
        planted.unlink()
        plant(mine)
        with pytest.raises((Conflict, BadInput)):
            taken_up(made[1], tmp_path / "out")
    assert mine.read_bytes() == bytes(made[1].files[0].length)
