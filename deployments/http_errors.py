"""The HTTP face of every error: one body shape, `{"error": {"code", "message"}}`.

400 no JSON; 404 unknown item or path; 413 too large; 422 readable but wrong; 503 a server or a rule
failed, with Retry-After where asking again can help; 500 a programmer's error, whose text stays in the log.
"""

from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recsys.errors import RecsysError, RequestError, RuleError, UnavailableError

RETRY_AFTER_S = "1"


class UnknownItemError(RequestError):
    """An item that the release does not have."""

    code = "unknown_item"


class MalformedError(RequestError):
    """A body that is not JSON."""

    code = "malformed_json"


STATUS: dict[type[RecsysError], int] = {
    UnknownItemError: 404,
    MalformedError: 400,
    RequestError: 422,
    UnavailableError: 503,
    RuleError: 503,
}


def json_response(content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, "application/json")


def error_response(
    code: str, message: str, *, status: int, headers: dict[str, str] | None = None
) -> Response:
    return json_response({"error": {"code": code, "message": message}}, status=status, headers=headers)


async def _recsys_error(request: Request, error: Exception) -> Response:
    status = next((s for kind, s in STATUS.items() if isinstance(error, kind)), 500)
    retry = {"Retry-After": RETRY_AFTER_S} if isinstance(error, UnavailableError) else None
    code = error.code if isinstance(error, RecsysError) else "internal"
    return error_response(code, str(error), status=status, headers=retry)


async def _invalid(request: Request, error: Exception) -> Response:
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    if first.get("type") == "json_invalid":
        reason = first.get("ctx", {}).get("error", first["msg"])
        return error_response(MalformedError.code, f"the body is not JSON: {reason}", status=400)
    where = ".".join(str(part) for part in first.get("loc", ()) if part != "body") or "the body"
    return error_response(RequestError.code, f"{where}: {first.get('msg', error)}", status=422)


async def _http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    code = {400: MalformedError.code, 404: "not_found", 405: "method_not_allowed"}.get(status, "http")
    detail = error.detail if isinstance(error, HTTPException) else str(error)
    return error_response(code, f"{request.method} {request.url.path}: {detail}", status=status)


async def _internal(request: Request, error: Exception) -> Response:
    return error_response("internal", "an internal error; its text is in the gateway's log", status=500)


HANDLERS: dict[Any, Any] = {
    RecsysError: _recsys_error,
    RequestValidationError: _invalid,
    HTTPException: _http,
    Exception: _internal,
}


class BodyLimit:
    """Refuses bodies over `limit` bytes with 413, before anything reads them whole."""

    def __init__(self, app: ASGIApp, *, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, send)
            return
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            more = message.get("more_body", False)
            if size > self.limit:
                refusal = error_response(
                    "too_large",
                    f"the body is larger than {self.limit:,} bytes: send less at once",
                    status=413,
                )
                await refusal(scope, receive, send)
                return
        body: Message | None = {"type": "http.request", "body": b"".join(chunks), "more_body": False}

        async def replayed() -> Message:
            nonlocal body
            message, body = body, None
            return message if message is not None else await receive()

        await self.app(scope, replayed, send)
