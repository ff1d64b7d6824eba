"""Reads a log of system calls: was each shard's file on the disk, named, its folder on the disk, and its row committed, in this order,
before its put was acknowledged?"""

from __future__ import annotations

import re
from collections.abc import Sequence

ACTS = ["fdatasync", "rename", "fsync", "commit"]
_NAMED = re.compile(r'rename\w*\(.*?"(?P<temp>[^"]*/incoming/[^"]+)".*?"(?P<final>[^"]*/shards/[^"]+)"')
_PATTERNS = {
    "write": re.compile(r"\bwrite\(\d+<(?P<path>[^>]*/incoming/[^>]+)>"),
    "fdatasync": re.compile(r"\bfdatasync\(\d+<(?P<path>[^>]*/incoming/[^>]+)>"),
    "fsync": re.compile(r"\bfsync\(\d+<(?P<path>[^>]*/shards)>"),
    "commit": re.compile(r"\bpwrite64\(\d+<(?P<path>[^>]*/index\.sqlite-wal)>"),
    "ack": re.compile(r'\bwritev\(1<.*?"ack (?P<path>\d+)'),
}


def events(calls: Sequence[str]) -> list[tuple[str, str]]:
    """(act, what it was done to) of every call that matters here."""
    found = []
    for line in calls:
        if named := _NAMED.search(line):
            found.append(("rename", named["temp"]))
            continue
        found += [(act, match["path"]) for act, pattern in _PATTERNS.items() if (match := pattern.search(line))]
    return found


def faults(calls: Sequence[str], puts: Sequence[int]) -> list[str]:
    """One sentence for each acknowledged put (of those numbers) that was acknowledged before, or without, one of the acts."""
    wrong, since = [], 0
    seen = events(calls)
    for place, (act, number) in enumerate(seen):
        if act == "ack":
            if int(number) in puts:
                wrong += [f"put {number}: {fault}" for fault in _out_of_order(seen[since:place])]
            since = place + 1
    return wrong


def _out_of_order(acts: Sequence[tuple[str, str]]) -> list[str]:
    at, missing = max((i + 1 for i, (act, _) in enumerate(acts) if act == "write"), default=0), []
    for wanted in ACTS:
        place = next((i for i in range(at, len(acts)) if acts[i][0] == wanted), None)
        if place is None:
            missing.append(f"no {wanted} in its place before the acknowledgement")
        else:
            at = place + 1
    return missing
