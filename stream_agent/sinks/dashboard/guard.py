"""Who may use the page: the right name in `Host`, our own page in `Origin`, and the token where there is one.

- `Host` outside a short list is refused: a page of somebody else whose name was pointed at this host (DNS rebinding) has theirs.
- A WebSocket, and any request that changes something, must name us in `Origin`: another site's page names itself.
- The token is compared in constant time, comes once (`?token=` or the form) and is exchanged for a cookie that scripts and other
  sites never see. The cookie is derived from it, so that it outlives the agent's restart and does not give the token away.
- No answer may be framed, sniffed or kept, and the page may load and call nothing but us.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qs, urlsplit

COOKIE: Final = "stream_agent_dashboard"
_LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")
_PUBLIC: Final = "/static/"
_LOGIN: Final = "/login"
_LONGEST_FORM: Final = 4096
_WRONG_TOKEN_S: Final = 0.5
"""Wait before a wrong token is answered: guessing is not made quick."""
_YEAR_S: Final = 365 * 24 * 3600

HEADERS: Final = (
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        b"frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
    (b"cache-control", b"no-store"),
)

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


def allowed_hosts(host: str, further: Iterable[str]) -> frozenset[str]:
    """The names a browser may have asked for: the loopback ones, the address itself, and those that are listed."""
    own = f"[{host}]" if ":" in host else host
    return frozenset(name.lower() for name in (*_LOOPBACK, own, *further))


def cookie_for(token: str) -> str:
    """What a browser that knows `token` carries from then on."""
    return hmac.new(token.encode(), b"stream_agent dashboard cookie", hashlib.sha256).hexdigest()


class Guard:
    """Lets through to the page what may pass; an ASGI application around another."""

    def __init__(self, app: App, *, hosts: frozenset[str], token: str, secure: bool, login: bytes) -> None:
        """Guard `app`; an empty `token` asks for none, `login` is the page that asks, `secure` says that it is https."""
        self._app = app
        self._hosts = hosts
        self._token = token
        self._cookie = cookie_for(token) if token else ""
        self._secure = secure
        self._login = login

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or WebSocket."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if _name_of(host) not in self._hosts:
            await _refuse(scope, send, 421, "this name is not one of ours; list it in sinks.dashboard.allowed_hosts")
        elif scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD"):
            if not _same_origin(headers.get(b"origin", ""), host):
                await _refuse(scope, send, 403, "only our own page may do this")
            elif scope["type"] == "http" and scope["path"] == _LOGIN:
                await self._log_in(await _form_token(receive), send)
            elif not self._knows(headers):
                await _refuse(scope, send, 401, "the token is missing; open the page first")
            else:
                await self._app(scope, receive, _with_headers(send))
        elif scope["path"].startswith(_PUBLIC):
            await self._app(scope, receive, _with_headers(send))
        elif self._token and "token" in (query := parse_qs(scope["query_string"].decode("latin-1"))):
            await self._log_in(query["token"][0], send)
        elif not self._knows(headers):
            await _answer(send, 401, self._login, b"text/html; charset=utf-8")
        else:
            await self._app(scope, receive, _with_headers(send))

    def _knows(self, headers: dict[bytes, str]) -> bool:
        """Whether the cookie is right."""
        if not self._token:
            return True
        try:
            given = SimpleCookie(headers.get(b"cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return given is not None and hmac.compare_digest(given.value.encode(), self._cookie.encode())

    async def _log_in(self, given: str, send: Send) -> None:
        if not self._token or not hmac.compare_digest(given.encode(), self._token.encode()):
            await asyncio.sleep(_WRONG_TOKEN_S)
            await _answer(send, 401, self._login, b"text/html; charset=utf-8")
            return
        cookie = f"{COOKIE}={self._cookie}; Path=/; HttpOnly; SameSite=Strict; Max-Age={_YEAR_S}"
        cookie += "; Secure" if self._secure else ""
        await _answer(send, 303, b"", b"text/plain", (b"location", b"/"), (b"set-cookie", cookie.encode()))


def _name_of(host: str) -> str:
    """`name` of `name:port`, in lower case."""
    if host.startswith("["):
        return host[: host.find("]") + 1].lower()
    return host.partition(":")[0].lower()


def _same_origin(origin: str, host: str) -> bool:
    parts = urlsplit(origin)
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower() != ""


async def _form_token(receive: Receive) -> str:
    """The field `token` of a form; empty when there is none or the form is too long."""
    body = b""
    while len(body) <= _LONGEST_FORM:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return str(parse_qs(body.decode("latin-1")).get("token", [""])[0])
    return ""


async def _refuse(scope: Scope, send: Send, status: int, why: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": why})  # before it was accepted: HTTP 403
    else:
        await _answer(send, status, why.encode(), b"text/plain; charset=utf-8")


async def _answer(send: Send, status: int, body: bytes, kind: bytes, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *HEADERS, *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.accept"):
            message["headers"] = [*message.get("headers", ()), *HEADERS]
        await send(message)

    return sending
