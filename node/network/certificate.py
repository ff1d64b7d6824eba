"""The node's TLS certificate for its data plane, made as libp2p's TLS specification has it.

A fresh P-256 key signs the certificate; an extension carries the node's public key and its signature over
that key, so that the PeerID can be read from the certificate. Peers pin its SHA-256 from the signed NodeRecord.
"""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.crypto.ed25519 import Ed25519PrivateKey as HostKey
from libp2p.security.tls.certificate import create_cert_template, generate_certificate, verify_certificate_chain

from protocol.errors import BadInput
from protocol.ids import PeerId, peer_from_public


def make_certificate(key: Ed25519PrivateKey) -> tuple[bytes, bytes, bytes]:
    """(private key PEM, certificate PEM, SHA-256 of the certificate's DER: 32 bytes). Valid for a hundred years."""
    host = HostKey.from_bytes(key.private_bytes_raw())
    certificate_pem, key_pem = generate_certificate(host, create_cert_template())
    der = x509.load_pem_x509_certificate(certificate_pem.encode()).public_bytes(serialization.Encoding.DER)
    return key_pem.encode(), certificate_pem.encode(), hashlib.sha256(der).digest()


def peer_of_certificate(certificate_pem: bytes) -> PeerId:
    """The PeerID the certificate proves; `BadInput` where extension, signature or dates don't hold."""
    try:
        public = verify_certificate_chain([x509.load_pem_x509_certificate(certificate_pem)])
    except Exception as error:  # boundary: the bytes are a stranger's, and the parsers below raise what they like
        raise BadInput(f"not a libp2p certificate: {error}") from error
    return peer_from_public(bytes(public.to_bytes()))
