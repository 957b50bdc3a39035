"""The HTTP service as a FastAPI application: routes, their errors, what guards them."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import torch
from fastapi import FastAPI, Form, HTTPException, Path, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

import ccrk
from ccrk.pipelines.loading import load_pipeline

from .batching import OverloadedError
from .guards import FORM_BYTES, RETRY_AFTER, UPLOAD_PATH, Access, AccessGuard, TrafficGuard, problem
from .login import login_router
from .monitoring import Monitor, MonitorMiddleware
from .options import ServingOptions
from .photos import MAX_SIDE, PhotoError
from .schemas import (
    CompareRequest,
    CompareResponse,
    Error,
    Health,
    Hit,
    Info,
    Item,
    QueryResult,
    Range,
    SearchRequest,
    SearchResponse,
    SimilarResponse,
    Where,
)
from .service import RequestError, SearchService, milliseconds_since

logger = logging.getLogger(__name__)

LIMITS = ("max_k", "max_rerank", "max_queries", "max_text_chars", "max_upload_bytes", "max_json_bytes", "max_pixels")

WHERES = TypeAdapter(Where)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of the errors of a route."""
    told = {
        400: "The body cannot be read.",
        401: "The token is missing or wrong.",
        404: "There is no such item, or nothing to show of it.",
        408: "The body took too long.",
        413: "The body is too large.",
        421: "The service is not known under this host name.",
        422: "Something of the request is wrong; `detail` says what.",
        503: "Too much to do; try again after the time of `Retry-After`.",
    }
    return {status: {"model": Error, "description": told[status]} for status in (401, 421, 503, *statuses)}


BODY = errors(400, 408, 413, 422)
ItemId = Annotated[str, Path(description="As in results; slashes need no escape.", max_length=2048)]
K = Annotated[int, Query(ge=1, description="Results.")]
WhereText = Annotated[str | None, Query(description="Filter, as JSON; see /search.", max_length=8192)]


def create_app(options: ServingOptions, pipe: Any = None) -> FastAPI:
    """The service.

    Args:
        options: what to serve, and within which limits.
        pipe: a retrieval pipeline with its gallery; by default the one that the options name is loaded.

    Raises:
        ImportError, OSError, ValueError: if model or gallery cannot be loaded.
    """
    monitor, access = Monitor(), Access(options.token)
    if pipe is None:
        dtype = {"dtype": torch.bfloat16} if options.bf16 else {}
        pipe = load_pipeline(options.model, threads=options.threads, gallery=options.gallery, **dtype)
    service = SearchService(pipe, options, monitor.batches.observe)
    monitor.waiting.set_function(lambda: service.batcher.waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="ccrk",
        version=ccrk.__version__,
        summary="Photos found by captions, and captions by photos, in many languages.",
        lifespan=lifespan,
        docs_url=None,  # that page would fetch its scripts from elsewhere
        redoc_url=None,
        form_limits={"max_files": 1, "max_fields": 16, "max_part_size": FORM_BYTES},
        redirect_slashes=False,
    )
    app.state.service = service
    _add_searches(app, service)
    _add_items(app, service)
    _add_state(app, service, monitor, options)
    if not access.open:
        app.include_router(login_router(access))
    if options.page:
        from .page import mount_page

        mount_page(app, service)
    _add_error_handlers(app)
    # the last one is the outermost
    app.add_middleware(TrafficGuard, options=options)
    app.add_middleware(AccessGuard, access=access, options=options)
    app.add_middleware(MonitorMiddleware, monitor=monitor)
    return app


def _add_searches(app: FastAPI, service: SearchService) -> None:
    @app.post("/search", responses=BODY, tags=["search"], summary="Search by texts")
    async def search(request: SearchRequest) -> SearchResponse:
        start = time.perf_counter()
        held = service.gallery.modality
        if request.modality is not None and request.modality != held:
            raise RequestError(f"modality: the gallery holds items of kind '{held}', not '{request.modality}'")
        texts = [request.queries] if isinstance(request.queries, str) else request.queries
        found = await service.search(texts, request.k, plain_where(request.where), request.rerank)
        pairs = zip(texts, found, strict=True)
        results = [QueryResult.model_validate({"query": text, "hits": hits}) for text, hits in pairs]
        return SearchResponse(modality=held, results=results, took_ms=milliseconds_since(start))

    @app.post(UPLOAD_PATH, responses=BODY, tags=["search"], summary="Search by a photo")
    async def search_image(
        image: Annotated[UploadFile, "a photo"],
        text: Annotated[str | None, Form(description="What should be as this says, the rest as in the photo.")] = None,
        weight: Annotated[float, Form(ge=0, le=1, description="Of the text: 0 is the photo alone.")] = 0.5,
        k: Annotated[int, Form(ge=1)] = 10,
        rerank: Annotated[str | None, Form(description='A number, "auto" or "off".')] = None,
        where: Annotated[str | None, Form(description="Filter, as JSON; see /search.")] = None,
    ) -> SearchResponse:
        start = time.perf_counter()
        chosen = rerank or None
        if chosen is not None and chosen not in ("auto", "off"):
            if not (chosen.isascii() and chosen.isdigit() and len(chosen) < 8):
                raise RequestError(f"rerank: {chosen[:40]!r} is no number, 'auto' or 'off'")
            chosen = int(chosen)
        conditions = read_where(where)
        photo = await service.open_photo(image.file)
        query = photo if not text else {"image": photo, "text": text, "weight": weight}
        (hits,) = await service.search([query], k, conditions, chosen)
        results = [QueryResult.model_validate({"query": text or None, "hits": hits})]
        return SearchResponse(modality=service.gallery.modality, results=results, took_ms=milliseconds_since(start))

    @app.post("/compare", responses=BODY, tags=["search"], summary="One query in several languages")
    async def compare(request: CompareRequest) -> CompareResponse:
        start = time.perf_counter()
        found = await service.compare(
            request.queries, request.k, request.depth, plain_where(request.where), request.rerank
        )
        return CompareResponse(**found, took_ms=milliseconds_since(start))


