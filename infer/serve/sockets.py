"""Where a server listens: TCP or a Unix socket, plain or TLS, for HTTP and gRPC."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer.errors import InputError

if TYPE_CHECKING:
    from infer.serve.service import Service

_MODE = 0o660


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        host: name or address of this machine.
        port: of HTTP; 0 for any that is free.
        grpc_port: of gRPC; 0 for any that is free, None for no gRPC on a port.
        uds: path of a Unix socket for HTTP in place of host and port.
        grpc_uds: the same for gRPC.
        certificate, key: PEM files; with them both protocols speak TLS.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    uds: Path | None = None
    grpc_uds: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def public(self) -> bool:
        """Whether other machines may reach it."""
        local = self.host in ("127.0.0.1", "localhost", "::1")
        return not local and (self.uds is None or (self.grpc_port is not None and self.grpc_uds is None))


def check_tls(address: Address) -> None:
    """Look at the certificate and its key.

    Raises:
        InputError: one of them is missing, cannot be read, or they do not belong together.
    """
    if (address.certificate is None) != (address.key is None):
        raise InputError("TLS: expected --certificate and --key, found one of them")
    if address.certificate is not None and address.key is not None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(address.certificate, address.key)
        except (OSError, ssl.SSLError) as error:
            raise InputError(f"TLS: {address.certificate} and {address.key} cannot be used ({error})") from error


def listen_http(address: Address, backlog: int) -> socket.socket:
    """A listening socket.

    Raises:
        InputError: the address is in use or cannot be had.
    """
    if address.uds is not None:
        return _listen_unix(address.uds, backlog)
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family, backlog=backlog)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise InputError(
            f"cannot listen on {address.host} port {address.port} ({reason}); pass another --port"
        ) from error


def _listen_unix(path: Path, backlog: int) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(_MODE)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise InputError(f"--uds: cannot listen on {path} ({error.strerror or error})") from error
    return listener


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more.

    Raises:
        InputError: somebody does, or it is no socket.
    """
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise InputError(f"--uds: {path} is there and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise InputError(f"--uds: another server listens on {path}")


async def listen_grpc(service: Service, address: Address) -> tuple[Any, str]:
    """A started gRPC server, and where it listens.

    Raises:
        InputError: the address is in use or cannot be had.
    """
    import grpc

    from infer.serve.v2_grpc import grpc_server

    server = grpc_server(service)
    host = f"[{address.host}]" if ":" in address.host else address.host
    if address.grpc_uds is not None:
        _remove_stale(address.grpc_uds)
        where = f"unix:{address.grpc_uds}"
    else:
        where = f"{host}:{address.grpc_port}"
    try:
        if address.certificate is not None and address.key is not None:
            pair = (address.key.read_bytes(), address.certificate.read_bytes())
            port = server.add_secure_port(where, grpc.ssl_server_credentials([pair]))
        else:
            port = server.add_insecure_port(where)
    except RuntimeError as error:
        raise InputError(f"gRPC cannot listen on {where}; pass another --grpc-port, or --no-grpc") from error
    await server.start()
    if address.grpc_uds is not None:
        address.grpc_uds.chmod(_MODE)
        return server, where
    return server, f"{host}:{port}"


def url(address: Address, listener: socket.socket) -> str:
    """Where HTTP is, for people."""
    if address.uds is not None:
        return f"unix:{address.uds}"
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{'http' if address.certificate is None else 'https'}://{host}:{listener.getsockname()[1]}"
