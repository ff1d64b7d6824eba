"""The daemon's own gauges beside the HTTP surface's: peers, blame, what is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from node.http.metrics import Metrics, Reading
from node.repair import Repairs
from node.stage_room import StageRoom
from node.swarm.interface import Swarm
from protocol.ids import model_text


def register_gauges(metrics: Metrics, swarm: Swarm, room: StageRoom, repairs: Repairs) -> None:
    """Read when scraped."""

    def read() -> Iterable[Reading]:
        peers = swarm.peers()
        yield Reading("mf_peers_known", "Peers whose records this node keeps", len(peers))
        yield Reading("mf_peers_alive", "Peers that answer within the deadlines", sum(view.routable for view in peers))
        yield Reading("mf_stages_loaded", "Stages in the worker", len(room.loaded()))
        for (engine, precision), count in Counter((stage.engine, stage.precision) for stage in room.loaded()).items():
            yield Reading("mf_stages_by_engine", "Stages by what they run on", count, {"engine": engine, "precision": precision})
        yield Reading("mf_stage_sessions", "Sessions running on them", sum(stage.users for stage in room.loaded()))
        yield Reading("mf_memory_free_bytes", "Memory for models that no running session holds", room.free())
        yield Reading("mf_requests_waiting", "Requests in line for room at this node", len(room.line))
        yield from _engine_readings(room)
        yield from _stage_readings(room)
        for peer, count in Counter(str(line["peer_id"]) for line in swarm.blamed()).items():
            yield Reading("mf_blamed_shards", "Shards for which a peer was caught with wrong bytes", count, {"peer": peer})

        yield from _repair_readings(repairs)

    metrics.register_collector(read)


def _engine_readings(room: StageRoom) -> Iterable[Reading]:
    """As the worker told last, by formula and by count; nothing while it doesn't run."""
    told = room.engine_usage()
    if told is None:
        return
    for part in ("weights", "kv", "left", "activations", "base"):
        yield Reading("mf_engine_bytes", "Memory of the engine by formula, base as measured", getattr(told, part), {"part": part})
    yield Reading("mf_engine_sequences", "Sequences open in the engine", told.sequences)
    yield Reading("mf_engine_waiting", "Sequences that wait for the next pass", told.waiting)
    yield Reading("mf_engine_passes", "Passes since the worker started", told.passes)
    yield Reading("mf_engine_pass_seconds", "Seconds in them", told.seconds)
    yield Reading("mf_engine_rows", "Sequences in them, added up", told.rows)
    yield Reading("mf_engine_sent_on", "Tokens' steps that the worker sent to the next stage by itself", told.sent)
    for part in ("prompt", "reply", "reused", "drafted", "right"):
        yield Reading(
            "mf_engine_tokens",
            "Tokens: of prompts and replies, not computed again, guessed, guessed right",
            getattr(told, part),
            {"part": part},
        )


def _stage_readings(room: StageRoom) -> Iterable[Reading]:
    """By stage loaded here, so there are never more of them than stages; no peer is a label."""
    told, known = room.engine_usage(), {stage.key: stage for stage in room.loaded()}
    for one in (told.stages or []) if told is not None else []:
        if (stage := known.get(one.stage)) is None:
            continue
        labels = {"model": stage.model, "layers": f"{stage.first}-{stage.end}", "precision": stage.precision, "engine": stage.engine}
        for state, size in (("running", one.kv), ("left", one.left)):
            yield Reading("mf_stage_kv_bytes", "Keys and values by stage: of running sequences, and kept", size, labels | {"of": state})
        yield Reading("mf_stage_sequences", "Sequences open by stage", one.sequences, labels)
        yield Reading("mf_stage_waiting", "Sequences that wait for the stage's next pass", one.waiting, labels)
        yield Reading("mf_stage_passes", "Passes since the stage was loaded", one.passes, labels)
        yield Reading("mf_stage_pass_seconds", "Seconds in them", one.seconds, labels)
        yield Reading("mf_stage_rows", "Sequences in them, added up", one.rows, labels)
        yield Reading("mf_stage_reused_tokens", "Positions that weren't computed again", one.reused, labels)


def _repair_readings(repairs: Repairs) -> Iterable[Reading]:
    """Of groups of which a shard lies here, as seen in the last round."""
    weakest: dict[str, int] = {}
    for group in repairs.groups:
        model = model_text(group.model)
        weakest[model] = min(group.survives, weakest.get(model, group.survives))
        labels = {"model": model, "group": str(group.group)}
        yield Reading("mf_group_survives_losses", "More nodes that may go before the group can't be read", group.survives, labels)
    for model, survives in weakest.items():
        yield Reading("mf_model_survives_losses", "The least of its groups of which a shard lies here", survives, {"model": model})
    counts = repairs.counts
    yield Reading("mf_repairs", "Repairs done here since the start", counts.repairs)
    yield Reading("mf_repairs_failed", "Repairs begun here that failed", counts.failed)
    yield Reading("mf_repair_shards", "Shards made anew here and placed", counts.shards)
    yield Reading("mf_repair_read_bytes", "Bytes of shards read for repairs", counts.read)
    yield Reading("mf_repair_written_bytes", "Bytes of shards placed by repairs", counts.written)
    yield Reading("mf_repair_alarms", "Groups forecast to be lost before they are repaired", counts.alarms)
