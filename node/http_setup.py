"""How the HTTP listener is set up: who may come in, and that nothing secret crosses a network in the open.

On loopback the callers are this machine's programs. Beyond it a listener wants TLS (`tls = "auto"`: a certificate of its own), or the
owner's word that something else sees to that: a proxy in front (`behind_proxy`), or that he knows what he does (`insecure_http`).
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from node.config import NodeConfig, split_address
from node.data_dir import write_durably
from node.http.settings import HttpSettings
from protocol.errors import BadInput

CERTIFICATE, KEY = "http.crt", "http.key"
LIFETIME = datetime.timedelta(days=397)
RENEW_BEFORE = datetime.timedelta(days=30)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def http_settings(config: NodeConfig) -> HttpSettings:
    """The listener's settings; `BadInput` for one beyond loopback that would carry keys in the open."""
    host, port = split_address(config.http)
    local = is_loopback(host)
    if not local and config.tls == "none" and not (config.insecure_http or config.behind_proxy):
        raise BadInput(
            f"--http {config.http} is reached from other machines: keys and prompts would cross the network in the open",
            hint="give --tls auto, or --behind-proxy where a proxy does TLS, or --insecure-http if you mean it",
        )
    own = local and not config.behind_proxy
    opened = config.http_access == "open" or (config.http_access == "auto" and own)
    return HttpSettings(
        host=host,
        port=port,
        hosts=config.hosts,
        origins=config.origins,
        open=opened,
        local=own,
        behind_proxy=config.behind_proxy,
        ollama=config.ollama,
    )


def tls_context(folder: Path, config: NodeConfig) -> ssl.SSLContext | None:
    """TLS with this node's own certificate, made or renewed where needed; None where none is wanted. Touches the disk."""
    if config.tls == "none":
        return None
    names = certificate_names(split_address(config.http)[0], config.hosts)
    certificate, key = folder / CERTIFICATE, folder / KEY
    if not _still_good(certificate, key, names):
        made_key, made = make_certificate(names)
        write_durably(key, made_key)
        write_durably(certificate, made, mode=0o644)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


def certificate_fingerprint(folder: Path) -> str:
    """SHA-256 of the certificate in hex, in pairs as browsers and openssl show it: what a person compares before trusting it."""
    certificate = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def certificate_names(host: str, hosts: Sequence[str]) -> list[str]:
    """What a client may call this machine."""
    every = host in ("0.0.0.0", "::", "")
    found = ["localhost", "127.0.0.1", "::1", socket.gethostname(), *hosts, *([] if every else [host])]
    return list(dict.fromkeys(name for name in found if name))


def make_certificate(names: Sequence[str]) -> tuple[bytes, bytes]:
    """(private key, certificate), PEM: P-256, self-signed, for these names and addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ModelFloat node")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return pem, made.public_bytes(serialization.Encoding.PEM)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _still_good(certificate: Path, key: Path, names: Sequence[str]) -> bool:
    try:
        made = x509.load_pem_x509_certificate(certificate.read_bytes())
        alternative = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    has = {str(general.value) for general in alternative}
    left = made.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return left > RENEW_BEFORE and set(names) <= has and os.path.exists(key)
