"""TLS 1.3 with certificates on both sides. A peer's role comes from its verified certificate, never from its words."""

from __future__ import annotations

import hashlib
import select
import socket
import ssl
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pqi.net.authority import ROLE_URI
from pqi.net.errors import CannotConnect, ConnectionLost, Timeout, WrongPeer
from pqi.net.link import NONE, Link
from pqi.net.stream import TlsStream

ANYONE = "an unidentified peer"
_LAST_WORDS_SECONDS = 0.2


@dataclass(frozen=True)
class TlsFiles:
    """Paths of the authority's certificate, this role's certificate and its private key (PEM)."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def in_directory(cls, directory: Path) -> TlsFiles:
        """The files ``ca.pem``, ``cert.pem``, ``key.pem`` of a role's ``tls`` folder."""
        return cls(directory / "ca.pem", directory / "cert.pem", directory / "key.pem")


@dataclass(frozen=True)
class Identity:
    """Who is at the other end: role and SHA-256 fingerprint of the verified certificate."""

    role: str
    fingerprint: str


def context(files: TlsFiles, *, server_side: bool) -> ssl.SSLContext:
    """A TLS 1.3 context that trusts this authority only and demands a certificate from the peer.

    Raises WrongPeer with the file's name if a file is missing, unreadable, no key pair, or open to everyone.
    """
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    ctx.minimum_version = ssl.TLSVersion.TLSv1_3
    ctx.check_hostname = False  # the name that matters is the role in the certificate: see identify()
    ctx.verify_mode = ssl.CERT_REQUIRED
    ctx.verify_flags |= ssl.VERIFY_X509_STRICT
    ctx.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    if server_side:
        ctx.num_tickets = 0  # no resumption: every connection proves itself anew
    for path in (files.ca, files.certificate, files.key):
        if not path.is_file():
            raise WrongPeer(f"TLS file {path} is missing; `pqi keys` makes the files of every role")
    if files.key.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
        raise WrongPeer(
            f"private key {files.key} is open to every user of this machine; chmod 600 it, or make new keys"
        )
    try:
        ctx.load_verify_locations(cafile=str(files.ca))
        # A password, though empty: OpenSSL would ask for one at the terminal if the key were encrypted.
        ctx.load_cert_chain(str(files.certificate), str(files.key), password="")
    except (ssl.SSLError, OSError) as error:
        raise WrongPeer(f"TLS files in {files.key.parent} cannot be used: {_reason(error)}") from None
    return ctx


def identify(stream: TlsStream) -> Identity:
    """Role and fingerprint from the certificate that TLS verified. Raises WrongPeer if it carries no single role."""
    certificate, binary = stream.certificate()
    if not certificate or not binary:
        raise WrongPeer("the other side showed no certificate")
    names = certificate.get("subjectAltName", ())
    roles = [
        entry[1][len(ROLE_URI) :]
        for entry in (names if isinstance(names, tuple) else ())
        if len(entry) == 2 and entry[0] == "URI" and str(entry[1]).startswith(ROLE_URI)
    ]
    if len(roles) != 1:
        raise WrongPeer(f"the other side's certificate names {len(roles)} roles ({ROLE_URI}...); it must name one")
    return Identity(str(roles[0]), hashlib.sha256(binary).hexdigest())


def secure(
    sock: socket.socket, ctx: ssl.SSLContext, *, server_side: bool, peer: str, timeout: float
) -> tuple[TlsStream, Identity]:
    """TLS handshake on a connected socket under one deadline; takes over (and on failure closes) the socket.

    Raises WrongPeer (certificate refused), ConnectionLost, Timeout.
    """
    deadline = time.monotonic() + timeout
    try:
        stream = TlsStream(sock, ctx, server_side=server_side)
        _handshake(stream, deadline, peer, timeout)
        return stream, identify(stream)
    except ssl.SSLCertVerificationError as error:
        # TLS has told the peer why; that alert must reach it, or it would see a reset connection and no cause.
        let_last_words_arrive(sock, _LAST_WORDS_SECONDS)
        sock.close()
        raise WrongPeer(f"the certificate of {peer} is refused: {error.verify_message}") from None
    except ssl.SSLError as error:
        sock.close()
        raise WrongPeer(f"TLS with {peer} failed: {_reason(error)}") from None
    except OSError as error:
        sock.close()
        raise ConnectionLost(peer, "the TLS handshake", _reason(error)) from None
    except BaseException:
        sock.close()
        raise


def _handshake(stream: TlsStream, deadline: float, peer: str, timeout: float) -> None:
    while event := stream.handshake():
        poller = select.poll()
        poller.register(stream.fileno(), event)
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            raise Timeout(peer, "the TLS handshake", timeout)


def dial(
    address: tuple[str, int], ctx: ssl.SSLContext, role: str, timeout: float, link: Link = NONE
) -> tuple[TlsStream, Identity]:
    """Connect to ``role`` at (host, port) and check that the certificate there says that role.

    link: what to emulate of a network; here, how long it takes to connect over it.
    Raises CannotConnect, WrongPeer, ConnectionLost, Timeout; each names the role.
    """
    where = format_address(address)
    try:
        sock = socket.create_connection(address, timeout=timeout)
    except TimeoutError:
        raise CannotConnect(role, where, f"no answer within {timeout:g} s") from None
    except OSError as error:
        raise CannotConnect(role, where, _reason(error)) from None
    stream, identity = secure(sock, ctx, server_side=False, peer=role, timeout=timeout)
    if identity.role != role:
        stream.close()
        raise WrongPeer(f"at {where} this side expects {role}, but the certificate there says {identity.role!r}")
    link.connect()
    return stream, identity


def parse_address(text: str) -> tuple[str, int]:
    """("host", port) from "host:port" or "[v6]:port". Raises ValueError that shows the text."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"address {text!r} is not of the form host:port")
    return host.strip("[]"), int(port)


def format_address(address: tuple[str, int]) -> str:
    """The inverse of parse_address."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def let_last_words_arrive(sock: socket.socket, seconds: float) -> None:
    """Before a close: end this direction and read away, for a moment, what the peer still sends.

    A close with unread data in the buffer resets the connection and takes this side's last message with it.
    """
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        poller = select.poll()
        poller.register(sock.fileno(), select.POLLIN)
        deadline = time.monotonic() + seconds
        scrap = bytearray(1 << 16)
        # Below TLS: the content no longer matters, only that the buffer is empty at the close.
        while (left := deadline - time.monotonic()) > 0 and poller.poll(left * 1000):
            if not sock.recv_into(scrap):
                return


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error.strerror or "TLS error").lower().replace("_", " ")
    return (error.strerror or type(error).__name__).lower()
