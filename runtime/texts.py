"""The text side of all models in this worker: tokenizers, templates, and the text streams of replies."""

from __future__ import annotations

from pathlib import Path

from protocol.errors import NotFound
from protocol.messages import Sampling
from runtime import interface as api
from runtime.grammar import Deadlines, Matcher
from runtime.kv_pool import MAX_SEQUENCES
from runtime.text import ModelText, TextStream, write_files


class Texts:
    """`scratch` is the folder that their files are written to."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._deadlines = Deadlines()
        self._texts: dict[str, ModelText] = {}
        self._streams: dict[str, TextStream] = {}
        self.folders: dict[str, Path] = {}

    def load_text(self, params: api.LoadText) -> api.TextLoaded:
        if params.model not in self._texts:
            folder = self.scratch / f"model-{len(self.folders)}"
            write_files(folder, params.files)
            text = ModelText(folder, self._deadlines)
            self.folders[params.model], self._texts[params.model] = folder, text
        return self._texts[params.model].describe()

    def encode_chat(self, params: api.EncodeChat) -> api.Tokens:
        return api.Tokens(tokens=self._text(params.model).encode_chat(params.messages, params.continue_final, params.tools))

    def encode_text(self, params: api.EncodeText) -> api.Tokens:
        return api.Tokens(tokens=self._text(params.model).encode_text(params.text))

    def new_stream(self, model: str) -> TextStream:
        return TextStream(self._text(model))

    def open_text(self, params: api.OpenText) -> None:
        self._streams[params.stream] = self.new_stream(params.model)
        if len(self._streams) > 2 * MAX_SEQUENCES:
            del self._streams[next(iter(self._streams))]

    def decode_text(self, params: api.DecodeText) -> api.Text:
        stream = self._streams.get(params.stream)
        if stream is None:
            raise NotFound("decode_text: this stream isn't open")
        if params.last:
            del self._streams[params.stream]
        spelled = [[stream.spell(one) for one in token] for token in params.logprobs] if params.logprobs is not None else None
        return api.Text(text=stream.feed(params.tokens, params.last), logprobs=spelled)

    def matcher(self, model: str, sampling: Sampling) -> Matcher | None:
        """At the beginning of the sampling's grammar, if it has one."""
        return self._text(model).grammars.matcher(sampling.grammar) if sampling.grammar is not None else None

    def _text(self, model: str) -> ModelText:
        text = self._texts.get(model)
        if text is None:
            raise NotFound("this model's text files aren't loaded")
        return text
