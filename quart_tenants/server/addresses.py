"""Open the addresses to serve on, once, before any worker starts."""

import socket

from hypercorn.config import Config

from quart_tenants.errors import AddressInUseError, SettingError


def open_addresses(config: Config, port: int | None = None) -> list[str]:
    """Open the addresses of *config*; return them for people, as host:port.

    Hypercorn would share a port even with a stranger (SO_REUSEPORT), and would show a traceback if it cannot have one.
    The sockets stay open until this process ends: all workers, and the workers after them, accept from the same queue
    of connections, so no client is refused while workers change.

    Args:
        config: Its addresses are replaced by the open sockets, as `fd://N`.
        port: Is used instead of the configured port. 0 means any free port.

    Raises:
        AddressInUseError: Another program uses the address, or we have no right to use it.
        SettingError: An address is malformed, or names a socket that nobody has given to this process.
    """
    config.bind = [_open_address(bind, port) for bind in config.bind]
    config.insecure_bind = [_open_address(bind, None) for bind in config.insecure_bind]
    try:
        # The files of unix sockets are made here.
        sockets = config.create_sockets()
    except OSError as error:
        raise AddressInUseError(", ".join(config.bind), error.strerror or str(error)) from error
    listeners = [*sockets.secure_sockets, *sockets.insecure_sockets]
    addresses = [name_address(listener) for listener in listeners]
    if config.ssl_enabled:
        config.insecure_bind = [f"fd://{listener.detach()}" for listener in sockets.insecure_sockets]
        config.bind = [f"fd://{listener.detach()}" for listener in sockets.secure_sockets]
    else:
        config.bind = [f"fd://{listener.detach()}" for listener in sockets.insecure_sockets]
    return addresses


def list_descriptors(config: Config) -> list[int]:
    """Return the file descriptors of the sockets that `open_addresses` has put into *config*."""
    return [int(bind.removeprefix("fd://")) for bind in (*config.bind, *config.insecure_bind)]


def _open_address(bind: str, port: int | None) -> str:
    if bind.startswith("unix:"):
        return bind
    if bind.startswith("fd://"):
        _check_given(bind)
        return bind
    host, _, configured = bind.rpartition(":")
    try:
        return f"fd://{listen_at(host.strip('[]'), int(configured) if port is None else port).detach()}"
    except ValueError as error:
        raise SettingError("bind", f"is {bind!r} in Hypercorn's configuration: give host:port") from error


def _check_given(bind: str) -> None:
    """Make sure that the socket `fd://N` was given to this process, such as by systemd, and listens."""
    try:
        given = socket.socket(fileno=int(bind.removeprefix("fd://")))
        listens = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        given.detach()
    except (OSError, ValueError, OverflowError):
        listens = 0
    if not listens:
        raise SettingError(
            "bind",
            f"is {bind!r} in Hypercorn's configuration, and whoever has started this program, such as a socket of "
            "systemd's, has given it no listening socket of that number",
        )


def listen_at(host: str, port: int) -> socket.socket:
    """Return a socket that listens at *host* and *port*, where 0 means any free port.

    Raises:
        AddressInUseError: Another program uses the address, or we have no right to use it.
        ValueError: It is no address.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # With this option only finished connections of the same port are overlooked. A living listener is not.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise AddressInUseError(f"{host}:{port}", error.strerror or str(error)) from error
    except OverflowError as error:
        listener.close()
        raise ValueError(str(error)) from error
    return listener


def name_address(listener: socket.socket) -> str:
    """Return the address of *listener* for people."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    return f"[{name[0]}]:{name[1]}" if listener.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"
