"""The web page, by Gradio: search, filters, more like this, and one query in several languages."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from io import BytesIO
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import URL
from starlette.routing import Match

from ccrk.pipelines.where_words import where_from_words

from .batching import OverloadedError
from .guards import RETRY_AFTER, problem
from .page_html import CHOOSE, CSS, PHOTO_SCRIPT, PHOTO_TEMPLATE, comparison, grid, head, said
from .photos import PhotoError
from .service import RequestError, SearchService

FILTERS = 2
LANGUAGES = ("en", "de", "ja", "zh")
PHOTO_PREFIX = "data:image/jpeg;base64,"
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif")

# What of Gradio can be reached: the page, its scripts, and the events of its components. Not its files, uploads,
# proxies, monitoring and whatever else it may bring.
OPEN_GET = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/(static|assets)/[\w./-]+|/gradio_api/(queue/data|heartbeat/\w+"
    r"|startup-events|app_id)"
)
EVENTS = "/gradio_api/queue/join"
OPEN_POST = re.compile(rf"{EVENTS}|/gradio_api/(cancel|reset)")
KNOWN_ERRORS = (RequestError, PhotoError, OverloadedError, KeyError)


def mount_page(app: FastAPI, service: SearchService) -> None:
    """Adds the page at `/`.

    Raises:
        ModuleNotFoundError: if Gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported
    import gradio as gr

    theme = gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", radius_size="md", font=list(FONTS), font_mono=["monospace"]
    )
    page = build_page(service)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=theme,
        css=CSS,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        show_error=False,
        max_file_size=1,
    )
    mounted: Any = app.router.routes[-1]
    mounted.app = PageGuard(mounted.app, app, frozenset(page.fns))


