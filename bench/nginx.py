"""The peer beside us: nginx on loopback, plain HTTP, serving one folder for curl to read, or to put files into."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from bench.environments import Missing, command

CONFIG = """
worker_processes 2; daemon off; error_log {root}/error.log; pid {root}/pid;
events {{ worker_connections 64; }}
http {{ sendfile on; access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fcgi;
  uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
  server {{ listen 127.0.0.1:{port}; root {served}; {more} }} }}
"""
TAKES_FILES = "dav_methods PUT; client_max_body_size 0;"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Nginx:
    """Serves `served` while entered; `url` of its root. With `puts` it takes files too, which needs nginx's dav module."""

    def __init__(self, served: Path, puts: bool = False) -> None:
        self._served = served
        self._binary = command("nginx", "nginx-light")
        self._more = TAKES_FILES if puts else ""
        self._root = Path(tempfile.mkdtemp(prefix="nginx-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Nginx:
        self._root.chmod(0o755)
        config = self._root / "nginx.conf"
        user = "user root;\n" if os.geteuid() == 0 else ""
        config.write_text(user + CONFIG.format(root=self._root, port=self._port, served=self._served.resolve(), more=self._more))
        self._process = subprocess.Popen([self._binary, "-c", str(config), "-p", str(self._root)], stderr=subprocess.DEVNULL)
        subprocess.run(
            ["curl", "-s", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", "-o", "/dev/null", self.url], check=False
        )
        if self._process.poll() is not None:
            self.__exit__(None, None, None)
            raise Missing("nginx doesn't start as configured" + (": its dav module is needed (Debian: nginx-light)" if self._more else ""))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(5)
        shutil.rmtree(self._root, ignore_errors=True)
