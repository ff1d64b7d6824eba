"""The daemon's own gauges beside the HTTP surface's: peers, blame, what is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from node.http.metrics import Metrics, Reading
from node.stage_room import StageRoom
from node.swarm.interface import Swarm


def register_gauges(metrics: Metrics, swarm: Swarm, room: StageRoom) -> None:
    """Read when scraped."""

    def read() -> Iterable[Reading]:
        peers = swarm.peers()
        yield Reading("mf_peers_known", "Peers whose records this node keeps", len(peers))
        yield Reading("mf_peers_alive", "Peers that answer within the deadlines", sum(view.routable for view in peers))
        yield Reading("mf_stages_loaded", "Stages in the worker", len(room.loaded()))
        yield Reading("mf_stage_sessions", "Sessions running on them", sum(stage.users for stage in room.loaded()))
        yield Reading("mf_memory_free_bytes", "Memory for models that no running session holds", room.free())
        for peer, count in Counter(str(line["peer_id"]) for line in swarm.blamed()).items():
            yield Reading("mf_blamed_shards", "Shards for which a peer was caught with wrong bytes", count, {"peer": peer})

    metrics.register_collector(read)