def build_page(service: SearchService) -> Any:
    """The page as Gradio's Blocks."""
    import gradio as gr

    actions = PageActions(service)
    photos = service.gallery.modality != "text"
    hidden = {"api_visibility": "private", "show_progress": "minimal"}
    with gr.Blocks(title="ccrk search", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(head(service.model_name, len(service.gallery), service.gallery.modality))
        tabs = gr.Tabs(selected="search")
        with tabs, gr.Tab("Search", id="search"), gr.Row():
            with gr.Column(scale=1, min_width=280):
                query = gr.Textbox(
                    label="What are you looking for?", placeholder="ein Hund im Schnee", lines=2, elem_id="query"
                )
                photo = gr.HTML(
                    "", html_template=PHOTO_TEMPLATE, js_on_load=PHOTO_SCRIPT, elem_id="photo", label="Photo"
                )
                weight = gr.Slider(0, 1, 0.5, step=0.05, label="Text against photo")
                number = gr.Slider(1, min(60, service.options.max_k), 24, step=1, label="Results")
                filters = _filters(gr, service)
                button = gr.Button("Search", variant="primary", elem_id="search")
            with gr.Column(scale=3, min_width=320):
                told = gr.HTML(said("Choose a photo in the results for more like it." if photos else ""))
                results = gr.HTML("", js_on_load=CHOOSE, elem_id="results")
        with tabs, gr.Tab("Compare languages", id="compare"):
            pairs = _languages(gr)
            compared = gr.Slider(1, 20, 6, step=1, label="Results for each language")
            compare = gr.Button("Compare", variant="primary", elem_id="compare")
            compare_told = gr.HTML(said("One query in several languages: do they find the same?"))
            comparison_shown = gr.HTML("", js_on_load=CHOOSE, elem_id="comparison")
        asked = [query, photo, weight, number, *filters]
        gr.on([query.submit, button.click], actions.search, asked, [told, results], **hidden)

        async def more(event, *rest):
            return *await actions.more(event, *rest), gr.Tabs(selected="search")

        more.__annotations__ = {"event": gr.EventData}  # how Gradio knows what to hand in
        for shown in (results, comparison_shown):
            shown.click(more, [number, *filters], [told, results, tabs], **hidden)
        gr.on([compare.click], actions.compare, [compared, *pairs], [compare_told, comparison_shown], **hidden)
    page.queue(max_size=service.options.max_requests, default_concurrency_limit=32)
    return page


def _filters(gr: Any, service: SearchService) -> list[Any]:
    """A column and what it may be, several times; nothing for a gallery without columns."""
    if not service.gallery.columns:
        return []
    parts = []
    with gr.Accordion("Filters", open=False, elem_id="filters"):
        for number in range(1, FILTERS + 1):
            with gr.Row():
                column = gr.Dropdown(
                    ["", *service.gallery.columns], value="", label=f"Column {number}", min_width=110, scale=2
                )
                value = gr.Textbox(label=f"Value {number}", placeholder="2023..2024, or a,b", min_width=110, scale=3)
            parts += [column, value]
    return parts


def _languages(gr: Any) -> list[Any]:
    """Pairs of a language and a query in it."""
    parts = []
    with gr.Row():
        for number, language in enumerate(LANGUAGES, 1):
            with gr.Column(min_width=150):
                parts.append(gr.Textbox(language, label=f"Language {number}", max_length=35))
                parts.append(gr.Textbox(label=f"Query {number}", lines=2))
    return parts


class PageActions:
    """What the components of the page do. Every answer is a line about it and what is shown.

    Args:
        service: that answers.
    """

    def __init__(self, service: SearchService):
        self._service = service

    async def search(self, query: str, photo: str, weight: float, number: float, *filters: str) -> tuple[str, Any]:
        """Searches for a text, a photo, or both."""
        try:
            text, image = _string(query).strip(), _string(photo)
            if not text and not image:
                raise RequestError("Write what you are looking for, or choose a photo")
            asked: Any = text
            if image:
                asked = await self._service.open_photo(BytesIO(_photo_bytes(image)))
                asked = {"image": asked, "text": text, "weight": _number(weight)} if text else asked
            (hits,) = await self._service.search([asked], int(_number(number)), self._where(filters))
        except KNOWN_ERRORS as error:
            return self._refused(error)
        by = " and ".join([*([f"“{text}”"] if text else []), *(["your photo"] if image else [])])
        return said(f"{len(hits)} found for {by}" if hits else f"Nothing found for {by}"), grid(hits)

    async def more(self, event: Any, number: float, *filters: str) -> tuple[str, Any]:
        """Shows what lies nearest to the item that was chosen."""
        try:
            item = _string(event._data.get("id") if isinstance(event._data, dict) else None)
            hits = await self._service.similar(item, int(_number(number)), self._where(filters))
            entry = await self._service.entry(item)
        except KNOWN_ERRORS as error:
            return self._refused(error)
        return said(f"{len(hits)} most like {item}", image=entry.get("image")), grid(hits)

    async def compare(self, number: float, *pairs: str) -> tuple[str, Any]:
        """Searches for one query in several languages."""
        try:
            queries: dict[str, Any] = {}
            for language, query in zip(pairs[::2], pairs[1::2], strict=True):
                if not _string(query).strip():
                    continue
                name = _string(language).strip() or f"language {len(queries) + 1}"
                if name in queries:
                    raise RequestError(f"The language '{name}' is there twice")
                queries[name] = query.strip()
            if len(queries) < 2:
                raise RequestError("Write the query in at least two languages")
            found = await self._service.compare(queries, int(_number(number)))
        except KNOWN_ERRORS as error:
            return self._refused(error)
        shown = {hit["id"]: hit for one in found["languages"] for hit in one["hits"]}
        return said(f"{len(queries)} languages compared"), comparison(found, shown)

    def _where(self, filters: Any) -> dict[str, Any] | None:
        words = [f"{_string(c)}={_string(v).strip()}" for c, v in zip(filters[::2], filters[1::2], strict=True) if c]
        if not words:
            return None
        try:
            return where_from_words(words, self._service.gallery.columns)
        except (ValueError, RecursionError) as error:
            raise RequestError(str(error)) from error

    @staticmethod
    def _refused(error: Exception) -> tuple[str, Any]:
        import gradio as gr

        message = f"there is no item '{error.args[0]}' any more" if isinstance(error, KeyError) else str(error)
        return said(message, wrong=True), gr.skip()


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
        raise RequestError(f"{str(value)[:40]!r} is no number that can be used")
    return float(value)


def _photo_bytes(address: str) -> bytes:
    try:
        if not address.startswith(PHOTO_PREFIX):
            raise ValueError
        return base64.b64decode(address.removeprefix(PHOTO_PREFIX), validate=True)
    except (ValueError, binascii.Error):
        raise RequestError("The photo did not arrive as one") from None


class PageGuard:
    """Lets through to Gradio what the page needs and nothing else.

    Args:
        app: Gradio.
        parent: the service; what is none of the page's may be one of its own paths with another method.
        functions: numbers of what the page's events can run.
    """

    def __init__(self, app: Any, parent: FastAPI, functions: frozenset[int]):
        self.app, self._parent, self._functions = app, parent, functions

    async def __call__(self, scope, receive, send) -> None:
        """One request."""
        path, method = scope["path"], scope["method"]
        if method in ("GET", "HEAD") and OPEN_GET.fullmatch(path) and ".." not in path:
            scope["ccrk.route"] = "page"
            await self.app(scope, receive, send)
        elif method == "POST" and OPEN_POST.fullmatch(path):
            scope["ccrk.route"] = "page event"
            await self._event(scope, receive, send)
        else:
            allowed = sorted(self._methods(scope))
            response = problem(405, "Method Not Allowed", {"Allow": ", ".join(allowed)}) if allowed else None
            response = response or problem(404, f"there is nothing at '{URL(path).path[:200]}'")
            await response(scope, receive, send)

    async def _event(self, scope, receive, send) -> None:
        """What a component sends. Gradio would fetch a file that is named in the place of a value."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        try:
            event = json.loads(body)
            plain = isinstance(event, dict) and all(_is_plain(value) for value in event.get("data") or [])
            plain = plain and (scope["path"] != EVENTS or event.get("fn_index") in self._functions)
        except (ValueError, RecursionError, TypeError):
            plain = False
        if not plain:
            await problem(422, "that is no event of this page")(scope, receive, send)
            return
        sent = False

        async def replay():
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        try:
            await self.app(scope, replay, send)
        except OverloadedError as error:
            await problem(503, str(error), RETRY_AFTER)(scope, receive, send)

    def _methods(self, scope) -> set[str]:
        methods: set[str] = set()
        route: Any
        for route in self._parent.router.routes[:-1]:
            if route.matches(scope)[0] is Match.PARTIAL:
                methods |= route.methods
        return methods


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


__all__ = ["mount_page"]
