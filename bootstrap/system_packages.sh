#!/usr/bin/env bash
# Sees that what pip must compile can be compiled: gcc, Python's headers, GMP's headers, venv itself. Commands named after the
# Python (the tests' strace) are packages of the same name.
# Installs what lacks where it may (root, or sudo without a password, on Debian and Ubuntu); else names it and stops.
set -euo pipefail
python="${1:-python3}"
missing=()
command -v gcc >/dev/null || missing+=(gcc)
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
header() { test -n "$(find "$@" -maxdepth 3 -name "$name" -print -quit 2>/dev/null)"; }
name=Python.h
header "$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')" || missing+=(python3-dev)
name=gmp.h
header /usr/include /usr/local/include || missing+=(libgmp-dev)
for extra in "${@:2}"; do command -v "$extra" >/dev/null || missing+=("$extra"); done
test ${#missing[@]} -eq 0 && exit 0
echo "needed: ${missing[*]}"
if command -v apt-get >/dev/null; then
  if test "$(id -u)" -eq 0; then as=(); elif sudo -n true 2>/dev/null; then as=(sudo -n); else as=(false); fi
  if "${as[@]+"${as[@]}"}" env true; then
    "${as[@]+"${as[@]}"}" apt-get update -qq
    "${as[@]+"${as[@]}"}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}"
    exit 0
  fi
fi
echo "install them (Debian, Ubuntu: sudo apt-get install ${missing[*]}), then run make again" >&2
exit 1
