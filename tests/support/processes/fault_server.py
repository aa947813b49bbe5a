"""A TLS server on loopback with the misbehaviour that a test chooses."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import ipaddress
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

# A close with this option sends a reset instead of a FIN.
NO_LINGER = struct.pack("ii", 1, 0)


class Peer:
    """One connection from its behaviour's view."""

    def __init__(self, sock: socket.socket, stopping: threading.Event) -> None:
        self.sock = sock
        self.stopping = stopping

    def read_request(self) -> bytes:
        """One whole request, b"" when the client left."""
        received = b""
        while b"\r\n\r\n" not in received:
            piece = self.sock.recv(65536)
            if not piece:
                return b""
            received += piece
        head, _, body = received.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        while len(body) < length:
            body += self.sock.recv(65536)
        return head + b"\r\n\r\n" + body

    def send(self, content: bytes) -> None:
        self.sock.sendall(content)

    def drip(self, content: bytes, *, every_s: float) -> None:
        """One byte at a time, until the test is over."""
        for byte in content:
            if self.stopping.wait(every_s):
                return
            self.sock.sendall(bytes([byte]))

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        # Below TLS: a TLS close alert would be sent before the reset.
        socket.socket(fileno=self.sock.detach()).close()

    def hold(self) -> None:
        """Stay silent until the test is over."""
        self.stopping.wait(60)


Behaviour = Callable[[Peer], None]


class FaultServer:
    """Serves each connection in a separate thread; all threads end with `close`."""

    def __init__(self, behave: Behaviour, *, tls: bool = True, handshake: bool = True) -> None:
        self.accepted = 0
        self._behave = behave
        self._handshake = handshake
        self._tls = tls
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        # Many of these tests have a client that leaves early.
        with contextlib.suppress(OSError, ValueError):
            if self._tls and self._handshake:
                with self._tracked(sock):
                    sock = server_context().wrap_socket(sock, server_side=True)
            with self._tracked(sock):
                self._behave(Peer(sock, self._stopping))
        with contextlib.suppress(OSError):
            sock.close()

    @contextlib.contextmanager
    def _tracked(self, sock: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.add(sock)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(sock)

    def close(self) -> None:
        self._stopping.set()
        # A close alone does not wake a thread that waits in accept.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(60)


@contextlib.contextmanager
def fault_server(
    behave: Behaviour, *, tls: bool = True, handshake: bool = True
) -> Iterator[FaultServer]:
    """A running server; `handshake=False` leaves even the TLS handshake to the behaviour."""
    server = FaultServer(behave, tls=tls, handshake=handshake)
    try:
        yield server
    finally:
        server.close()


def answer(
    status: int, body: bytes, *, content_type: str = "application/json", more: str = ""
) -> bytes:
    """A whole, honest HTTP answer."""
    head = f"HTTP/1.1 {status} Whatever\r\nContent-Type: {content_type}\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def always(content: bytes) -> Behaviour:
    """Give every request of a connection the same answer."""

    def behave(peer: Peer) -> None:
        while peer.read_request():
            peer.send(content)

    return behave


@functools.cache
def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate())
    return context


@functools.cache
def certificate() -> Path:
    """A self-signed certificate for 127.0.0.1 and its key; also the CA file that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fault server")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_key_usage(), critical=True)
        .sign(key, hashes.SHA256())
    )
    directory = tempfile.TemporaryDirectory(prefix="fault-server-")
    atexit.register(directory.cleanup)
    path = Path(directory.name, "certificate.pem")
    path.write_bytes(
        built.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


def _key_usage() -> x509.KeyUsage:
    used = {"digital_signature": True, "key_cert_sign": True, "crl_sign": True}
    unused = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(**used, **unused)
