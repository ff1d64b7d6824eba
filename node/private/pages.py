"""One page of two lists: private models in memory, public ones from the index, in the order that was asked.

The public ones are many and come in slices, the private ones few. Of the first `offset` models of both together at least `offset - few`
are public: that many can be left out unseen, and what is left of the page begins so many places further on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from heapq import merge

from node.gateway import ModelInfo
from node.model_index import ModelQuery, match_of

Key = tuple[str | float, str]


def by_relevance(query: ModelQuery) -> bool:
    """Whether the public ones are ranked by the search, which says nothing of private ones."""
    return query.sort == "relevance" and match_of(query.search) is not None


def downwards(query: ModelQuery) -> bool:
    """As the index: names go up, figures go down, unless the order is given."""
    return (query.order or ("asc" if query.sort in ("relevance", "name") else "desc")) == "desc"


def key_of(info: ModelInfo, query: ModelQuery) -> Key:
    """Places a model as the index does: by what was asked, then by publisher, name and version."""
    full = info.name or ""
    text = f"{info.publisher} {full.rpartition('/')[2].partition('@')[0]} {info.version}"
    values: dict[str, str | float] = {"popularity": info.popularity, "size": info.size_bytes, "created_at": info.created_at or 0.0}
    return values.get(query.sort, full.lower()), text


def slice_of(query: ModelQuery, few: int) -> ModelQuery:
    """What of the public ones the page may need, with `few` private ones among them."""
    skipped = max(0, query.offset - few)
    return replace(query, offset=skipped, limit=query.offset - skipped + query.limit)


def page_of(private: Sequence[ModelInfo], public: Sequence[ModelInfo], query: ModelQuery) -> list[ModelInfo]:
    """The page, of all private ones that match and the public ones of `slice_of`."""

    def key(info: ModelInfo) -> Key:
        return key_of(info, query)

    down = downwards(query)
    both = list(merge(sorted(private, key=key, reverse=down), public, key=key, reverse=down))
    begin = query.offset - max(0, query.offset - len(private))
    return both[begin : begin + query.limit]
