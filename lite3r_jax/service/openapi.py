"""The OpenAPI description of the service, for other programs and client generators."""

from typing import Any

from lite3r_jax.exports import FORMATS
from lite3r_jax.service.offer import MAX_TITLE, Offer
from lite3r_jax.service.record import STATES

_TEXT, _WHOLE, _NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
}
_CODES = {
    400: "a field is wrong, or the request is cut off",
    403: "a page of another site, or an unknown host name",
    404: "there is no such scene or file",
    408: "the upload was silent for too long",
    409: "the scene is not in a state for this",
    413: "too many photos, or too many bytes",
    415: "no form with files, or a file that is neither a photo nor a video by its name",
    503: "too many scenes wait; come again after the seconds of Retry-After",
    507: "too many scenes are kept, or too little room on the disk",
}


def document(offer: Offer) -> dict[str, Any]:
    """Returns the OpenAPI 3.1 description of the service as plain data for JSON.

    Args:
        offer: choices and limits of this service.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lite3r serve",
            "version": offer.version,
            "description": "Photos or a video to cameras, depth, points and files. A scene waits in"
            " a queue until it is computed; ask for it until its state is done, failed or"
            " cancelled. An error is an object with one line, `error`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/": {"get": _call("The page to work in", _page("The page"))},
            "/service": {
                "get": _call("What may be chosen, limits, and how much waits", _json("Service"))
            },
            "/openapi.json": {
                "get": _call("This description", {"200": _content("application/json", {})})
            },
            "/scenes": {
                "get": _call("All scenes, the newest first", _json("Scenes")),
                "post": _call(
                    "Send photos or one video, and put the scene into the queue",
                    _json("Scene", "202", "It waits; Location is its address"),
                    (400, 403, 408, 413, 415, 503, 507),
                )
                | {"requestBody": _upload(offer)},
            },
            "/scenes/{id}": {
                "parameters": [_ID],
                "get": _call("A scene: state, progress, files", _json("Scene"), (403, 404)),
                "delete": _call(
                    "Delete a scene and all of its files",
                    {"204": {"description": "It is gone"}},
                    (403, 404, 409),
                ),
            },
            "/scenes/{id}/cancel": {
                "parameters": [_ID],
                "post": _call(
                    "Give a scene up; one that is computed ends some seconds later",
                    _json("Scene", "202", "It is, or will be, cancelled"),
                    (403, 404, 409),
                ),
            },
            "/scenes/{id}/thumbnail": {
                "parameters": [_ID],
                "get": _call(
                    "A small picture of the first photo, of a scene that is done",
                    {"200": _content("image/jpeg", {})},
                    (403, 404),
                ),
            },
            "/scenes/{id}/files": {
                "parameters": [_ID],
                "get": _call("The files of a scene", _json("Files"), (403, 404)),
            },
            "/scenes/{id}/files/{format}": {
                "parameters": [
                    _ID,
                    {
                        "name": "format",
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string", "enum": list(FORMATS)},
                    },
                    {
                        "name": "download",
                        "in": "query",
                        "description": "present: the page html is sent as a file to keep",
                        "schema": _TEXT,
                    },
                ],
                "post": _call(
                    "Add a format that was not chosen to a scene that is done",
                    _json("Scene", "202", "It waits; adding says what for"),
                    (400, 403, 404, 409, 503),
                ),
                "get": _call(
                    "A file; a format that is a folder comes as a ZIP archive of it",
                    {"200": _files()},
                    (403, 404),
                ),
            },
        },
        "components": {"schemas": _schemas()},
    }


def _call(
    summary: str, answers: dict[str, Any], errors: tuple[int, ...] = (403,)
) -> dict[str, Any]:
    refused = {
        str(code): _content("application/json", _ref("Error")) | {"description": _CODES[code]}
        for code in errors
    }
    return {"summary": summary, "responses": answers | refused}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": "As asked for", "content": {kind: {"schema": schema}}}


def _json(name: str, code: str = "200", meaning: str = "As asked for") -> dict[str, Any]:
    return {code: _content("application/json", _ref(name)) | {"description": meaning}}


def _page(meaning: str) -> dict[str, Any]:
    return {"200": _content("text/html", _TEXT) | {"description": meaning}}


def _files() -> dict[str, Any]:
    kinds = ("application/octet-stream", "application/zip", "text/html")
    return {"description": "The bytes", "content": {kind: {"schema": {}} for kind in kinds}}


def _upload(offer: Offer) -> dict[str, Any]:
    fields = {
        "photos": {
            "type": "array",
            "items": {"type": "string", "contentMediaType": "application/octet-stream"},
            "maxItems": offer.options.max_photos,
            "description": "photos in order, the first is the reference view; or one video. Every"
            " part with a file name counts, whatever its field is called.",
        },
        "name": {"type": "string", "maxLength": MAX_TITLE, "description": "of the scene"},
        "model": {"type": "string", "enum": list(offer.models), "default": offer.models[0]},
        "attention": {
            "type": "string",
            "description": "a plan, by name or with settings: sla_global(keep=0.1); empty: that of"
            " the model",
            "examples": list(offer.plans),
        },
        "size": {
            "type": "string",
            "pattern": "^[0-9]+$",
            "description": "of the images that the network sees; empty: that of the model",
        },
        "formats": {
            "type": "string",
            "default": ",".join(offer.formats),
            "description": f"files to write, with commas between, of {', '.join(FORMATS)}",
        },
        "fps": {
            "type": "string",
            "description": "frames per second of a video, 1 unless asked for otherwise",
        },
    }
    schema = {"type": "object", "properties": fields, "required": ["photos"]}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _schemas() -> dict[str, Any]:
    file = _object(
        format={"type": "string", "enum": list(FORMATS)},
        name=_TEXT | {"description": "of the file or folder"},
        bytes=_WHOLE,
        href=_TEXT | {"description": "address to get it at"},
    )
    summary: dict[str, Any] = {
        "id": _TEXT,
        "name": _TEXT,
        "created": {"type": "string", "format": "date-time"},
        "state": {"type": "string", "enum": list(STATES)},
        "cancelling": {"type": "boolean", "description": "it will end soon"},
        "place": _WHOLE | {"description": "in the queue, from 1; 0: it does not wait"},
        "progress": {"oneOf": [_ref("Progress"), {"type": "null"}]},
        "error": {"type": ["string", "null"], "description": "why it failed, in one line"},
        "count": _WHOLE | {"description": "files that were sent"},
        "adding": {
            "type": ["string", "null"],
            "description": "a further format that the scene, which has results, waits for",
        },
    }
    scene = _object(
        **summary,
        settings={"type": "object", "additionalProperties": _TEXT},
        photos=_list(_ref("Photo")),
        views=_WHOLE | {"description": "photos or frames, of a scene that is done"},
        seconds={
            "type": "object",
            "additionalProperties": _NUMBER,
            "description": "stage -> wall time, of a scene that is done",
        },
        files=_list(_ref("File")),
    )
    return {
        "Error": _object(error=_TEXT),
        "File": file,
        "Files": _object(files=_list(_ref("File"))),
        "Photo": _object(
            name=_TEXT | {"description": "as it was sent"},
            stored=_TEXT | {"description": "name of the view in the results"},
            bytes=_WHOLE,
        ),
        "Progress": _object(
            stage=_TEXT,
            done=_WHOLE,
            total={"type": ["integer", "null"]},
            unit=_TEXT,
            seconds=_NUMBER | {"description": "since the stage began"},
            expected={
                "type": ["number", "null"],
                "description": "seconds that the stage will take, about",
            },
        ),
        "Scene": scene,
        "Scenes": _object(scenes=_list(_ref("Summary"))),
        "Summary": _object(**summary),
        "Service": _object(
            version=_TEXT,
            models=_list(_TEXT),
            attention=_list(_TEXT),
            formats=_list(_TEXT),
            default_formats=_list(_TEXT),
            photo_suffixes=_list(_TEXT),
            video_suffixes=_list(_TEXT),
            limits=_object(photos=_WHOLE, upload_bytes=_WHOLE, waiting=_WHOLE, scenes=_WHOLE),
            now=_object(scenes=_WHOLE, waiting=_WHOLE, arriving=_WHOLE),
        ),
    }
