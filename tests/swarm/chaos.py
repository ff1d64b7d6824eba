"""Five nodes, a model in three stages, replies under way all the time, and something killed or stopped every few seconds.

Who asks goes on asking; what is killed is started again: a node's worker by the node, a node by its supervisor, which is here. A reply
counts as failed when it ends with an error. Replies are greedy and compared with the undisturbed ones. In the reference precision a reply
doesn't depend on where it was cut and taken up again; in bf16 what is taken up again, and what runs beside others, is summed in another
order, so a reply may go another way where two tokens were as good as equal, and nowhere else. In a model of random weights they are
everywhere: the reference precision runs such a one, which is quick, bf16 the demonstration's.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bootstrap.demo_model import demo_model
from node.model_cost import StageCost
from node.model_folder import scan
from node.model_manifest import build_manifest
from tests.support.processes import Node, Swarm
from tests.support.synthetic import SPECIAL, llama_config, llama_shapes, write_safetensors, write_tokenizer
from tests.support.wait import wait_until
from tests.swarm import near_ties, tools

TOKENS = 60
_LAYERS = 24
_LONGEST = 2 * TOKENS
ASKERS = 1
"""Nodes that are asked; the others may be killed whole. One, so that all sessions want the same layers of the same nodes."""
STARTED_WITHIN = 300.0
"""Seconds for a reply before anything is disturbed: several workers start for the first."""
BACK_AFTER = 6.0
"""Seconds for which a stopped process stays stopped, unless its node ends it before."""
EPSILON = {"fp32": 1e-3, "bf16": 0.25}
"""Logits, in the reference precision, by which a token may lie behind the best one and still be said."""
QUESTIONS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain to a child why the sky is blue.",
    "Name three animals that live in the forest.",
    "How do I boil an egg?",
    "What is a prime number?",
    "Tell me a story about a lonely lighthouse.",
    "Why do people keep diaries?",
)


def deep_llama(path: Path) -> Path:
    """28 MB in 24 layers, whose greedy replies are printable ASCII: the head knows no other tokens."""
    config = llama_config(256, _LAYERS, 256 + len(SPECIAL), 4, inner=512, context=4_096)
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}))
    write_safetensors(path / "model.safetensors", llama_shapes(config), 5, "BF16", 0.1)
    write_tokenizer(path)
    vocabulary = json.loads((path / "tokenizer.json").read_text())["model"]["vocab"]
    printable = {number for letter, number in vocabulary.items() if len(letter) == 1 and 33 <= ord(letter) <= 126}
    weights = path / "model.safetensors"
    size = int.from_bytes(weights.read_bytes()[:8], "little")
    entry = json.loads(weights.read_bytes()[8 : 8 + size])["lm_head.weight"]
    data = np.memmap(weights, dtype="<u2", mode="r+", offset=8 + size + entry["data_offsets"][0], shape=tuple(entry["shape"]))
    data[[row for row in range(entry["shape"][0]) if row not in printable]] = 0
    data.flush()
    return path


def memory_for(folder: Path, sessions: int, precision: str) -> str:
    """Room for a third of the layers with all sessions at once, and not for half of them."""
    manifest, _ = build_manifest(scan(folder), lambda done, total: None)
    cost, layers = StageCost(manifest, precision), manifest.summary.layers or 0
    part = layers // 3
    enough = max(cost.total(first, first + part, sessions * _LONGEST) for first in (0, part, layers - part))
    in_two = min(max(cost.total(0, cut, _LONGEST), cost.total(cut, layers, _LONGEST)) for cut in range(1, layers))
    assert enough < in_two, "two nodes would do"
    return str(enough)


@dataclass
class Told:
    """One reply: to which prompt, and what came."""

    prompt: int
    reply: tools.Reply


@dataclass
class Chaos:
    """`with chaos(...)`: `undisturbed` replies by their pieces, then `run` for so many seconds; `kept` is where its logs lie."""

    swarm: Swarm
    folder: Path
    model: str
    prompts: list[str]
    kept: Path
    precision: str = "fp32"
    undisturbed: list[list[str]] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    harmed: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def calm(self) -> None:
        """The replies that nothing disturbs; every node has run something afterwards."""
        for number, prompt in enumerate(self.prompts):
            reply = self._reply(self.swarm.nodes[number % ASKERS], prompt, TOKENS, STARTED_WITHIN)
            assert reply.error is None, reply.error
            assert len(reply.route) >= 3, reply.route
            self.undisturbed.append(reply.pieces)
        for node in self.swarm.nodes[ASKERS:]:
            assert self._reply(node, self.prompts[0], 20, STARTED_WITHIN).error is None

    def _reply(self, node: Node, prompt: str, tokens: int, timeout: float = 120.0) -> tools.Reply:
        return tools.ask(node, self.model, prompt, tokens, precision=self.precision, timeout=timeout)

    def run(self, seconds: float, every: float, harm: Callable[[Chaos, int], str]) -> None:
        """Asks in `len(prompts)` sessions for so long; `harm(self, n)` is done every so many seconds."""
        askers = [threading.Thread(target=self._ask, args=(number,)) for number in range(len(self.prompts))]
        for asker in askers:
            asker.start()
        began = time.monotonic()
        for number in itertools.count():
            if self._over.wait(max(0.0, began + (number + 1) * every - time.monotonic())) or time.monotonic() - began >= seconds:
                break
            self.harmed.append(harm(self, number))
        self._over.set()
        for asker in askers:
            asker.join()

    def _ask(self, number: int) -> None:
        node = self.swarm.nodes[number % ASKERS]
        while not self._over.is_set():
            reply = self._reply(node, self.prompts[number], TOKENS)
            with self._lock:
                self.told.append(Told(number, reply))
            if reply.error is not None:
                self._over.wait(1.0)

    # What is shown

    def failed(self) -> list[str]:
        return [str(told.reply.error) for told in self.told if told.reply.error is not None]

    def different(self) -> list[Told]:
        return [told for told in self.told if told.reply.error is None and told.reply.text != "".join(self.undisturbed[told.prompt])]

    def gaps(self) -> list[float]:
        """Of each reply that differs: how far the token where it first does, or the undisturbed one there, lies behind the best."""
        differing = self.different()
        wanted = [(self.prompts[told.prompt], self.undisturbed[told.prompt], told.reply.text) for told in differing]
        return near_ties.gaps(self.folder, wanted) if differing else []

    def longest_wait(self) -> float:
        """For a reply's first token too."""
        return max((told.reply.longest_wait for told in self.told), default=0.0)

    def report(self, what: str) -> None:
        """The figures to whoever reads the output, all replies beside the nodes' logs."""
        kept = {"undisturbed": self.undisturbed, "told": [[one.prompt, one.reply.text, str(one.reply.error)] for one in self.told]}
        (self.kept / "replies.json").write_text(json.dumps(kept, indent=1))
        replaced = sum(told.reply.replaced for told in self.told)
        figures = f"{len(self.told)} replies, {len(self.failed())} failed, {len(self.different())} different, {replaced} stages replaced"
        pause = max((told.reply.longest_pause for told in self.told), default=0.0)
        waits = f"longest pause {pause:.2f} s, {self.longest_wait():.2f} s with those before a first token"
        tools.report(what, f"{figures}, {waits}, gaps {[round(one, 3) for one in self.gaps()]}; {', '.join(self.harmed)}")


