"""What the HTTP surface is told at start."""

from __future__ import annotations

from dataclasses import dataclass

from protocol import limits


@dataclass(frozen=True)
class HttpSettings:
    """`hosts`: names beside loopback's and the connection's own address that a `Host` header may give.

    `origins`: foreign web origins (`https://chat.example`) allowed to call. `open`: inference and public lists need no credential;
    `local`: the callers are this machine's programs, without limits; `behind_proxy`: X-Forwarded-For says who calls. Times in seconds,
    sizes in bytes;
    `grace` is what a generation gets beyond its own timeout before this layer ends it.
    """

    host: str = "127.0.0.1"
    port: int = 8640
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    max_body: int = 4 * limits.MIB
    body_timeout: float = 30.0
    write_timeout: float = 30.0
    list_timeout: float = 10.0
    generation_timeout: float = 600.0
    grace: float = 5.0
    shutdown_timeout: float = 1.0
    open: bool = True
    local: bool = True
    behind_proxy: bool = False
    ollama: bool = False
    """Whether Ollama's paths are answered too."""
