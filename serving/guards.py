"""What stands before the application: who may ask, how many at a time, how large and how slow a body may be."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response

from .options import ServingOptions

COOKIE = "ccrk_session"
OPEN_PATHS = ("/health", "/login")
THIS_MACHINE = ("127.0.0.1", "localhost", "[::1]")
RETRY_AFTER = {"Retry-After": "1"}
UPLOAD_PATH = "/search/image"
FORM_BYTES = 64 * 2**10
"""What a form may hold beside its photo."""

# nothing comes from, or goes to, another place; the page is made of inline scripts and styles
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)


def security_headers(embedded_in: Sequence[str] = ()) -> tuple[tuple[bytes, bytes], ...]:
    """Headers of every answer.

    Args:
        embedded_in: origins whose pages may show this one inside them; nobody else's may.
    """
    # the older header knows no origins but its own, and browsers that know the policy pass it over
    older = () if embedded_in else ((b"x-frame-options", b"SAMEORIGIN"),)
    return (
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"same-origin"),
        *older,
        (b"content-security-policy", " ".join([POLICY, *embedded_in]).encode()),
    )


class Access:
    """Who may ask: who shows the token in a header, or has a cookie of the login page.

    Args:
        token: None lets everyone in.
    """

    def __init__(self, token: str | None):
        self._token = None if token is None else token.encode()
        self._session = secrets.token_urlsafe(32)  # what the cookie holds: not the token, and new at each start

    @property
    def open(self) -> bool:
        """Whether there is no token."""
        return self._token is None

    def is_token(self, given: str) -> bool:
        """Whether a text is the token, compared in constant time."""
        return self._token is not None and hmac.compare_digest(given.encode(errors="replace"), self._token)

    def admits(self, headers: dict[str, str]) -> bool:
        """Whether a request may be answered."""
        if self.open:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # headers come as bytes, read here as latin-1
        given = given.strip().encode("latin-1").decode("utf-8", "replace")
        if scheme.lower() == "bearer" and self.is_token(given):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self._session.encode())

    def remember(self, response: Response, secure: bool) -> None:
        """Gives a browser the cookie."""
        response.set_cookie(COOKIE, self._session, httponly=True, samesite="strict", secure=secure)


class AccessGuard:
    """Lets through who is known, under host names that are known.

    Args:
        app: what is guarded.
        access: who may ask.
        options: host names.
    """

    def __init__(self, app: Any, access: Access, options: ServingOptions):
        self.app, self._access = app, access
        self._headers = security_headers(options.embedded_in)
        hosts = {host.lower() for host in options.allow_hosts}
        # a name that leads to this machine is as easily had as any: other web pages could reach the service by it
        checked = (options.loopback or hosts) and "*" not in hosts
        self._hosts = hosts | {*THIS_MACHINE, options.host.lower()} if checked else None

    async def __call__(self, scope, receive, send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def sending(message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            scope["ccrk.route"] = "refused"
        await (self.app if refusal is None else refusal)(scope, receive, sending)

    def _refusal(self, scope) -> Response | None:
        headers = first_headers(scope)
        if self._hosts is not None and _hostname(headers.get("host", "")) not in self._hosts:
            return problem(421, "this service is not known under that host name; `--allow-host NAME` adds one")
        if scope["path"] in OPEN_PATHS or self._access.admits(headers):
            return None
        if scope["method"] == "GET" and scope["path"] == "/" and "text/html" in headers.get("accept", ""):
            return RedirectResponse("login", 303)
        return problem(
            401, "this service needs its token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
        )


class TrafficGuard:
    """Bounds the requests at a time, the size of a body, and the time that it and each part of an answer take.

    FastAPI's `max_body_size` would do for the size, but answers in plain text where all else is JSON.

    Args:
        app: what is guarded.
        options: the limits.
    """

    def __init__(self, app: Any, options: ServingOptions):
        self.app, self._most, self._seconds = app, options.max_requests, options.body_timeout
        self._upload, self._other = options.max_upload_bytes + FORM_BYTES, options.max_json_bytes
        self._running = 0

    async def __call__(self, scope, receive, send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self._running >= self._most:
            scope["ccrk.route"] = "refused"
            message = f"the service answers {self._most} requests at a time, and has so many; try again"
            await problem(503, message, RETRY_AFTER)(scope, receive, send)
            return
        self._running += 1
        try:
            await self._pass(scope, receive, send)
        finally:
            self._running -= 1

    async def _pass(self, scope, receive, send) -> None:
        deadline, complete, started = asyncio.get_running_loop().time() + self._seconds, False, False
        limit = self._upload if scope["path"] == UPLOAD_PATH else self._other
        length = first_headers(scope).get("content-length", "")
        told = int(length[:20]) if length.isascii() and length.isdigit() else 0
        taken, gone = 0, False

        async def receiving():
            nonlocal complete, taken
            if complete:  # from here on it only tells when the client goes away
                return await receive()
            if told > limit:
                raise BodyError(413, f"the body has {told} bytes; at most {limit} are taken")
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise BodyError(408, f"the body did not arrive within {self._seconds:g} s") from None
            complete = not message.get("more_body", False)
            taken += len(message.get("body", b""))
            if taken > limit:
                raise BodyError(413, f"the body has more than the {limit} bytes that are taken")
            return message

        async def sending(message) -> None:
            nonlocal started, gone
            started = True
            if gone:
                return
            try:
                async with asyncio.timeout(self._seconds):
                    await send(message)
            except TimeoutError:  # a client that does not read; what is left is dropped, and the connection closed
                gone = True

        try:
            await self.app(scope, receiving, sending)
        except BodyError as error:  # raised where no handler of the application is
            if started:
                raise
            await problem(error.status_code, error.detail)(scope, receive, send)


class BodyError(HTTPException):
    """A body that is too large or too slow."""


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error, as every answer of the service tells it."""
    if status in (408, 413):  # what is left of the body is not read, so the connection cannot go on
        headers = {**(headers or {}), "Connection": "close"}
    return JSONResponse({"detail": detail}, status, headers)


def first_headers(scope) -> dict[str, str]:
    """The first of each header, its bytes read as latin-1."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
    return found


def _hostname(host: str) -> str:
    """A host header without its port."""
    end = host.find("]") + 1 if host.startswith("[") else host.find(":")
    return (host[:end] if end > 0 else host).lower()


__all__ = ["FORM_BYTES", "UPLOAD_PATH", "Access", "AccessGuard", "TrafficGuard", "first_headers", "problem"]
