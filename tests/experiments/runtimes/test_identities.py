"""Certificates of a federation: who is trusted, under which names, for how long."""

import datetime
import ssl
import stat

import pytest
from cryptography import x509

from experiments.runtimes.identities import write_certificates


@pytest.fixture
def folder(tmp_path):
    write_certificates(tmp_path)
    return tmp_path


def shake_hands(server, authority, name):
    """Whether a client that trusts ``authority`` takes ``server`` for ``name``."""
    at_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    at_server.load_cert_chain(server / "server.crt", server / "server.key")
    at_client = ssl.create_default_context(cafile=str(authority / "ca.crt"))
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        at_client.wrap_bio(back, there, server_hostname=name),
        at_server.wrap_bio(there, back, server_side=True),
    ]
    for end in (0, 1, 0, 1):
        try:
            ends[end].do_handshake()
        except ssl.SSLWantReadError:
            continue
    return ends[0].version() is not None


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
def test_a_client_takes_the_server_by_its_loopback_names(folder, name):
    assert shake_hands(folder, folder, name)


@pytest.mark.parametrize("name", ["example.org", "127.0.0.2"])
def test_and_by_no_other(folder, name):
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(folder, folder, name)


def test_a_client_that_trusts_another_authority_does_not(folder, tmp_path):
    (tmp_path / "other").mkdir()
    write_certificates(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        shake_hands(folder, tmp_path / "other", "localhost")


def test_the_server_is_trusted_for_thirty_days_and_its_key_is_its_owners(folder):
    certificate = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    now = datetime.datetime.now(datetime.UTC)
    left = certificate.not_valid_after_utc - now
    assert certificate.not_valid_before_utc < now
    assert datetime.timedelta(days=29) < left <= datetime.timedelta(days=30)
    assert stat.S_IMODE((folder / "server.key").stat().st_mode) == 0o600
    assert sorted(path.name for path in folder.iterdir()) == ["ca.crt", "server.crt", "server.key"]
