"""The API keys of this home, in memory: looked up by what is sent or by the public key. The file has only their hashes."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.ids import digest


@dataclass(frozen=True)
class ApiKey:
    """`id` 16 bytes; `user` None: the owner's; `audience` None: any node it is narrowed to, "*" swarm-wide; `expires` Unix seconds."""

    id: bytes
    user: str | None
    hash: bytes
    public: bytes
    name: str
    scopes: frozenset[str]
    models: tuple[str, ...] | None
    audience: str | None
    created: float
    expires: float | None

    @property
    def label(self) -> str:
        return f"key_{self.id.hex()}"


class Keyring:
    def __init__(self) -> None:
        self._by_id: dict[bytes, ApiKey] = {}
        self._by_hash: dict[bytes, ApiKey] = {}
        self._by_public: dict[bytes, ApiKey] = {}

    def add(self, key: ApiKey) -> None:
        self._by_id[key.id] = self._by_hash[key.hash] = self._by_public[key.public] = key

    def remove(self, key_id: bytes) -> ApiKey | None:
        key = self._by_id.pop(key_id, None)
        if key is not None:
            del self._by_hash[key.hash], self._by_public[key.public]
        return key

    def get(self, key_id: bytes) -> ApiKey | None:
        return self._by_id.get(key_id)

    def by_seed(self, seed: bytes) -> ApiKey | None:
        """By the key's 32 secret bytes, through their hash: nothing to compare byte by byte."""
        return self._by_hash.get(digest(seed))

    def by_public(self, public: bytes) -> ApiKey | None:
        return self._by_public.get(public)

    def of_user(self, user: str | None) -> list[ApiKey]:
        return sorted((key for key in self._by_id.values() if key.user == user), key=lambda key: key.created)
