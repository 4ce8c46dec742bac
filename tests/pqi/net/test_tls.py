from __future__ import annotations

import secrets
import shutil
import socket
import ssl
import stat
from pathlib import Path

import pytest
from netkit import ROLES, connect, files, together

from pqi.net.authority import issue, make_authority, write_keys
from pqi.net.channel import Channel
from pqi.net.errors import CannotConnect, CannotListen, ConnectionLost, HandshakeMismatch, NetError, Timeout, WrongPeer
from pqi.net.hello import Hello, answer, greet, hear
from pqi.net.listener import Listener
from pqi.net.tls import TlsFiles, context, dial, format_address, parse_address, secure


def close(*ends: object) -> None:
    for end in ends:
        if isinstance(end, Channel):
            end.close()


def test_both_ends_learn_the_others_role_from_its_certificate(keys: Path) -> None:
    a, b = connect(files(keys, "client"), files(keys, "server_b"), "server_b")
    assert isinstance(a, Channel)
    assert isinstance(b, Channel)
    assert (a.peer, b.peer) == ("server_b", "client")
    assert a._sock.version() == "TLSv1.3"
    assert a.fingerprint != b.fingerprint
    close(a, b)


def test_a_server_with_another_role_is_refused_before_anything_is_said(keys: Path) -> None:
    a, b = connect(files(keys, "client"), files(keys, "server_a"), "server_b")
    assert isinstance(a, WrongPeer)
    assert "expects server_b, but the certificate there says 'server_a'" in str(a)
    close(b)


def test_a_server_of_another_authority_is_refused(keys: Path, foreign_keys: Path) -> None:
    a, b = connect(files(keys, "client"), files(foreign_keys, "server_b"), "server_b")
    assert isinstance(a, WrongPeer)
    assert isinstance(b, NetError)


def test_a_client_of_another_authority_is_refused_by_the_server(keys: Path, foreign_keys: Path) -> None:
    theirs = files(foreign_keys, "client")
    mixed = TlsFiles(files(keys, "client").ca, theirs.certificate, theirs.key)
    a, b = connect(mixed, files(keys, "server_b"), "server_b")
    assert isinstance(b, WrongPeer)
    close(a)


@pytest.mark.parametrize("role", ["client", "dealer"])
def test_a_certificate_that_may_only_dial_cannot_pose_as_a_server(keys: Path, role: str) -> None:
    a, b = connect(files(keys, "client"), files(keys, role), role)
    assert isinstance(a, WrongPeer)
    close(b)


def test_a_visitor_without_a_certificate_is_refused(keys: Path) -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.verify_mode = ssl.CERT_NONE

    def visit(address: tuple[str, int]) -> bytes:
        with socket.create_connection(address) as sock, bare.wrap_socket(sock) as tls:
            return tls.recv(1)

    refused = _accept_one(keys, visit)
    assert isinstance(refused, WrongPeer)


def test_an_older_tls_version_is_refused(keys: Path) -> None:
    old = context(files(keys, "client"), server_side=False)
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    old.maximum_version = ssl.TLSVersion.TLSv1_2

    def visit(address: tuple[str, int]) -> None:
        with socket.create_connection(address) as sock, old.wrap_socket(sock):
            pass

    assert isinstance(_accept_one(keys, visit), WrongPeer)


def test_a_visitor_that_talks_no_tls_is_refused(keys: Path) -> None:
    def visit(address: tuple[str, int]) -> None:
        with socket.create_connection(address) as sock:
            sock.sendall(secrets.token_bytes(4096))
            sock.recv(1)

    assert isinstance(_accept_one(keys, visit), NetError)


def test_a_visitor_that_stays_silent_times_out(keys: Path) -> None:
    def visit(address: tuple[str, int]) -> bytes:
        with socket.create_connection(address) as sock:
            return sock.recv(1)

    refused = _accept_one(keys, visit, timeout=0.3)
    assert isinstance(refused, Timeout)
    assert "the TLS handshake" in str(refused)


def _accept_one(keys: Path, visit: object, timeout: float = 5.0) -> object:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            sock, _ = server.accept()
            ctx = context(files(keys, "server_a"), server_side=True)
            Channel(*secure(sock, ctx, server_side=True, peer="a visitor", timeout=timeout)).close()

        address = server.getsockname()[:2]
        return together(accept, lambda: visit(address))[0]  # type: ignore[operator]


