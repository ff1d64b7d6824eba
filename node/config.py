"""One frozen configuration from four places; later ones win: defaults, `config.toml`, `MF_*` variables, flags.

Every value passes one reader per field, whatever its source, so that a size or an address means the same
in the file, the environment and on the command line. Unknown keys are refused by name: a misspelled
`max-memroy` that is silently ignored is found when the machine swaps.

No msgspec here: `mf-node --help` and shell completion import this module.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from node.accounts.caller_entry import parse_entry
from protocol.errors import BadInput

FILE = "config.toml"
LEND = ("none", "storage", "compute", "both")
PRIVACY = ("local", "trusted", "swarm")
ENDS = ("remote", "local")
LOG_FORMATS = ("text", "json")
COMPRESSIONS = ("auto", "raw", "fast")
HTTP_ACCESS = ("auto", "open", "keyed")
TLS = ("none", "auto")
ENGINES = ("auto", "torch", "llama")
COMPILE = ("off", "background")
PRECISIONS = ("bf16", "fp32", "int8", "int4", "q8_0", "q4_1")

_DEFAULT_STORAGE = 20 * 10**9
_OTHER_VARIABLES = frozenset({"MF_DATA_DIR", "MF_ALLOW_SKIP", "MF_CACHE", "MF_KERNELS", "MF_API_KEY"})
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,2})?")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z")
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?\s*\Z", re.IGNORECASE)
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([smhd]?)\s*\Z", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class NodeConfig:
    """What one node runs with. Sizes in bytes, times in seconds, addresses `HOST:PORT` (port 0: any free one).

    `listen` are libp2p multiaddrs. They and `transfer` default to every interface: a node that only loopback can
    reach stores nothing for anyone. `http` defaults to loopback: it answers its owner's programs. `storage` bounds the
    shards kept here; `max_memory` weights + KV + activations (None: what the machine has).
    `operator` merges nodes of one owner into one failure domain; `region` says where the node is. `gone_after` is how long a node may be
    away before its shards are made anew elsewhere; `repair_bandwidth` the bytes a second that this node gives to that.
    `audits`: whether it looks that others hold what they announce. `round_trip_budget`: time per token that a route may spend on the
    network. `serve_layers`: whether a node that lends compute keeps layers loaded for others.
    `spare_worker`: whether a second worker process stands by.
    `reuse`: whether what was computed for a prompt may serve the next one that begins alike. `engine`: what models are loaded into;
    `device`: what they are computed on; `compile` off|background: whether layers are compiled for single rows. `precision`: of replies
    asked for over HTTP.

    `http_access`: whether inference and public lists need a credential (auto: beyond loopback they do). `tls`, `insecure_http` and
    `behind_proxy` say what protects a listener beyond loopback; `hosts` and `origins` which names it is called by and which pages may call.
    `webhook_targets`: hosts (`host` or `host:port`) that webhooks may call though they aren't public. `allow` and `deny`: callers of the
    HTTP API whom alone the owner lets in, or whom not: addresses, accounts' keys, homes.
    """

    data_dir: Path
    storage: int
    http: str = "127.0.0.1:8640"
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4840",)
    transfer: str = "0.0.0.0:4841"
    join: tuple[str, ...] = ()
    max_memory: int | None = None
    lend: str = "storage"
    privacy: str = "trusted"
    ends: str = "remote"
    label: str = "node"
    operator: str | None = None
    region: str | None = None
    compression: str = "auto"
    gone_after: float = 43_200.0
    round_trip_budget: float = 0.4
    repair_bandwidth: int = 4_000_000
    audits: bool = True
    serve_layers: bool = True
    spare_worker: bool = True
    reuse: bool = True
    engine: str = "auto"
    device: str = "cpu"
    compile: str = "off"
    precision: str = "bf16"
    http_access: str = "auto"
    tls: str = "none"
    insecure_http: bool = False
    behind_proxy: bool = False
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    ollama: bool = False
    webhook_targets: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    log_format: str = "text"
    json: bool = False


def parse_size(text: Any, where: str = "size") -> int:
    """Bytes of `120MB` (decimal), `2GiB` (binary), `1.5G`, or a plain number; `BadInput` naming `where`."""
    if isinstance(text, int) and not isinstance(text, bool):
        text = str(text)
    match = _SIZE.match(text) if isinstance(text, str) and len(text) <= 32 else None
    if match is None or (match[3] and not match[2]):
        raise BadInput(f"{where}: {text!r} is not a size", hint="for example 500MB, 20GB or 2GiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _POWER[match[2].lower()])


def parse_duration(text: Any, where: str = "duration") -> float:
    """Seconds of `30s`, `10m`, `12h`, `2d`, or a plain number; `BadInput` naming `where`."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = str(text)
    match = _DURATION.match(text) if isinstance(text, str) and len(text) <= 32 else None
    if match is None:
        raise BadInput(f"{where}: {text!r} is not a duration", hint="for example 30s, 10m or 12h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}[match[2].lower()]


def _gone_after(value: Any, where: str) -> float:
    seconds = parse_duration(value, where)
    if not 10 <= seconds <= 30 * 86_400:
        raise BadInput(f"{where}: {value!r} is not between 10 s and 30 days", hint="the default is 12h")
    return seconds


def _bandwidth(value: Any, where: str) -> int:
    size = parse_size(value, where)
    if size < 1_000:
        raise BadInput(f"{where}: {value!r} is less than 1 kB a second, too little to repair anything")
    return size


def split_address(text: str, where: str = "address") -> tuple[str, int]:
    """Host and port of `HOST:PORT` or `[V6]:PORT`; port 0 asks for any free one."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not bare or (":" in bare and bare == host) or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise BadInput(f"{where}: {text!r} is not HOST:PORT", hint="for example 127.0.0.1:8640 or [::1]:0")
    return bare, int(port)


def default_data_dir() -> Path:
    """`MF_DATA_DIR`, else where this system keeps a user's application data."""
    chosen = os.environ.get("MF_DATA_DIR")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("modelfloat", appauthor=False))


