"""The process that writes a fetched model's files and is killed, or whose disk fails: groups as they would come, segment by segment.

SOURCE holds the model's files. Tells `in place N` (bytes taken up), `wrote N` (bytes it had to write), then `ack 0` or `no 0 CODE`.
"""

from __future__ import annotations

from pathlib import Path

from node.model_folder import scan
from node.model_manifest import build_manifest
from node.restore import FileWriter
from node.transfer.marks import Mark
from node.transfer.sink import Sink
from protocol.errors import MfError, Unavailable
from protocol.ids import digest
from protocol.layout import all_group_spans
from protocol.manifest import Manifest, manifest_bytes
from tests.crash.child import say

SEGMENT = 40_000
"""Bytes written at a time."""


def group_bytes(source: Path, manifest: Manifest, group: int) -> bytes:
    plain = bytearray(manifest.groups[group].length)
    for span in all_group_spans(manifest)[group]:
        data = (source / manifest.files[span.file].name).read_bytes()
        plain[span.at : span.at + span.length] = data[span.offset : span.offset + span.length]
    return bytes(plain)


def manifest_of(source: Path) -> Manifest:
    return build_manifest(scan(source), lambda done, total: None)[0]


def main(folder: str, source: str) -> None:
    manifest = manifest_of(Path(source))
    writer = FileWriter(manifest, folder, digest(manifest_bytes(manifest)))
    try:
        writer.open()
        try:
            say(f"in place {sum(map(writer.in_place, writer.wanted()))}")
            say(f"wrote {sum(write(writer, Path(source), manifest, group) for group in writer.wanted())}")
            for group in writer.wrong_groups(writer.wrong_files()):
                writer.write_group(group, group_bytes(Path(source), manifest, group))
            writer.finish()
        except BaseException as error:
            (writer.leave if isinstance(error, Unavailable) else writer.abort)()
            raise
        say("ack 0")
    except MfError as error:
        say(f"no 0 {error.code}")


def write(writer: FileWriter, source: Path, manifest: Manifest, group: int) -> int:
    """As the transfer process does, from the mark on, with whole segments."""
    plain, done = memoryview(group_bytes(source, manifest, group)), writer.in_place(group)
    if done == len(plain):
        return 0
    spans, fds = writer.targets(group)
    fd, place = writer.mark(group)
    sink = Sink(spans, fds, Mark(fd, place, done))
    begin = done // SEGMENT * SEGMENT
    for at in range(begin, len(plain), SEGMENT):
        sink.write(plain[at : at + SEGMENT], at)
    writer.complete(group)
    return len(plain) - begin
