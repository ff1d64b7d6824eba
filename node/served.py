"""What Holdings say of layers served, in the words of the policies."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from node.locate import Located
from node.swarm.interface import HoldingView
from protocol.layout import layer_count, stage_groups
from runtime.layer_path import Road
from runtime.stage_choice import Choices, LayerLoads, Span, cells, rate_of


def announced(layers: int, views: Iterable[HoldingView], precision: str, unmeasured: float) -> LayerLoads:
    """What these serve or are about to; `unmeasured` seconds a layer where one hasn't said. Ranges beyond the model are left out."""
    loads = LayerLoads(layers)
    for view in views:
        for serving in view.serves:
            if serving.precision == precision and serving.end <= layers:
                span = Span(serving.first, serving.end)
                loads.add(span, rate_of(span, serving.layer_us / 1e6 if serving.layer_us else unmeasured))
    return loads


def cell_choices(located: Located, fits: Callable[[int, int], bool], mine: HoldingView | None, loaded: Span | None) -> Choices:
    """The spans that fit this node, with the part of their bytes that lies here: shards it holds, all of what is `loaded`."""
    spans = cells(layer_count(located.manifest), fits)
    here = _held_bytes(located, mine)
    return Choices(spans, [1.0 if span == loaded else _held_part(located, span, here) for span in spans])


def _held_bytes(located: Located, mine: HoldingView | None) -> dict[int, float]:
    """Bytes by group that needn't be fetched: a shard is a k-th of its group."""
    k_of: dict[bytes, int] = {known.id: known.record.k for entries in located.encodings.values() for known in entries}
    found: dict[int, float] = {}
    for held in mine.held if mine else ():
        k = k_of.get(held.encoding)
        if k and held.group < len(located.manifest.groups):
            part = min(1.0, len(held.shards) / k)
            found[held.group] = max(found.get(held.group, 0.0), part * located.manifest.groups[held.group].length)
    return found


def _held_part(located: Located, span: Span, here: dict[int, float]) -> float:
    groups = stage_groups(located.manifest, span.first, span.end)
    total = sum(located.manifest.groups[number].length for number in groups)
    return sum(here.get(number, 0.0) for number in groups) / max(1, total)


def roads(view: HoldingView, precision: str, rtt: float | None, layer: float | None, queue: float | None) -> list[Road]:
    """Where a pipeline may go at this peer: what it has loaded. `layer` seconds by own measurement come before what it says."""
    return [
        Road(view.peer, serving.first, serving.end, rtt, layer or (serving.layer_us / 1e6 if serving.layer_us else None), queue)
        for serving in view.serves
        if serving.loaded and serving.precision == precision
    ]
