"""The OpenAI wire format: the shape of its errors."""

from __future__ import annotations

import json
from typing import Any

from enginerouter.errors import RouterError


def error_body(error: RouterError, *, is_admin: bool, request_id: str) -> bytes:
    """The body of an error answer. Admin keys also see `detail` (log tails, paths)."""
    fields: dict[str, Any] = {
        "message": error.message,
        "type": error.kind,
        "param": None,
        "code": error.code,
        "request_id": request_id,
    }
    if is_admin and error.admin_detail:
        fields["detail"] = error.admin_detail
    return json.dumps({"error": fields}).encode()