def begin(folder: Path, sessions: int, precision: str) -> tuple[Path, list[str], tuple[str, ...]]:
    """(model folder, prompts, options of every node)."""
    if precision == "fp32":
        model, rng = deep_llama(folder / "model"), random.Random(3)
        prompts = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=40)) for _ in range(sessions)]
    else:
        model, prompts = demo_model(), list(QUESTIONS[:sessions])
    return model, prompts, ("--lend", "both", "--max-memory", memory_for(model, sessions, precision))


@contextlib.contextmanager
def chaos(folder: Path, sessions: int, precision: str = "fp32"):  # type: ignore[no-untyped-def]
    """A swarm with the model in it, ready to be disturbed."""
    model, prompts, options = begin(folder, sessions, precision)
    with Swarm(folder, 5, *options, env={"MF_AUDITS": "false", "MF_SPARE_WORKER": "true"}) as swarm:
        told = swarm.nodes[0].cli("publish", str(model), "--name", "deep", "--k", "2", "--n", "5", "--compression", "raw")
        for node in swarm.nodes:
            wait_until(lambda node=node: node.cli("models", "deep")["models"] != [], 20.0, "every node knows the model")
        made = Chaos(swarm, model, told["model_id"], prompts, folder, precision)
        made.calm()
        yield made


# Harms


def busy_worker(made: Chaos, number: int) -> tuple[Node, int] | None:
    """A worker that runs, one node after the other."""
    for turn in range(len(made.swarm.nodes)):
        node = made.swarm.nodes[(number + turn) % len(made.swarm.nodes)]
        pid = tools.process_of(node, tools.WORKER) if node.alive else None
        if pid is not None and tools.running(pid):
            return node, pid
    return None


def harm_worker(how: signal.Signals) -> Callable[[Chaos, int], str]:
    def harm(made: Chaos, number: int) -> str:
        found = busy_worker(made, number)
        if found is None:
            return "nobody"
        with contextlib.suppress(ProcessLookupError):
            os.kill(found[1], how)
        return f"worker of {found[0].data_dir.name}"

    return harm


def kill_node(made: Chaos, node: Node) -> str:
    node.kill()
    threading.Thread(target=node.start, args=("--log-format", "json")).start()
    return f"all of {node.data_dir.name}"


def stop_node(made: Chaos, node: Node) -> str:
    node.freeze()
    threading.Timer(BACK_AFTER, node.thaw).start()
    return f"all of {node.data_dir.name}"


def harm_mostly_workers(how: signal.Signals, whole: Callable[[Chaos, Node], str], at: tuple[int, ...]) -> Callable[[Chaos, int], str]:
    """Workers in turn, at the numbers given a whole node."""
    worker = harm_worker(how)

    def harm(made: Chaos, number: int) -> str:
        if number in at:
            return whole(made, made.swarm.nodes[ASKERS + at.index(number) % (5 - ASKERS)])
        return worker(made, number)

    return harm
