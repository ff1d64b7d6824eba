"""One libtorrent session, run in the environment of libtorrent: a line of JSON in, a line of JSON out.

{"make": FILE}                       -> {"torrent": FILE.torrent}
{"seed": FILE, "torrent": PATH}      -> {"port": N} once it seeds
{"get": TORRENT, "to": FOLDER, "from": [PORTS]} -> {"seconds": S} once every piece is verified and written
"""

from __future__ import annotations

import json
import os
import sys
import time

import libtorrent as lt  # type: ignore[import-not-found]

WITHIN = 120.0
# Loopback has one address for all peers; nobody else is asked or told; TCP alone, uTP being the slower here.
SETTINGS = {
    "listen_interfaces": "127.0.0.1:0",
    "allow_multiple_connections_per_ip": True,
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_outgoing_utp": False,
    "enable_incoming_utp": False,
    "connection_speed": 200,
    "alert_mask": lt.alert.category_t.status_notification | lt.alert.category_t.error_notification,
}


class Peer:
    def __init__(self) -> None:
        self._session = lt.session({**lt.high_performance_seed(), **SETTINGS})

    def make(self, file: str) -> dict[str, object]:
        torrent = lt.create_torrent(lt.list_files(file))
        lt.set_piece_hashes(torrent, os.path.dirname(file))
        path = file + ".torrent"
        with open(path, "wb") as out:
            out.write(lt.bencode(torrent.generate()))
        return {"torrent": path}

    def seed(self, file: str, torrent: str) -> dict[str, object]:
        self._add(torrent, os.path.dirname(file), lt.torrent_flags.seed_mode)
        self._until(lambda handle: handle.status().is_seeding)
        return {"port": self._session.listen_port()}

    def get(self, torrent: str, to: str, ports: list[int]) -> dict[str, object]:
        began = time.monotonic()
        handle = self._add(torrent, to, 0)
        for port in ports:
            handle.connect_peer(("127.0.0.1", port))
        self._until(lambda handle: handle.status().is_seeding)
        took = time.monotonic() - began
        self._session.remove_torrent(handle)
        return {"seconds": took}

    def _add(self, torrent: str, folder: str, flags: int) -> object:
        asked = lt.add_torrent_params()
        asked.ti = lt.torrent_info(torrent)
        asked.save_path = folder
        asked.flags = (asked.flags & ~(lt.torrent_flags.paused | lt.torrent_flags.auto_managed)) | flags
        self._handle = self._session.add_torrent(asked)
        return self._handle

    def _until(self, reached) -> None:  # type: ignore[no-untyped-def]
        end = time.monotonic() + WITHIN
        while not reached(self._handle):
            if time.monotonic() > end:
                raise SystemExit(f"libtorrent: not done after {WITHIN:.0f} s: {self._handle.status().state}")
            self._session.wait_for_alert(20)
            self._session.pop_alerts()


def main() -> None:
    peer = Peer()
    for line in sys.stdin:
        asked = json.loads(line)
        if "make" in asked:
            answer = peer.make(asked["make"])
        elif "seed" in asked:
            answer = peer.seed(asked["seed"], asked["torrent"])
        else:
            answer = peer.get(asked["get"], asked["to"], asked["from"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
