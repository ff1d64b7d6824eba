"""`python -m bench.caches`: hits of the three policies on the three traces, and what loading ahead moves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from node.cache.byte_cache import LRU, ByteCache
from node.cache.predictor import LOOK, Predictor
from node.cache.s3_fifo import S3Fifo
from tests.support.cache_traces import Request, daily, scan, shuffled, total_bytes

SHARE = 0.1
"""Of all that is asked for, what the cache holds."""
BUDGET = 4e6
"""Bytes a second that loading ahead may take."""


def run(cache: ByteCache, requests: Sequence[Request], predictor: Predictor | None = None) -> dict[str, Any]:
    """Shares of requests and of bytes that were hits, and bytes loaded ahead over those loaded because they were asked for."""
    looked, ahead, loaded, hit_bytes = 0.0, 0, 0, 0
    for request in requests:
        if predictor is not None and request.at - looked >= LOOK:
            looked = request.at
            for key, size in predictor.wanted(cache.held(), cache.limit, int(LOOK * BUDGET), looked):
                cache.add(key, size, looked)
                ahead += size
        if cache.ask(request.model, request.size, request.at):
            hit_bytes += request.size
        else:
            loaded += request.size
            cache.add(request.model, request.size, request.at)
    return {
        "hits": round(cache.hits / len(requests), 4),
        "byte_hits": round(hit_bytes / sum(request.size for request in requests), 4),
        "ahead_over_asked": round(ahead / max(1, loaded), 3),
    }


def compare(requests: Sequence[Request], share: float = SHARE) -> dict[str, dict[str, Any]]:
    limit = int(total_bytes(list(requests)) * share)
    predictor = Predictor()
    return {
        "lru": run(ByteCache(limit, LRU()), requests),
        "s3_fifo": run(ByteCache(limit, S3Fifo(limit)), requests),
        "predictor": run(ByteCache(limit, predictor), requests, predictor),
        "predictor_without_loading_ahead": run(ByteCache(limit, Predictor()), requests),
    }


def main() -> None:
    for name, make in (("daily", daily), ("shuffled", shuffled), ("scan", scan)):
        for seed in (1, 2, 3):
            print(json.dumps({"trace": name, "seed": seed, **compare(make(seed))}), flush=True)


if __name__ == "__main__":
    main()