def test_a_port_that_is_taken_says_what_to_do(keys: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(CannotListen, match=f"cannot listen at 127.0.0.1:{port}: address already in use. Stop"):
            Listener(
                ("127.0.0.1", port),
                context(files(keys, "server_a"), server_side=True),
                lambda channel: None,
                timeout=1,
                max_links=1,
            )


def test_a_port_where_nobody_listens_is_named(keys: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(CannotConnect, match=f"cannot connect to server_b at 127.0.0.1:{port}: connection refused"):
        dial(("127.0.0.1", port), context(files(keys, "client"), server_side=False), "server_b", 2)


def test_private_keys_are_for_their_owner_only(keys: Path) -> None:
    secret = [keys / "authority" / "ca_key.pem", *(files(keys, role).key for role in ROLES)]
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}
    assert {stat.S_IMODE((keys / role / "tls").stat().st_mode) for role in ROLES} == {0o700}
    assert not any("ca_key" in path.name for role in ROLES for path in (keys / role).rglob("*"))


def test_keys_are_never_replaced(keys: Path) -> None:
    with pytest.raises(FileExistsError, match="keys are made once"):
        write_keys(keys, ROLES)


def test_a_private_key_open_to_everyone_is_refused(keys: Path, tmp_path: Path) -> None:
    shutil.copytree(keys / "client" / "tls", tmp_path / "tls")
    (tmp_path / "tls" / "key.pem").chmod(0o644)
    with pytest.raises(WrongPeer, match="open to every user"):
        context(TlsFiles.in_directory(tmp_path / "tls"), server_side=False)


def test_missing_or_broken_tls_files_are_named(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongPeer, match=r"ca\.pem is missing"):
        context(TlsFiles.in_directory(tmp_path), server_side=False)
    shutil.copytree(keys / "client" / "tls", tmp_path / "tls")
    (tmp_path / "tls" / "cert.pem").write_text("no certificate")
    with pytest.raises(WrongPeer, match="cannot be used"):
        context(TlsFiles.in_directory(tmp_path / "tls"), server_side=False)


def test_an_authority_hides_its_key_and_knows_the_roles() -> None:
    authority = make_authority()
    assert "hidden" in repr(authority)
    with pytest.raises(ValueError, match="unknown role 'admin'"):
        issue(authority, "admin")


@pytest.mark.parametrize(("text", "address"), [("a.b:1", ("a.b", 1)), ("[::1]:65535", ("::1", 65535))])
def test_addresses_are_read_and_written(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address
    assert format_address(address) == text


@pytest.mark.parametrize("text", ["", "host", ":1", "host:", "host:x", "host:65536", "host:-1"])
def test_bad_addresses_are_refused_with_their_text(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        parse_address(text)


@pytest.mark.parametrize(
    ("field", "other"),
    [("deployment", {"deployment": "2" * 32}), ("digest", {"digest": "3" * 64}), ("role", {"role": "dealer"})],
)
def test_a_mismatch_is_found_by_both_sides_with_the_field_and_both_values(
    pair: tuple[Channel, Channel], field: str, other: dict[str, str]
) -> None:
    a, b = pair
    same = {"deployment": "0" * 32, "digest": "1" * 64, "session": "a" * 32}
    mine = Hello(role="server_a", **same)
    theirs = Hello(**{"role": "server_b", **same, **other})

    def accept() -> None:
        answer(b, theirs, hear(b, 5), 5)

    found = together(lambda: greet(a, mine, 5), accept)
    assert isinstance(found[0], HandshakeMismatch)
    assert field in str(found[0])
    assert getattr(mine, field)[:4] in str(found[0]) or field == "role"
    assert getattr(theirs, field) in str(found[0])
    assert field == "role" or isinstance(found[1], HandshakeMismatch)


def test_a_hello_without_a_proper_session_is_refused(pair: tuple[Channel, Channel]) -> None:
    a, b = pair
    a.send_control({"kind": "hello", "session": "short", "client": ""}, 5, "a hello")
    with pytest.raises(NetError, match="'session' of message 'hello' is not 32 hexadecimal digits"):
        hear(b, 5)


def test_a_lost_connection_names_what_was_going_on(pair: tuple[Channel, Channel]) -> None:
    a, b = pair
    b.close()
    with pytest.raises(ConnectionLost, match="its hello"):
        hear(a, 5)
