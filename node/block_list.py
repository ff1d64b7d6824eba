"""What the owner wants nothing of here: models and publishers. One small file in the data directory, durable before it counts.

A publisher is who signed an encoding, whoever brings it. Blocking stops what comes; emptying the store of what lies here is
node/owner_space.py's, which does both.
"""

from __future__ import annotations

from pathlib import Path

from node.data_dir import write_durably
from protocol import limits
from protocol.errors import BadInput, Conflict
from protocol.framing import Record, pack, unpack
from protocol.ids import ModelId, PeerId

FILE = "blocked.msgpack"
MAX_BLOCKED = 65_536


class Blocked(Record):
    """Model ids and PeerIDs, sorted."""

    models: list[bytes]
    publishers: list[str]


class BlockList:
    """Empty until `load`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self.models: set[ModelId] = set()
        self.publishers: set[PeerId] = set()

    def load(self) -> None:
        """`Conflict` for a file that can't be read: what the owner has decided must not be forgotten silently."""
        try:
            found = unpack(self._path.read_bytes(), Blocked, str(self._path), 8 * limits.MIB)
        except FileNotFoundError:
            return
        except (OSError, BadInput) as error:
            raise Conflict(f"{self._path} can't be read: {error}", hint="move it away: nothing is blocked then") from error
        self.models = {ModelId(model) for model in found.models}
        self.publishers = {PeerId(peer) for peer in found.publishers}

    def set(self, what: ModelId | PeerId, blocked: bool) -> None:
        """Durable when it returns."""
        models, publishers = set(self.models), set(self.publishers)
        if isinstance(what, bytes):
            (models.add if blocked else models.discard)(ModelId(what))
        else:
            (publishers.add if blocked else publishers.discard)(PeerId(what))
        if len(models) + len(publishers) > MAX_BLOCKED:
            raise BadInput(f"at most {MAX_BLOCKED} models and publishers can be blocked")
        write_durably(self._path, pack(Blocked(models=sorted(models), publishers=sorted(publishers))))
        self.models, self.publishers = models, publishers

    def why(self, model: ModelId, publisher: PeerId) -> str | None:
        """Why nothing of this may lie here; None when it may."""
        if model in self.models:
            return "this node's owner wants nothing of this model here"
        return "this node's owner wants nothing of this publisher here" if publisher in self.publishers else None
