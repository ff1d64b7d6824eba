"""The checks of `mf-node doctor`: {"name", "state": ok|warn|fail, "detail", "hint"} each."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from node.config import NodeConfig, load_config, split_address
from node.data_dir import FORMAT, running_pid
from node.worker_process import kernels_folder
from protocol.errors import MfError
from runtime.native.kernels import FOLDER

_PACKAGES = ("libp2p", "trio", "aiohttp", "cryptography", "blake3", "zfec", "msgspec", "msgpack", "torch", "transformers", "tokenizers")
_SANDBOX = "import json; from runtime.sandbox import report; print(json.dumps(report(), default=str))"
_COMPILERS = ("g++", "clang++")
_DEVICES = "from runtime.device import found; print(', '.join(one.name for one in found()))"
_YEAR_2025 = 1_735_689_600
Check = dict[str, Any]


def _check(name: str, state: str, detail: str, hint: str | None = None) -> Check:
    return {"name": name, "state": state, "detail": detail, "hint": hint}


def all_checks(data_dir: Path) -> list[Check]:
    """In the order a person should mend them. Reads the machine; writes one file in the data directory and removes it."""
    try:
        config: NodeConfig | None = load_config(data_dir, {})
        found = [_check("configuration", "ok", f"{data_dir}")]
    except MfError as error:
        config, found = None, [_check("configuration", "fail", error.message, error.hint)]
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("python", _python),
        ("packages", _packages),
        ("engines", _engines),
        ("kernels", _kernels),
        ("compiler", lambda: _compiler(config.compile if config is not None else "off")),
        ("device", lambda: _device(config.device if config is not None else "cpu")),
        ("erasure code", _isal),
        ("sandbox", _sandbox),
        ("processor", _processor),
        ("memory", _memory),
        ("data directory", lambda: _data_dir(data_dir)),
        ("disk", lambda: _disk(data_dir)),
        ("clock", _clock),
    ]
    if config is not None:
        checks.append(("ports", lambda: _ports(config)))
    return found + [_guarded(name, check) for name, check in checks]


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except (OSError, ValueError, MfError, subprocess.SubprocessError) as error:
        return _check(name, "warn", f"couldn't be checked: {error}")


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return _check("python", "ok", f"{version} on {sys.platform}")


def _packages() -> Check:
    missing = []
    for name in _PACKAGES:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return _check("packages", "fail", f"missing: {', '.join(missing)}", "make venv")
    return _check(
        "packages", "ok", f"torch {importlib.metadata.version('torch')}, transformers {importlib.metadata.version('transformers')}"
    )


def _engines() -> Check:
    """llama.cpp is an extra: without it torch runs everything."""
    from runtime.llama.library import VERSION, missing

    why = missing()
    if why is not None:
        return _check("engines", "ok", f"torch; llama.cpp: {why}")
    return _check("engines", "ok", f"torch, llama.cpp (xllamacpp {VERSION})")


def _kernels() -> Check:
    """Compiles them where that wasn't done yet: somebody who asks has the time, a first reply hasn't."""
    done = subprocess.run(
        [sys.executable, "-m", "runtime.native.kernels"],
        env={**os.environ, FOLDER: kernels_folder()},
        capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    said = (done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no word"])[-1][:200]
    if done.returncode != 0 or "compiled for" not in said:
        return _check("kernels", "ok", f"torch's own: {said}")
    return _check("kernels", "ok", said)


def _compiler(asked: str) -> Check:
    """Only `--compile background` needs one."""
    found = next((name for name in _COMPILERS if shutil.which(name)), None)
    if found is not None:
        return _check("compiler", "ok", f"{found} is here, layers {'are' if asked != 'off' else 'could be'} compiled in the background")
    if asked == "off":
        return _check("compiler", "ok", "none here, and none is needed: layers run as they are")
    return _check("compiler", "warn", "none here: layers run as they are", "install g++, or leave --compile off")


def _device(asked: str) -> Check:
    """In a process of its own: a graphics driver takes memory of the one that asks."""
    done = subprocess.run([sys.executable, "-c", _DEVICES], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    if done.returncode != 0:
        return _check("device", "warn", f"torch couldn't be asked: {(done.stderr.strip().splitlines() or ['no word'])[-1][:200]}")
    here = done.stdout.strip().split(", ")
    taken = here[0] if asked == "auto" else next((name for name in here if name == asked or name.startswith(f"{asked}:")), None)
    if taken is None:
        return _check("device", "fail", f"{asked} isn't here; this machine has {', '.join(here)}", "--device auto takes the best there is")
    rest = f"; {here[0]} is here too: --device {here[0]} (not tried on such hardware)" if taken != here[0] else ""
    return _check("device", "ok", f"models are computed on {taken}{rest}")


def _isal() -> Check:
    spec = importlib.util.find_spec("pyeclib")
    folder = Path(spec.origin).parent.parent / "pyeclib.libs" if spec and spec.origin else Path("/nonexistent")
    if list(folder.glob("libisal*")):
        return _check("erasure code", "ok", "ISA-L, zfec as its oracle")
    return _check("erasure code", "warn", "zfec alone: coding is 20 to 50 times slower", "install pyeclib's wheel, or libisal2")


def _sandbox() -> Check:
    """In a process of its own: asking the kernel may restrict the one that asks."""
    done = subprocess.run([sys.executable, "-c", _SANDBOX], capture_output=True, text=True, timeout=30, cwd=Path(__file__).parents[2])
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no word"]
        return _check("sandbox", "warn", f"couldn't be asked: {last[0][:200]}")
    report = json.loads(done.stdout)
    items = report.items() if isinstance(report, dict) else []
    detail = ", ".join(f"{name} {value}" for name, value in items) or str(report)
    lacking = [
        name for name, value in items if value is False or value == 0 or (isinstance(value, str) and value.startswith(("no", "miss")))
    ]
    if lacking:
        return _check("sandbox", "warn", detail, f"without {', '.join(lacking)} a model's files are contained less")
    return _check("sandbox", "ok", detail)


def _processor() -> Check:
    flags: set[str] = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            flags = set(line.partition(":")[2].split())
            break
    useful = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16") if flag in flags]
    detail = f"{os.cpu_count()} cores, {' '.join(useful) or 'no wide vector instructions'}"
    return _check("processor", "ok" if useful else "warn", detail, None if useful else "models will run slowly")


def _memory() -> Check:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
    free, total = (int(lines[name].split()[0]) * 1024 / 1e9 for name in ("MemAvailable", "MemTotal"))
    low = free < 1.5
    return _check(
        "memory", "warn" if low else "ok", f"{free:.1f} of {total:.1f} GB free", "a model needs about 1.5 GB with torch" if low else None
    )


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _data_dir(data_dir: Path) -> Check:
    folder = _existing(data_dir)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")
    mark = data_dir / "format"
    if mark.exists() and mark.read_text().strip() != str(FORMAT):
        return _check("data directory", "fail", f"{data_dir} has format {mark.read_text().strip()[:8]}, this version knows {FORMAT}")
    pid = running_pid(data_dir)
    state = f"in use by process {pid}" if pid else "free"
    return _check("data directory", "ok", f"{data_dir} is writable, {state}")


def _disk(data_dir: Path) -> Check:
    folder = _existing(data_dir)
    free = shutil.disk_usage(folder).free / 1e9
    kind = _filesystem(folder)
    if kind in ("nfs", "nfs4", "cifs", "fuse.sshfs"):
        return _check("disk", "warn", f"{free:.0f} GB free on {kind}", "a network file system breaks SQLite's locks; use a local disk")
    if kind == "tmpfs":
        return _check("disk", "warn", f"{free:.0f} GB free on tmpfs", "shards would be gone after a restart")
    return _check("disk", "ok" if free > 2 else "warn", f"{free:.0f} GB free on {kind}", None if free > 2 else "little room for shards")


def _filesystem(folder: Path) -> str:
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, name, *_ = line.split(" ")
        if folder.resolve().is_relative_to(place) and len(place) >= len(best):
            best, kind = place, name
    return kind


def _clock() -> Check:
    if time.time() < _YEAR_2025:
        return _check("clock", "fail", time.strftime("%Y-%m-%d %H:%M"), "set it: signed records of others would look expired")
    return _check("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def _ports(config: NodeConfig) -> Check:
    if running_pid(config.data_dir):
        return _check("ports", "ok", "in use by the running node")
    wanted = [("http", split_address(config.http)), ("transfer", split_address(config.transfer))]
    wanted += [("listen", (address.split("/")[2], int(address.rsplit("/", 1)[1]))) for address in config.listen]
    taken = [f"{name} {host}:{port}" for name, (host, port) in wanted if port and not _free(host, port)]
    if taken:
        return _check("ports", "fail", f"taken: {', '.join(taken)}", "choose others with --http, --listen, --transfer (port 0: any)")
    return _check("ports", "ok", ", ".join(f"{name} {port}" for name, (_, port) in wanted) + " are free")


def _free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError:
            return False
    return True
