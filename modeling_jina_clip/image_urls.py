"""Fetch images from the public web: http(s) only, within limits, and never from a private network.

Nothing is fetched unless the caller passes ``allow_urls=True``. A name is resolved once, all its addresses are checked,
and the connection goes to a checked address, so that the name cannot resolve to another one in between. Redirects pass
the same checks. Proxies and ``.netrc`` are ignored. Standard library only.
"""

import http.client
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

MAX_BYTES = 32 * 2**20
TIMEOUT_SECONDS = 20.0  # in all, from name resolution and redirects to the last byte
MAX_REDIRECTS = 3
URL_THREADS = 8  # waiting for a server takes no processor time

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# Not private in the registry, or not in every Python's copy of it, but not public web servers either: protocol
# assignments (one cloud has its instance metadata there), 6to4 relays, another cloud's host service.
_NEVER = tuple(ipaddress.ip_network(name) for name in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"))


def is_url(source: Any) -> bool:
    """Whether ``source`` is a string that starts with a scheme, such as ``https://`` or ``file://``, but ``data:``."""
    return isinstance(source, str) and re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", source) is not None


def is_public(address: Address) -> bool:
    """Whether an address is on the public internet: not private, loopback, link-local, multicast or reserved.

    An IPv4 address inside an IPv6 one is judged by the IPv4 address (mapped) or refused (6to4, Teredo, NAT64).

    Example::

        >>> [is_public(ipaddress.ip_address(name)) for name in ("1.1.1.1", "10.0.0.1", "::ffff:127.0.0.1")]
        [True, False, False]
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        tunnel = address.sixtofour is not None or address.teredo is not None
        return address in _GLOBAL_UNICAST and address.is_global and not tunnel
    return address.is_global and not address.is_multicast and not any(address in network for network in _NEVER)


def fetch_url(url: str) -> bytes:
    """The bytes at ``url``.

    Raises ``ValueError`` if it is refused (scheme, user name, address, size, redirects, status), ``TimeoutError`` after
    ``TIMEOUT_SECONDS`` in all, and ``ConnectionError`` if the server cannot be reached or stops early.
    """
    return _fetch(url, is_public)


def _fetch(
    url: str, is_allowed: Callable[[Address], bool], max_bytes: int = MAX_BYTES, timeout: float = TIMEOUT_SECONDS
) -> bytes:
    """``fetch_url`` with its limits and address rule as arguments, so that tests can use a server on loopback."""
    deadline = time.monotonic() + timeout
    try:
        here = url
        for _ in range(MAX_REDIRECTS + 1):
            parts = _checked(here)
            with _connect(parts, deadline, is_allowed) as connection:
                answer = _request(connection, parts, deadline)
                if answer.status not in (301, 302, 303, 307, 308):
                    return _body(answer, max_bytes)
                here = _redirected(here, answer.getheader("Location"))
        raise ValueError(f"it redirects more than {MAX_REDIRECTS} times")
    except TimeoutError as error:
        raise TimeoutError(f"{shown(url)} was not received within {timeout:g} seconds") from error
    except (OSError, http.client.HTTPException) as error:  # before ValueError: an SSL certificate error is both
        raise ConnectionError(f"{shown(url)} cannot be fetched: {error or type(error).__name__}") from error
    except ValueError as error:
        raise ValueError(f"{shown(url)} is not fetched: {error}") from error


def shown(source: str) -> str:
    """The first characters of a path or URL, for error messages."""
    return repr(source if len(source) <= 100 else source[:97] + "...")


def _checked(url: str) -> SplitResult:
    """The parts of a URL that may be requested."""
    if re.search(r"[\x00-\x20\x7f\\]", url):  # urlsplit would silently drop some of them
        raise ValueError("it holds spaces, control characters or backslashes; percent-encode them")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"the scheme {parts.scheme!r} is not allowed; use http or https")
    if "@" in parts.netloc:
        raise ValueError("it names a user; a URL with a user name or a password is refused")
    if not parts.hostname or parts.port == 0:  # `port` raises ValueError if invalid
        raise ValueError("it names no host, or port 0")
    return parts


def _redirected(here: str, location: str | None) -> str:
    if not location:
        raise ValueError("it redirects without a location")
    there = urljoin(here, location)
    if here.lower().startswith("https:") and not there.lower().startswith("https:"):
        raise ValueError(f"it redirects from https to {shown(there)}")
    return there


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    return host if host.isascii() else host.encode("idna").decode()


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _remaining(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _resolve(host: str, port: int, deadline: float) -> list[tuple]:
    """``getaddrinfo`` within the time left; it runs in a thread because the call has no timeout."""
    found: list[Any] = []

    def look_up() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.append(error)

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(_remaining(deadline))
    if not found:
        raise TimeoutError
    if isinstance(found[0], Exception):
        raise ConnectionError(f"the name {host!r} cannot be resolved: {found[0]}")
    return found[0]


def _connect(parts: SplitResult, deadline: float, is_allowed: Callable[[Address], bool]) -> socket.socket:
    """Connect to an address of the host; all its addresses must be allowed."""
    host = _host(parts)
    rows = _resolve(host, _port(parts), deadline)
    for row in rows:
        if not is_allowed(ipaddress.ip_address(row[4][0])):
            raise ValueError(f"{host!r} is {row[4][0]}, which is not an address of the public internet")
    problem: OSError | None = None
    for family, kind, protocol, _, address in rows:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(_remaining(deadline))
            connection.connect(address)  # checked above; the name is not resolved again
            if parts.scheme == "https":
                connection.settimeout(_remaining(deadline))
                return ssl.create_default_context().wrap_socket(connection, server_hostname=host)
            return connection
        except OSError as error:
            connection.close()
            problem = error
    raise problem or ConnectionError("the name has no address")


class _TimedReader(io.RawIOBase):
    """Reads a socket until the deadline; a socket's own timeout restarts with every byte received."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(_remaining(self._deadline))
        return self._connection.recv_into(buffer)


def _request(connection: socket.socket, parts: SplitResult, deadline: float) -> http.client.HTTPResponse:
    """Request the URL and read the status and headers of the answer."""
    host = f"[{_host(parts)}]" if ":" in _host(parts) else _host(parts)
    path = quote(parts.path or "/", safe="/%:=&~+!$,;'@()*[]") + (
        "?" + quote(parts.query, safe="/%:=&?~+!$,;'@()*[]") if parts.query else ""
    )
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}" + (f":{parts.port}" if parts.port else "")]
    lines += ["User-Agent: modeling-jina-clip", "Accept: image/*", "Accept-Encoding: identity", "Connection: close"]
    connection.settimeout(_remaining(deadline))
    connection.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
    reader = io.BufferedReader(_TimedReader(connection, deadline))
    connected: Any = SimpleNamespace(makefile=lambda *_: reader)  # all that HTTPResponse uses of a socket
    answer = http.client.HTTPResponse(connected, method="GET")
    answer.begin()
    return answer


def _body(answer: http.client.HTTPResponse, max_bytes: int) -> bytes:
    if answer.status != 200:
        raise ValueError(f"the server answers {answer.status} {answer.reason}")
    announced = answer.length
    if announced is not None and announced > max_bytes:
        raise ValueError(f"it has {announced} bytes, above {max_bytes}; download it yourself and shrink it")
    body = bytearray()
    while chunk := answer.read(min(2**16, max_bytes + 1 - len(body))):
        body += chunk
        if len(body) > max_bytes:
            raise ValueError(f"it has more than {max_bytes} bytes; download it yourself and shrink it")
    if announced is not None and len(body) < announced:
        raise ConnectionError(f"the server stopped after {len(body)} of {announced} bytes")
    return bytes(body)
