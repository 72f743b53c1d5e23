"""Certificates and keys of a federation that is tried out on one machine."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

_LIFETIME = datetime.timedelta(days=30)


def private_folder(folder: Path) -> Path:
    """Make a folder that only its owner may enter."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    return folder


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, from its first byte on."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def write_certificates(folder: Path) -> None:
    """ca.crt, and server.crt and server.key for this host's loopback names.

    The authority's own key is not kept: nothing else can be signed by it.
    """
    authority = trustme.CA(organization_name="airllm federation", path_length=0)
    server = authority.issue_cert(
        "localhost", "127.0.0.1", "::1",
        organization_name="airllm federation",
        not_after=datetime.datetime.now(datetime.UTC) + _LIFETIME,
    )  # fmt: skip
    authority.cert_pem.write_to_path(folder / "ca.crt")
    server.cert_chain_pems[0].write_to_path(folder / "server.crt")
    write_private(folder / "server.key", server.private_key_pem.bytes())


def write_node_key(path: Path) -> Path:
    """A SuperNode's private key (P-384, OpenSSH) and, with ``.pub`` added, its public one."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_private(
        path,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        ),
    )
    public = path.with_name(f"{path.name}.pub")
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        + b"\n"
    )
    return path