def _add_items(app: FastAPI, service: SearchService) -> None:
    @app.get("/similar/{id:path}", responses=errors(404, 422), tags=["search"], summary="More like this one")
    async def similar(id: ItemId, k: K = 10, where: WhereText = None) -> SimilarResponse:
        start = time.perf_counter()
        hits = await service.similar(id, k, read_where(where))
        return SimilarResponse(
            id=id, hits=[Hit.model_validate(hit) for hit in hits], took_ms=milliseconds_since(start)
        )

    @app.get("/items/{id:path}", responses=errors(404, 422), tags=["items"], summary="What is known of an item")
    async def item(id: ItemId) -> Item:
        return Item(**await service.entry(id))

    @app.get(
        "/images/{id:path}",
        responses={**errors(404, 422), 200: {"content": {"image/jpeg": {}}, "description": "A JPEG file."}},
        response_class=Response,
        tags=["items"],
        summary="The photo of an item, small",
    )
    async def image(
        id: ItemId, size: Annotated[int, Query(ge=1, le=MAX_SIDE, description="Longer side, in pixels.")] = 512
    ) -> Response:
        data = await service.thumbnail(id, size)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=300"})


def _add_state(app: FastAPI, service: SearchService, monitor: Monitor, options: ServingOptions) -> None:
    @app.get("/health", responses=errors(), tags=["state"], summary="Whether the service answers")
    async def health() -> Health:
        if not service.batcher.alive:
            raise HTTPException(503, "the service does not search any more", RETRY_AFTER)
        return Health(status="ok")

    @app.get("/info", responses=errors(), tags=["state"], summary="What is served")
    async def info() -> Info:
        return Info(
            model=service.model_name,
            gallery=service.name,
            modality=service.gallery.modality,
            items=await service.count(),
            columns=service.gallery.columns,
            limits={name: getattr(options, name) for name in LIMITS},
        )

    plain: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/plain": {}}, "description": "Text format of Prometheus."}
    }

    @app.get("/metrics", responses={**errors(), **plain}, response_class=Response, tags=["state"])
    async def metrics() -> Response:
        text, kind = monitor.text()
        return Response(text, media_type=kind)


def _add_error_handlers(app: FastAPI) -> None:
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # what was given is not repeated: it may be large, and NaN is no JSON
        causes = [f"{_place(one['loc'])}: {one['msg']}" for one in error.errors()]
        return problem(422, _printable("; ".join(dict.fromkeys(causes))))

    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        return problem(error.status_code, _printable(str(error.detail)), error.headers)

    async def wrong(request: Request, error: Exception) -> Response:
        return problem(422, _printable(str(error)))

    async def missing(request: Request, error: LookupError) -> Response:
        if isinstance(error, KeyError):
            return problem(404, _printable(f"there is no item '{error.args[0]}'"))
        return problem(404, _printable(str(error)))

    async def overloaded(request: Request, error: OverloadedError) -> Response:
        return problem(503, str(error), RETRY_AFTER)

    async def broken(request: Request, error: Exception) -> Response:
        return problem(500, "something went wrong here; the log of the service says what")

    handlers: dict[Any, Any] = {
        RequestValidationError: invalid,
        StarletteHTTPException: refused,
        RequestError: wrong,
        PhotoError: wrong,
        KeyError: missing,
        LookupError: missing,
        OverloadedError: overloaded,
        Exception: broken,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def plain_where(where: Where | None) -> dict[str, Any] | None:
    """A filter as the pipeline takes it."""
    if where is None:
        return None
    return {
        column: value.model_dump(exclude_unset=True) if isinstance(value, Range) else value
        for column, value in where.items()
    }


def read_where(text: str | None) -> dict[str, Any] | None:
    """A filter that came as JSON text.

    Raises:
        RequestError: if it is none.
    """
    if text is None or not text.strip():
        return None
    try:
        return plain_where(WHERES.validate_python(json.loads(text)))
    except (ValidationError, ValueError, RecursionError) as error:
        cause = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise RequestError(f"where: it is no filter in JSON: {cause}") from None


def _place(location: tuple) -> str:
    """Where in a request something is wrong, without the names of alternatives that pydantic tried."""
    return ".".join(str(part) for part in location if isinstance(part, int) or part.isidentifier())


def _printable(text: str) -> str:
    return text[:2000].encode("utf-8", "replace").decode()


__all__ = ["create_app"]
