from __future__ import annotations

import pytest

from node.store.interface import ShardStore
from node.store.memory import MemoryStore
from tests.node.store.conformance import QUOTA, StoreConformance


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def store(self) -> ShardStore:
        return MemoryStore(QUOTA)
