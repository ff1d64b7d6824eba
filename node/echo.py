"""A prompt told back before its reply: its text and, where they are asked, the logarithms of its own tokens."""

from __future__ import annotations

from collections.abc import Sequence

from node.gateway import GenerationRequest, Piece, TextLogprob
from node.locate import Located
from node.reply_text import ReplyText
from node.stage_room import StageRoom
from node.worker import Worker
from protocol import limits
from protocol.errors import BadInput, Unavailable
from protocol.messages import TokenLogprob
from runtime.interface import SpelledToken


def known_tokens(tokens: list[int], vocabulary: int | None) -> list[int]:
    """A prompt given as token ids, all of them the model's."""
    top = vocabulary or limits.MAX_VOCABULARY
    strange = next((token for token in tokens if not 0 <= token < top), None)
    if strange is not None:
        raise BadInput(f"prompt: token {strange} isn't one of the model's {top}", details={"param": "prompt"})
    return tokens


class Echo:
    """Of one reply. `due` until the scored prompt was told."""

    def __init__(self, worker: Worker, room: StageRoom, located: Located, request: GenerationRequest, prompt: list[int]) -> None:
        self._text = ReplyText(worker, room, located)
        self._request = request
        self._prompt = prompt
        self.due = request.echo and request.sampling.logprobs is not None

    def check(self) -> None:
        """Before anything is run."""
        if self.due and len(self._prompt) > limits.MAX_ARRAY:
            raise BadInput(f"echo: a prompt of {len(self._prompt)} tokens, at most {limits.MAX_ARRAY} can have logarithms")

    async def plain(self) -> Piece:
        if self._request.text is not None:
            return Piece(self._request.text, 0)
        text = await self._text.feed(self._prompt)
        await self._text.close()
        return Piece(text, 0)

    async def scored(self, scores: dict[int, list[TokenLogprob]]) -> Piece:
        """`scores` by the tokens' places; the first one has none."""
        self.due = False
        if len(scores) != len(self._prompt) - 1:
            raise Unavailable(f"of {len(self._prompt)} tokens of the prompt {len(scores)} came back with logarithms", hint="ask again")
        text = await self._text.feed(self._prompt)
        rows = [[TokenLogprob(self._prompt[0], 0.0)], *(scores[place] for place in range(1, len(self._prompt)))]
        spelled = await self._text.spell_all(rows)
        await self._text.close()
        first, *others = [_told(row) for row in spelled]
        return Piece(text if self._request.text is None else self._request.text, 0, (TextLogprob(first.text, first.raw, None), *others))


def _told(row: Sequence[SpelledToken]) -> TextLogprob:
    chosen, *top = row
    return TextLogprob(chosen.text, chosen.raw, chosen.logprob, tuple((one.text, one.raw, one.logprob) for one in top))
