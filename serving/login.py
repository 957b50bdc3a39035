"""The login page: a token in, a cookie out. Only there if the service has a token."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from .guards import Access

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>ccrk</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
  body { font: 16px system-ui, sans-serif; display: grid; place-content: center; min-height: 90vh; margin: 0;
         color: #1f2937; background: #f8fafc }
  form { background: #fff; padding: 2rem; border-radius: 12px; border: 1px solid #e2e8f0; display: grid; gap: .75rem;
         width: min(22rem, 80vw) }
  input, button { font: inherit; padding: .6rem .75rem; border-radius: 8px; border: 1px solid #cbd5e1 }
  button { background: #1d4ed8; color: #fff; border: 0; cursor: pointer }
  p { margin: 0; color: #b91c1c }
</style>
<form method="post" action="login"><label for="token">Token of this service</label>
<input id="token" name="token" type="password" autocomplete="current-password" autofocus required>
MESSAGE<button>Open</button></form></html>"""
WRONG = "<p role=alert>That is not the token of this service.</p>"


def login_router(access: Access) -> APIRouter:
    """The routes of the login page."""
    router = APIRouter(include_in_schema=False)

    @router.get("/login")
    async def show() -> HTMLResponse:
        return HTMLResponse(PAGE.replace("MESSAGE", ""))

    @router.post("/login")
    async def log_in(request: Request, token: Annotated[str, Form()] = "") -> Response:
        if not access.is_token(token):
            return HTMLResponse(PAGE.replace("MESSAGE", WRONG), 401)
        response = RedirectResponse("./", 303)
        access.remember(response, secure=request.url.scheme == "https")
        return response

    return router


__all__ = ["login_router"]