def default_storage(data_dir: Path) -> int:
    """min(20 GB, 10 % of what is free on the disk that will hold it)."""
    folder = data_dir.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return min(_DEFAULT_STORAGE, shutil.disk_usage(folder).free // 10)


def default_label() -> str:
    """The publisher's label: the user's name where it can be one, else `node`."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        return "node"
    return name if _LABEL.match(name) and name != "root" else "node"


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise BadInput(f"{where}: {value!r} is not a text")
    return value


def _address(value: Any, where: str) -> str:
    split_address(_text(value, where), where)
    return str(value)


def _multiaddr(value: str, where: str) -> str:
    if not re.match(r"/(ip4|ip6|dns|dns4|dns6)/[^/]+/tcp/[0-9]{1,5}\Z", value):
        raise BadInput(f"{where}: {value!r} is not a TCP multiaddr", hint="for example /ip4/0.0.0.0/tcp/4840")
    return value


def _many(value: Any, where: str) -> tuple[str, ...]:
    items = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise BadInput(f"{where}: {value!r} is not a list of texts")
    return tuple(_text(item, where) for item in items)


def _callers(value: Any, where: str) -> tuple[str, ...]:
    return tuple(parse_entry(item, where) for item in _many(value, where))


def _listen(value: Any, where: str) -> tuple[str, ...]:
    return tuple(_multiaddr(item, where) for item in _many(value, where))


def _join(value: Any, where: str) -> tuple[str, ...]:
    return tuple(_ticket(item, where) for item in _many(value, where))


def _ticket(value: str, where: str) -> str:
    """Only the shape, and without showing it: a ticket is a secret. The swarm checks the rest."""
    if not value.startswith("mft1"):
        raise BadInput(f"{where}: not a ticket: it doesn't begin with mft1", hint="paste the whole output of `mf-node ticket`")
    return value


def _one_of(*choices: str) -> Callable[[Any, str], str]:
    def read(value: Any, where: str) -> str:
        if value not in choices:
            raise BadInput(f"{where}: {value!r} is none of {', '.join(choices)}")
        return str(value)

    return read


def _device(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _DEVICE.fullmatch(value):
        raise BadInput(f"{where}: {str(value)[:32]!r} is none of auto, cpu, cuda, cuda:N, mps")
    return value


def _label(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _LABEL.match(value):
        raise BadInput(f"{where}: {value!r} is not a label", hint="letters, digits, dot, dash, underscore; at most 96")
    return value


def _switch(value: Any, where: str) -> bool:
    known = {True: True, False: False, "1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if not isinstance(value, bool | str) or value not in known:
        raise BadInput(f"{where}: {value!r} is neither true nor false")
    return known[value]


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "http": _address,
    "listen": _listen,
    "transfer": _address,
    "join": _join,
    "storage": parse_size,
    "max_memory": parse_size,
    "lend": _one_of(*LEND),
    "privacy": _one_of(*PRIVACY),
    "ends": _one_of(*ENDS),
    "label": _label,
    "operator": _label,
    "region": _label,
    "compression": _one_of(*COMPRESSIONS),
    "gone_after": _gone_after,
    "round_trip_budget": parse_duration,
    "repair_bandwidth": _bandwidth,
    "audits": _switch,
    "serve_layers": _switch,
    "spare_worker": _switch,
    "reuse": _switch,
    "engine": _one_of(*ENGINES),
    "device": _device,
    "compile": _one_of(*COMPILE),
    "precision": _one_of(*PRECISIONS),
    "http_access": _one_of(*HTTP_ACCESS),
    "tls": _one_of(*TLS),
    "insecure_http": _switch,
    "behind_proxy": _switch,
    "hosts": _many,
    "origins": _many,
    "ollama": _switch,
    "webhook_targets": _many,
    "allow": _callers,
    "deny": _callers,
    "log_format": _one_of(*LOG_FORMATS),
    "json": _switch,
}
assert set(_READERS) == {field.name for field in fields(NodeConfig)} - {"data_dir"}


def _from_file(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}  # whether the directory will do is for `DataDir` to say
    except OSError as error:
        raise BadInput(f"{path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not valid TOML: {error}") from error
    return _checked(table, lambda key: f"{path}: {key}")


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found = {key[3:].lower(): value for key, value in environ.items() if key.startswith("MF_") and key not in _OTHER_VARIABLES}
    return _checked(found, lambda key: f"MF_{key.upper()}")


def _checked(values: Mapping[str, Any], where: Callable[[str], str]) -> dict[str, Any]:
    unknown = sorted(set(values) - set(_READERS))
    if unknown:
        raise BadInput(f"unknown setting {', '.join(where(key) for key in unknown)}", hint=f"known are {', '.join(sorted(_READERS))}")
    return {key: _READERS[key](value, where(key)) for key, value in values.items()}


def load_config(data_dir: Path | None, flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> NodeConfig:
    """The configuration of one node. `flags` by field name, None where not given; `BadInput` names the source and key."""
    folder = (data_dir or default_data_dir()).expanduser().absolute()
    values = _from_file(folder / FILE)
    values |= _from_environment(os.environ if environ is None else environ)
    given = {key: value for key, value in flags.items() if value is not None and value != ()}
    values |= _checked(given, lambda key: f"--{key.replace('_', '-')}")
    values.setdefault("storage", default_storage(folder))
    values.setdefault("label", default_label())
    return NodeConfig(data_dir=folder, **values)
