"""The web page and the JSON API of the service, as an ASGI application (Starlette).

Every request passes `viewer.access.refusal` first: requests from pages of other sites, or with
unknown host names (DNS rebinding), are refused. Paths are made of ids and names of formats, which
are looked up in tables; no text of a request becomes part of a path.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lite3r_jax.errors import InputError, printable
from lite3r_jax.exports import FORMATS, parse_formats
from lite3r_jax.service import openapi
from lite3r_jax.service import record as records
from lite3r_jax.service.downloads import is_folder, zipped
from lite3r_jax.service.offer import Offer
from lite3r_jax.service.record import INPUT, RESULTS, THUMBNAIL, Record
from lite3r_jax.service.refusals import Refused
from lite3r_jax.service.scenes import Scenes
from lite3r_jax.service.uploads import Upload, UploadLimits, too_large
from lite3r_jax.viewer.access import refusal

_FIELDS = ("name", "model", "attention", "size", "formats", "fps")
_AT_ONCE = 1 << 20  # bytes of an upload that are handed to the disk together
_SILENCE = 60.0  # seconds that an upload may be silent
_READ_ON, _READ_ON_SECONDS = 64 << 20, 5.0
_PAGE = {"app.js": "text/javascript", "app.css": "text/css"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
# A scene's page runs as of no site: whatever got into it could not use the service.
_SCENE_POLICY = "sandbox allow-scripts allow-downloads; frame-ancestors 'self'"


def create_app(scenes: Scenes, offer: Offer, host: str = "127.0.0.1") -> ASGIApp:
    """Creates the ASGI application of the service, with its access checks.

    Args:
        scenes: scenes that are served.
        offer: choices and limits of the service.
        host: address at which the service will be reached, for `viewer.access.refusal`.
    """
    handlers = _Handlers(scenes, offer)
    page = handlers.asset("index.html", "text/html", {"Content-Security-Policy": _POLICY})
    routes = [Route("/", page)]
    routes += [Route(f"/{name}", handlers.asset(name, kind)) for name, kind in _PAGE.items()]
    routes += [
        Route("/openapi.json", handlers.describe),
        Route("/service", handlers.service),
        Route("/scenes", handlers.create, methods=["POST"]),
        Route("/scenes", handlers.list_all),
        Route("/scenes/{id}", handlers.delete, methods=["DELETE"]),
        Route("/scenes/{id}", handlers.show),
        Route("/scenes/{id}/cancel", handlers.cancel, methods=["POST"]),
        Route("/scenes/{id}/thumbnail", handlers.thumbnail),
        Route("/scenes/{id}/files", handlers.list_files),
        Route("/scenes/{id}/files/{format}", handlers.add_file, methods=["POST"]),
        Route("/scenes/{id}/files/{format}", handlers.file),
    ]
    errors: Any = {InputError: _refused, HTTPException: _no_route, Exception: _broken}
    app = Starlette(routes=routes, exception_handlers=errors)
    app.router.redirect_slashes = False
    return _Guard(app, host, offer.options.allowed_hosts)


class _Guard:
    """Middleware that refuses foreign pages and host names, and adds security headers."""

    def __init__(self, app: ASGIApp, host: str, allowed: str):
        self._app, self._host, self._allowed = app, host, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", "default-src 'none'; sandbox")
                headers.setdefault("Cache-Control", "no-store")
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
            await send(message)

        headers = Request(scope).headers
        why = refusal(
            headers, self._host, self._allowed, setting="serve.allowed_hosts", what="service"
        )
        if why is not None:
            await _error(why, 403)(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)


class _Handlers:
    """The request handlers of all routes."""

    def __init__(self, scenes: Scenes, offer: Offer):
        self._scenes, self._offer = scenes, offer
        options = offer.options
        self._limits = UploadLimits(options.max_photos, int(options.max_upload_megabytes * 1e6))

    def asset(self, name: str, kind: str, headers: Mapping[str, str] | None = None) -> Any:
        """Returns a handler that responds with a static file of the web page."""
        body = (files("lite3r_jax.service") / "page_assets" / name).read_bytes()

        async def answer(request: Request) -> Response:
            return Response(body, media_type=kind, headers=headers)

        return answer

    async def describe(self, request: Request) -> Response:
        return JSONResponse(openapi.document(self._offer))

    async def service(self, request: Request) -> Response:
        return JSONResponse(self._offer.described() | {"now": self._scenes.counts()})

    # -- scenes --------------------------------------------------------------------------------

    async def list_all(self, request: Request) -> Response:
        return JSONResponse({"scenes": [self._summary(each) for each in self._scenes.all()]})

    async def show(self, request: Request) -> Response:
        return JSONResponse(self._shown(self._scene(request)))

    async def create(self, request: Request) -> Response:
        announced = request.headers.get("content-length", "")
        size = int(announced) if announced.isascii() and announced.isdecimal() else None
        try:
            if size is not None and size > self._limits.total:
                raise too_large(self._limits)
            new = await self._create(request, size)
        except InputError:
            await _read_on(request)
            raise
        where = f"/scenes/{new.id}"
        return JSONResponse(self._shown(new), 202, headers={"Location": where})

    async def _create(self, request: Request, size: int | None) -> Record:
        with self._scenes.arriving(size) as folder:
            upload = Upload(
                request.headers.get("content-type", ""), folder / INPUT, self._limits, _FIELDS
            )
            try:
                await _received(request, upload)
            finally:
                upload.close()
            settings = self._offer.checked(upload.fields)
            name = _title(settings.pop("name"), upload)
            new = Record(self._scenes.new_id(), name, records.now(), settings, tuple(upload.files))
            self._scenes.add(new, folder)
        return new

    async def cancel(self, request: Request) -> Response:
        return JSONResponse(self._shown(self._scenes.cancel(request.path_params["id"])), 202)

    async def delete(self, request: Request) -> Response:
        await run_in_threadpool(self._scenes.remove, request.path_params["id"])
        return Response(status_code=204)

    # -- what was made -------------------------------------------------------------------------

    async def thumbnail(self, request: Request) -> Response:
        path = self._scenes.path(self._scene(request)) / THUMBNAIL
        if not path.is_file():
            raise Refused("the scene has no picture yet", 404)
        return FileResponse(path, media_type="image/jpeg")

    async def list_files(self, request: Request) -> Response:
        return JSONResponse({"files": self._files(self._scene(request))})

    async def add_file(self, request: Request) -> Response:
        (name,) = parse_formats(request.path_params["format"].replace(",", " "))
        return JSONResponse(self._shown(self._scenes.extend(request.path_params["id"], name)), 202)

    async def file(self, request: Request) -> Response:
        record, name = self._scene(request), request.path_params["format"]
        if name not in record.outputs or name not in FORMATS:
            there = ", ".join(record.outputs) or "none"
            raise Refused(f"the scene has no such file; there are: {there}", 404)
        path = self._scenes.path(record) / RESULTS / FORMATS[name].name
        if is_folder(path):
            return StreamingResponse(
                zipped(path),
                media_type="application/zip",
                headers={"Content-Disposition": f'attachment; filename="{path.name}.zip"'},
            )
        if not path.is_file():
            raise Refused("the file was removed from the folder of results", 404)
        if name == "html" and "download" not in request.query_params:
            return FileResponse(
                path, media_type="text/html", headers={"Content-Security-Policy": _SCENE_POLICY}
            )
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    # -- JSON ----------------------------------------------------------------------------------

    def _scene(self, request: Request) -> Record:
        return self._scenes.get(request.path_params["id"])

    def _summary(self, record: Record) -> dict[str, Any]:
        place, progress, cancelling = self._scenes.where(record.id)
        return {
            "id": record.id,
            "name": record.name,
            "created": record.created,
            "state": record.state,
            "cancelling": cancelling,
            "place": place,
            "progress": _progress(progress),
            "error": record.error or None,
            "count": len(record.files),
            "adding": record.adding or None,
        }

    def _shown(self, record: Record) -> dict[str, Any]:
        return self._summary(record) | {
            "settings": dict(record.settings),
            "photos": [
                {"name": each.name, "stored": each.stored, "bytes": each.bytes}
                for each in record.files
            ],
            "views": record.views,
            "seconds": dict(record.seconds),
            "files": self._files(record),
        }

    def _files(self, record: Record) -> list[dict[str, Any]]:
        return [
            {
                "format": name,
                "name": FORMATS[name].name,
                "bytes": size,
                "href": f"/scenes/{record.id}/files/{name}",
            }
            for name, size in record.outputs.items()
            if name in FORMATS
        ]


async def _received(request: Request, upload: Upload) -> None:
    """Receives the body of a request and writes it to an upload, piece by piece."""
    pieces, waiting = request.stream().__aiter__(), bytearray()
    try:
        while True:
            try:
                waiting += await asyncio.wait_for(anext(pieces), _SILENCE)
            except StopAsyncIteration:
                break
            if len(waiting) >= _AT_ONCE:
                await run_in_threadpool(upload.write, bytes(waiting))
                waiting.clear()
    except TimeoutError as error:
        raise Refused(f"nothing came for {_SILENCE:.0f} s; send it again", 408) from error
    except ClientDisconnect as error:
        raise Refused("the upload ended early; send it again") from error
    await run_in_threadpool(upload.write, bytes(waiting))
    upload.finish()


async def _read_on(request: Request) -> None:
    """Reads and discards the rest of a refused upload, up to a limit of bytes and seconds.

    A client that still sends while the connection is closed would see an error of the connection
    instead of the response.
    """
    left = _READ_ON
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):  # RuntimeError: it has ended
        async with asyncio.timeout(_READ_ON_SECONDS):
            async for piece in request.stream():
                left -= len(piece)
                if left < 0:
                    break


def _title(asked: str, upload: Upload) -> str:
    """Returns the name of a scene: the requested one, or its first file and how many more."""
    if asked:
        return asked
    first, more = Path(upload.files[0].name).stem, len(upload.files) - 1
    return f"{first} and {more} more" if more else first


def _progress(progress: Any) -> dict[str, Any] | None:
    if progress is None:
        return None
    return {
        "stage": progress.stage,
        "done": progress.done,
        "total": progress.total,
        "unit": progress.unit,
        "seconds": round(max(time.time() - progress.since, 0.0), 1),
        "expected": None if progress.expected is None else round(progress.expected, 1),
    }


def _error(message: str, status: int) -> JSONResponse:
    headers = {"Connection": "close"} if status in (408, 413) else {}
    if status == 503:
        headers["Retry-After"] = "10"
    return JSONResponse({"error": printable(message)}, status, headers=headers)


async def _refused(request: Request, error: InputError) -> Response:
    return _error(str(error), error.status if isinstance(error, Refused) else 400)


async def _no_route(request: Request, error: HTTPException) -> Response:
    hint = "see /openapi.json"
    texts = {404: f"there is nothing at this address; {hint}", 405: f"not with this method; {hint}"}
    return _error(texts.get(error.status_code, error.detail), error.status_code)


async def _broken(request: Request, error: Exception) -> Response:
    return _error("internal error; the log of the service says more", 500)
