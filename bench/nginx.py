"""The peer beside us: nginx serving one folder on loopback, plain HTTP, for curl to read."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

CONFIG = """
worker_processes 2; daemon off; error_log {root}/error.log; pid {root}/pid;
events {{ worker_connections 64; }}
http {{ sendfile on; access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fcgi;
  uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
  server {{ listen 127.0.0.1:{port}; root {served}; }} }}
"""


class Nginx:
    """Serves `served` while entered; `url` of its root."""

    def __init__(self, served: Path) -> None:
        self._served = served
        self._root = Path(tempfile.mkdtemp(prefix="nginx-"))
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Nginx:
        binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        if binary is None:
            raise SystemExit("nginx is needed for this comparison: install it (Debian: apt-get install nginx-light curl)")
        self._root.chmod(0o755)
        config = self._root / "nginx.conf"
        user = "user root;\n" if os.geteuid() == 0 else ""
        config.write_text(user + CONFIG.format(root=self._root, port=self._port, served=self._served.resolve()))
        self._process = subprocess.Popen([binary, "-c", str(config), "-p", str(self._root)], stderr=subprocess.DEVNULL)
        subprocess.run(
            ["curl", "-s", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", "-o", "/dev/null", self.url], check=False
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(5)
        shutil.rmtree(self._root, ignore_errors=True)
