"""The swarms shared by several files, ended with the session."""

from __future__ import annotations

from tests.swarm.calm import calm, model_folder
from tests.swarm.scene import scene

__all__ = ["calm", "model_folder", "scene"]
