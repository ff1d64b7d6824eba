"""`run`: the node itself. `demo`: six of them and a story."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from node.cli.session import Session, common


@click.command()
@click.option("--http", metavar="HOST:PORT", help="Where the HTTP API listens. [default: 127.0.0.1:8640]")
@click.option("--http-access", type=click.Choice(["auto", "open", "keyed"]), help="Whether asking needs a key. [default: beyond loopback]")
@click.option("--tls", type=click.Choice(["none", "auto"]), help="auto: HTTPS with a certificate of this node's own.")
@click.option("--insecure-http", is_flag=True, default=None, help="Listen beyond loopback without TLS.")
@click.option("--behind-proxy", is_flag=True, default=None, help="A proxy in front does TLS and says who calls (X-Forwarded-For).")
@click.option("--allow", multiple=True, metavar="CALLER", help="Let these in over HTTP and nobody else; may be repeated.")
@click.option("--deny", multiple=True, metavar="CALLER", help="Never let these in over HTTP; may be repeated.")
@click.option("--listen", multiple=True, metavar="MULTIADDR", help="Where peers reach this node. [default: /ip4/0.0.0.0/tcp/4840]")
@click.option("--transfer", metavar="HOST:PORT", help="Where shards are served. [default: 0.0.0.0:4841]")
@click.option("--join", multiple=True, metavar="TICKET", help="Join by a member's ticket; may be repeated.")
@click.option("--storage", metavar="SIZE", help="Room for shards, e.g. 20GB. [default: 20 GB, at most 10 % of what is free]")
@click.option("--max-memory", metavar="SIZE", help="Weights, cache and activations of models run here.")
@click.option("--engine", type=click.Choice(["auto", "torch", "llama"]), help="What models are loaded into. [default: auto]")
@click.option("--compile", type=click.Choice(["off", "background"]), help="Compiles layers for replies one at a time. [default: off]")
@click.option("--device", metavar="DEVICE", help="Computes on: auto, cpu, cuda, cuda:N or mps. [default: cpu]")
@click.option("--precision", type=click.Choice(["bf16", "fp32", "int8", "int4", "q8_0", "q4_1"]), help="Of HTTP's replies. [default: bf16]")
@click.option("--lend", type=click.Choice(["none", "storage", "compute", "both"]), help="What strangers may use. [default: storage]")
@click.option("--privacy", type=click.Choice(["local", "trusted", "swarm"]), help="Who may see what is asked here. [default: trusted]")
@click.option("--ends", type=click.Choice(["remote", "local"]), help="Whether first and last layers may run elsewhere. [default: remote]")
@click.option("--label", help="The publisher's name of this node. [default: the user's]")
@click.option("--operator", help="Merges nodes of one owner into one failure domain.")
@click.option("--region", help="Where the node is, in words its neighbours use too: shards are read within a region where they can.")
@click.option("--gone-after", metavar="TIME", help="How long a node may be away before its shards are made anew. [default: 12h]")
@click.option("--repair-bandwidth", metavar="SIZE", help="Bytes a second for making shards anew. [default: 4MB]")
@click.option("--round-trip-budget", metavar="TIME", help="Most time per token that a route spends on the network. [default: 0.4s]")
@click.option("--ollama", is_flag=True, default=None, help="Answer Ollama's paths too: /api/chat, /api/generate, /api/tags and so on.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Logs on standard error. [default: text]")
@common
def run(session: Session, **flags: Any) -> None:
    """Run a node until Ctrl-C or SIGTERM."""
    import asyncio
    import faulthandler

    from node.config import load_config
    from node.logs import configure_logs

    config = load_config(session.data_dir, {**flags, "json": session.json or None})
    configure_logs(config.log_format)
    faulthandler.enable(2)
    from node.daemon import run_node

    def on_ready(ready: dict[str, Any]) -> None:
        sys.stdout.write((json.dumps(ready) if config.json else _sentence(ready, config.storage, config.lend)) + "\n")
        sys.stdout.flush()

    asyncio.run(run_node(config, on_ready))


def _sentence(ready: dict[str, Any], storage: int, lend: str) -> str:
    lent = {"none": "nothing", "storage": "storage, no compute", "compute": "compute, no storage", "both": "storage and compute"}[lend]
    seen = f" (certificate's SHA-256 {ready['http_fingerprint']})" if "http_fingerprint" in ready else ""
    return f"ready: {ready['peer_id']} at {ready['http']}{seen}, storing at most {storage / 1e9:.1f} GB, lending strangers {lent}"


@click.command()
@click.option("--exit", "leave", is_flag=True, help="Stop everything at the end instead of staying up.")
@click.option("--nodes", default=6, show_default=True, type=click.IntRange(4, 12), help="Nodes of the swarm.")
@click.option("--keep", is_flag=True, help="Keep the nodes' directories.")
@common
def demo(session: Session, leave: bool, nodes: int, keep: bool) -> int:
    """Show the whole story here: publish, kill nodes, ask, ask in stages."""
    from bootstrap.demo import run_demo

    return run_demo(nodes=nodes, leave=leave, keep=keep, as_json=session.json)
