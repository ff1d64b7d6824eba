"""The swarm shared by several files, ended with the session."""

from __future__ import annotations

from tests.swarm.scene import scene

__all__ = ["scene"]
