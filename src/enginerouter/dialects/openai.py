"""The OpenAI wire format: its errors, as answers and in-band, in the shapes that make the official SDKs raise."""

from __future__ import annotations

import json
from typing import Any

from enginerouter.errors import RouterError

DONE = b"data: [DONE]\n\n"


def error_fields(error: RouterError, *, is_admin: bool, request_id: str) -> dict[str, Any]:
    """The error object. Admin keys also see `detail` (log tails, paths)."""
    fields: dict[str, Any] = {
        "message": error.message,
        "type": error.kind,
        "param": None,
        "code": error.code,
        "request_id": request_id,
        **error.more_fields(),
    }
    if is_admin and error.admin_detail:
        fields["detail"] = error.admin_detail
    return fields


def error_body(error: RouterError, *, is_admin: bool, request_id: str) -> bytes:
    """The body of an error answer."""
    return json.dumps({"error": error_fields(error, is_admin=is_admin, request_id=request_id)}).encode()


def error_frame(fields: dict[str, Any], *, is_responses: bool) -> bytes:
    """The end of a stream that failed: `fields` is an error object.

    Chat and completions: an error object, then [DONE]. The Responses API has an `error` event of its own, whose
    `error` member is what makes the SDK raise instead of handing it on as one more event.
    """
    if not is_responses:
        return f"data: {json.dumps({'error': fields})}\n\n".encode() + DONE
    event = {
        "type": "error",
        "code": fields.get("code"),
        "message": fields.get("message"),
        "param": fields.get("param"),
        "sequence_number": 0,
        "error": fields,
    }
    return f"event: error\ndata: {json.dumps(event)}\n\n".encode()


def engine_error_fields(status: int, body: bytes) -> dict[str, Any]:
    """The error object of an engine's own error answer, whatever shape it has (six are known); never raises."""
    try:
        said: Any = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict):
        for key in ("error", "detail"):
            inner = said.get(key)
            if isinstance(inner, dict) and isinstance(text := inner.get("message") or inner.get("msg"), str):
                return {"type": "server_error", "param": None, "code": status, **inner, "message": text}
            if isinstance(inner, str) and inner:
                return _plain(status, inner)
        if isinstance(said.get("message"), str):
            return _plain(status, said["message"])
    text = body[:500].decode("utf-8", "replace").strip()
    return _plain(status, text or f"the engine answered with status {status}")


def _plain(status: int, message: str) -> dict[str, Any]:
    return {"message": message, "type": "server_error", "param": None, "code": status}
