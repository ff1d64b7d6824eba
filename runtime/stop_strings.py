"""Stop strings over a stream of text: nothing is shown that may yet turn out to begin one."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Feed text as it comes; `feed` returns what may be shown; `found` is set once a stop string is complete.

    The stop string and all after it are never shown. Matches across feeds are found because the longest
    suffix that is a prefix of a stop string is held back. Of several the one that is complete first counts, and of those the longest:
    which it is mustn't depend on how the text is cut into feeds.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        if self.found:
            return ""
        text = self._held + text
        self._held = ""
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.found = True
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, at the end of the reply."""
        held, self._held = self._held, ""
        return "" if self.found else held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that ends `text`."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
