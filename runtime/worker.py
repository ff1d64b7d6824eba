"""The worker process: `python -m runtime.worker FD`, FD its end of a socketpair with the node.

Imports torch and transformers, shuts itself into the sandbox at the first message ("configure"), then takes messages as they come and
computes a pass whenever there are none. What is computed in passes is answered after one of them, everything else at once.
It ends when the node is gone: by the closed channel, or by the kernel's parent-death signal.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from protocol.errors import BadInput, MfError
from runtime import interface as api
from runtime.heap import large_apart
from runtime.import_ahead import import_ahead
from runtime.short_slice import ask_short_slice
from runtime.worker_channel import Request, WorkerChannel, close_all

log = logging.getLogger(__name__)
_LATER = object()
_PR_SET_PDEATHSIG = 1
_MESSAGES = 512
"""Messages taken between two passes at most."""
_NICE = 5
"""The network of this node comes before its arithmetic. Before that, it starts and spells as soon as it can: replies may wait for it."""
_MAY_WAIT = {"decode_text"}
_UNHURRIED = {"load_stage", "open_sequence", "step", "generate", "encode"}


def main() -> None:
    """Serves the channel until the node closes it."""
    # The names of functions, never what they hold.
    faulthandler.enable(2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    large_apart()
    ask_short_slice()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="worker: %(levelname)s %(message)s")
    channel = WorkerChannel(socket.socket(fileno=int(sys.argv[1])))
    server = Server(channel)
    while True:
        for _ in range(_MESSAGES):
            if server.working and not channel.waiting():
                break
            if not server.working:
                server.catch_up()
            requests = channel.receive()
            if not requests:
                os._exit(0)
            if len(requests) == 1:
                server.serve(requests[0])
                continue
            with channel.together():
                for request in requests:
                    server.serve(request)
        server.step()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == 1:
            os._exit(0)


class Server:
    """Turns requests into calls of the engine."""

    def __init__(self, channel: WorkerChannel) -> None:
        self._channel = channel
        self._kinds: dict[str, tuple[Any, Callable[..., Any]]] = {}
        self._later: dict[int, str] = {}
        """Sessions by the request that waits for them."""
        self._engine: Any = None
        self._stepped_back = False
        self._aside: list[Request] = []
        """What may wait for a pass."""

    @property
    def working(self) -> bool:
        return self._engine is not None and bool(self._engine.working)

    def step(self) -> None:
        """One pass. What it gives several sequences goes as one; what it gives one goes at once."""
        if not self.working:
            return
        if self._engine.crowded:
            with self._channel.together():
                self._engine.step()
        else:
            self._engine.step()
        self.catch_up()

    def serve(self, request: Request) -> None:
        """Answers one request, or puts it aside: to spell a token takes half a millisecond, for which a pipeline's next step would wait at
        each of them. Where passes are long it is spelled first: the reader would notice."""
        if request.method in _MAY_WAIT and self.working and self._engine.brief:
            self._aside.append(request)
        else:
            self._answer(request)

    def catch_up(self) -> None:
        """Answers what was put aside."""
        aside, self._aside = self._aside, []
        for request in aside:
            self._answer(request)

    def _answer(self, request: Request) -> None:
        """A method's fault goes to the caller and the process lives on."""
        try:
            try:
                result = self._call(request)
            finally:
                close_all(request.fds)
        except MfError as error:
            self._refuse(request, error)
        except Exception as error:  # boundary: a call's fault goes to the caller; its text may hold a prompt, so only its kind is told
            log.error("%s failed: %s", request.method, type(error).__name__)
            self._refuse(request, MfError(f"the worker failed in {request.method}: {type(error).__name__}"))
        else:
            if request.number and result is not _LATER:
                self._channel.answer(request.number, result)

    def _refuse(self, request: Request, error: MfError) -> None:
        if request.number:
            self._channel.refuse(request.number, error)

    def _call(self, request: Request) -> Any:
        if request.cancel:
            return self._cancel(request.number)
        entry = self._kinds.get(request.method)
        if entry is None:
            return self._call_before(request)
        params, method = None if entry[0] is None else _params(request, entry[0]), entry[1]
        if request.method in _UNHURRIED:
            self._step_back()
        if request.method in ("step", "generate"):
            return self._begin(request, method, params)
        if request.method in ("take_compiled", "take_lane"):
            return method(params, request.fds)
        if request.method == "load_stage":
            return self._begin(request, lambda params, answer: method(params, request.fds, answer), params)
        return method(params)

    def _call_before(self, request: Request) -> Any:
        """What can be asked of a worker that wasn't configured."""
        if request.method == "ping":
            return None
        if request.method == "configure":
            return self._configure(_params(request, _CONFIG))
        raise BadInput(f"the worker doesn't know {request.method[:64]!r}, or wasn't configured yet")

    def _step_back(self) -> None:
        if not self._stepped_back:
            self._stepped_back = True
            ask_short_slice(os.nice(_NICE))

    def _begin(self, request: Request, method: Callable[..., Any], params: Any) -> Any:
        """Work that is answered after a pass, or many."""
        number = request.number

        def answer(result: Any) -> None:
            self._later.pop(number, None)
            if isinstance(result, MfError):
                self._refuse(request, result)
            elif number:
                self._channel.answer(number, result)

        if request.method == "generate":
            self._later[number] = params.session
        try:
            method(params, answer)
        except BaseException:
            self._later.pop(number, None)
            raise
        return _LATER

    def _cancel(self, number: int) -> Any:
        """A reply that nobody waits for any more ends before the next pass; other work is done by then, or takes no longer."""
        session = self._later.pop(number, None)
        if session is not None:
            self._engine.close_sequence(api.CloseSequence(session=session))
        return _LATER

    def _configure(self, config: api.WorkerConfig) -> api.Configured:
        if self._kinds:
            raise BadInput("configure: the worker is configured already")
        if config.ahead:
            self._step_back()
        import transformers

        from runtime import device, engine, sandbox
        from runtime.native import kernels

        kernels.found()  # may compile them, for which nothing is shut in yet
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        engine.set_threads(config.threads)
        taken = device.take(config.device)
        config.device, config.memory = taken.name, min(config.memory, taken.memory or config.memory)
        report = sandbox.enter(config.scratch, config.memory, device=taken.name)
        self._engine = engine.Engine(config, lambda notes: self._channel.tell("made", notes))
        self._kinds = self._methods(self._engine)
        if config.ahead:
            import_ahead()
        return api.Configured(sandbox=report, device=api.DeviceTold(name=taken.name, memory=config.memory))

    def _methods(self, engine: Any) -> dict[str, tuple[Any, Callable[..., Any]]]:
        texts = engine.texts
        kinds: dict[str, tuple[Any, Callable[..., Any]]] = {
            "load_text": (api.LoadText, texts.load_text),
            "load_stage": (api.LoadStage, engine.begin_load),
            "take_compiled": (api.TakeCompiled, engine.take_compiled),
            "unload": (api.Unload, engine.unload),
            "take_lane": (api.TakeLane, engine.lanes.take),
            "drop_lane": (api.DropLane, engine.lanes.drop),
            "encode_chat": (api.EncodeChat, texts.encode_chat),
            "encode_text": (api.EncodeText, texts.encode_text),
            "open_text": (api.OpenText, texts.open_text),
            "decode_text": (api.DecodeText, texts.decode_text),
            "open_sequence": (api.OpenSequence, engine.open_sequence),
            "step": (api.Step, engine.take_step),
            "generate": (api.Generate, engine.generate),
            "encode": (api.Encode, engine.encode),
            "close_sequence": (api.CloseSequence, engine.close_sequence),
            "usage": (None, lambda _params: engine.usage()),
        }
        return {name: (kind and msgspec.msgpack.Decoder(kind), method) for name, (kind, method) in kinds.items()}


_CONFIG = msgspec.msgpack.Decoder(api.WorkerConfig)


def _params(request: Request, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
    try:
        return decoder.decode(request.params)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadInput(f"{request.method}: {error}") from error


if __name__ == "__main__":
    main()
