"""Scripted servers that load their models over HTTP, speaking as the real ones do – truthfully or not.

`lies` and `fails` are switches a test sets: `fails["GET /api/ps"]` is the script played instead of the answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from dialect_engines import ollama_engine
from engine_server import CLOSE, FakeEngineServer, Received, Script, chunked, head, ok, usual

HANGS = "hangs"
ERROR_SHAPES: dict[str, tuple[int, bytes, str]] = {
    "object": (500, b'{"error": {"message": "boom one", "type": "server_error", "code": 500}}', "boom one"),
    "text": (500, b'{"error": "boom two"}', "boom two"),
    "flat": (500, b'{"object": "error", "message": "boom three", "code": 500}', "boom three"),
    "detail": (500, b'{"detail": "boom four"}', "boom four"),
    "detail list": (422, b'{"detail": [{"loc": ["body", "model"], "msg": "boom five", "type": "x"}]}', "boom five"),
    "detail object": (503, b'{"detail": {"msg": "boom six", "type": "busy"}}', "boom six"),
    "anthropic": (500, b'{"type": "error", "error": {"type": "api_error", "message": "boom seven"}}', "boom seven"),
    "empty": (503, b"", "503"),
    "html": (404, b"<!DOCTYPE html><html><body>Not Found</body></html>", "404"),
    "200 with an error": (200, b'{"error": "boom eight"}', "boom eight"),
    "list": (500, b'[{"error": {"message": "boom nine"}}]', "boom nine"),
    "not JSON": (200, b"OK", "no list"),
    "a bare text": (200, b'"OK"', "no list"),
    "list in place of an object": (200, b"[1, 2]", ""),
}


def say(document: Any, status: int = 200) -> Script:
    return ok(json.dumps(document).encode(), status=status)


class ScriptedServer(FakeEngineServer):
    """What they share: a log of the control calls, and failures on demand."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.lies: set[str] = set()
        self.fails: dict[str, Script | str] = {}
        self.script = self._answer
        self.calls: list[tuple[str, Any]] = []
        self.chats: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def called(self, what: str) -> list[Any]:
        """The bodies of the calls to `METHOD /path`."""
        return [body for call, body in self.calls if call == what]

    def _answer(self, received: Received) -> Script:
        path = received.target.partition("?")[0]
        what = f"{received.method} {path}"
        body = json.loads(received.body) if received.body[:1] == b"{" else received.body or None
        if path == "/v1/chat/completions":
            self.chats.append(body["model"])
            chat = self.chat(body)
            return usual(self.name)(received) if chat is None else chat
        self.calls.append((what, body))
        failure = self.fails.get(what)
        if failure == HANGS:
            return [asyncio.Event()]
        if isinstance(failure, list):
            return failure
        return self.control(what, body, received)

    def chat(self, body: Any) -> Script | None:
        return None

    def control(self, what: str, body: Any, received: Received) -> Script:
        raise NotImplementedError


class LmStudio(ScriptedServer):
    """Native API: keys are downloaded, instances are in memory. Unknown paths are 200 with an error body."""

    def __init__(self, keys: tuple[str, ...] = ("qwen", "gemma")) -> None:
        super().__init__("lms")
        self.instances: dict[str, list[str]] = {key: [] for key in keys}

    @property
    def loaded(self) -> list[str]:
        return [i for found in self.instances.values() for i in found]

    def control(self, what: str, body: Any, received: Received) -> Script:
        if what == "GET /api/v1/models":
            return say({"models": [self._entry(k, found) for k, found in self.instances.items()]})
        if what == "GET /v1/models":
            return say({"object": "list", "data": [{"id": key, "object": "model"} for key in self.instances]})
        if what == "POST /api/v1/models/load":
            key = body["model"]
            if key not in self.instances:
                return say({"error": {"type": "model_not_found", "message": f"Model {key} not found"}}, 404)
            instance = f"{key}:{len(self.called(what)) + 1}"
            if "load" not in self.lies:
                self.instances[key].append(instance)
            return say({"type": "llm", "instance_id": instance, "load_time_seconds": 0.1, "status": "loaded"})
        if what == "POST /api/v1/models/unload":
            instance = body["instance_id"]
            if instance not in self.loaded:
                return say({"error": {"type": "invalid_request", "message": f"No instance {instance}"}}, 404)
            if "unload" not in self.lies:
                for found in self.instances.values():
                    found[:] = [i for i in found if i != instance]
            if "blind" in self.lies:
                self.fails["GET /api/v1/models"] = say({"error": "gone blind"}, 500)
            return say({"instance_id": instance})
        return say({"error": f"Unexpected endpoint or method. ({what})"})

    def _entry(self, key: str, found: list[str]) -> dict[str, Any]:
        instances = [{"id": i, "config": {"context_length": 4096}} for i in found]
        return {"type": "llm", "publisher": "x", "key": key, "display_name": key, "loaded_instances": instances}


LM_STUDIO: dict[str, Any] = {
    "health_path": "/api/v1/models",
    "load_path": "/api/v1/models/load",
    "load_body": {"model": "{model}"},
    "unload_path": "/api/v1/models/unload",
    "unload_body": {"instance_id": "{model}"},
    "loaded_path": "/api/v1/models",
    "loaded_models_key": "models",
    "loaded_name_key": "key",
}


class Tabby(ScriptedServer):
    """One model or none; loads answer as events ended by CRLF, failures among them; both want the admin key."""

    def __init__(self) -> None:
        super().__init__("tabby")
        self.model: str | None = None

    def control(self, what: str, body: Any, received: Received) -> Script:
        if what == "GET /health":
            return say({"status": "unhealthy", "issues": ["x"]}, 503) if "sick" in self.lies else say({"status": "ok"})
        if what == "GET /v1/model":
            if self.model is None:
                return say({"detail": "No models are currently loaded."}, 503)
            return say({"id": self.model, "object": "model", "owned_by": "tabbyAPI", "parameters": {}})
        if received.header("x-admin-key") != "secret":
            return say({"detail": "Invalid admin key"}, 401)
        if what == "GET /v1/models":
            return say({"object": "list", "data": [{"id": m} for m in ("mistral", "yi", "broken")]})
        if what == "POST /v1/model/load":
            return self._load(body["model_name"])
        if what == "POST /v1/model/unload":
            if "unload" not in self.lies:
                self.model = None
            return say(None)
        return say({"detail": "Not Found"}, 404)

    def _load(self, name: str) -> Script:
        events = [b'data: {"model_type": "model", "module": 1, "modules": 2, "status": "processing"}\r\n\r\n']
        if name == "broken":
            events.append(b'data: {"error": {"message": "CUDA is out of memory", "trace": null}}\r\n\r\n')
        else:
            if "load" not in self.lies:
                self.model = name
            events.append(b": ping - now\r\n\r\n")
            events.append(b'data: {"model_type": "model", "module": 2, "modules": 2, "status": "finished"}\r\n\r\n')
        kind = [("Content-Type", "text/event-stream"), ("Connection", "close")]
        return [head(200, kind), *events, CLOSE]


TABBY: dict[str, Any] = {
    "health_path": "/health",
    "load_path": "/v1/model/load",
    "load_body": {"model_name": "{model}", "draft_model": {"names": ["{model}-draft"]}},
    "unload_path": "/v1/model/unload",
    "loaded_path": "/v1/model",
    "loaded_models_key": "",
    "loaded_name_key": "id",
    "control_headers": {"x-admin-key": "secret"},
}


class OllamaDaemon(ScriptedServer):
    """Loads on request; says "unload" at once, and unloads `slow_unload` looks later, or never (`lies`: unload).

    `sizes` are the bytes of its models; `taken` is called with them at a load, and with less than 0 at an unload.
    """

    def __init__(self, *models: str) -> None:
        super().__init__("ollama")
        self.models = list(models or ("llama3:latest", "phi:3b"))
        self.cloud = ["gpt-oss:120b-cloud"]
        self.running: list[str] = []
        self.elsewhere: list[str] = []
        self.slow_unload = 0
        self.blobs: dict[str, bytes] = {}
        # What `/api/show` says; nothing: it does not know the path.
        self.shown: dict[str, Any] = {}
        self.sizes: dict[str, int] = {}
        self.taken: Callable[[int], None] = lambda size: None
        self._leaving: list[str] = []

    def chat(self, body: Any) -> Script | None:
        name = body["model"] if ":" in body["model"] else f"{body['model']}:latest"
        if name not in (*self.models, *self.cloud):
            return say({"error": {"message": f"model '{name}' not found", "type": "not_found_error"}}, 404)
        into = self.elsewhere if name in self.cloud else self.running
        if name not in into:
            into.append(name)
            self.taken(self.sizes.get(name, 0))
        return None

    def control(self, what: str, body: Any, received: Received) -> Script:
        if what == "GET /":
            return ok(b"Ollama is running")
        if what == "GET /api/version":
            return say({"version": "0.33.0"})
        if what == "GET /api/tags":
            here = [{"name": m, "model": m} for m in self.models]
            away = [{"name": m, "model": m, "remote_host": "https://ollama.com", "remote_model": m} for m in self.cloud]
            return say({"models": here + away})
        if what == "GET /api/ps":
            if self.slow_unload:
                self.slow_unload -= 1
            else:
                for model in [m for m in self.running if m in self._leaving]:
                    self.running.remove(model)
                    self.taken(-self.sizes.get(model, 0))
                self._leaving.clear()
            sizes = {m: self.sizes.get(m, 1) for m in self.running}
            here = [{"name": m, "model": m, "size": sizes[m], "size_vram": sizes[m]} for m in self.running]
            away = [{"name": m, "model": m, "remote_host": "https://ollama.com"} for m in self.elsewhere]
            return say({"models": here + away})
        if what == "POST /api/generate" and body.get("keep_alive") == 0 and not body.get("prompt"):
            if "unload" not in self.lies:
                self._leaving.append(body["model"])
            return say({"model": body["model"], "response": "", "done": True, "done_reason": "unload"})
        if what in ("POST /api/chat", "POST /api/generate", "POST /api/embed"):
            return self.chat(body) or ollama_engine(received)
        if what == "POST /api/show" and self.shown:
            return say({**self.shown, "modelfile": f"FROM {body['model']}"})
        return self._manage(what, body)

    def _manage(self, what: str, body: Any) -> Script:
        if what == "POST /api/pull":
            self.models.append(body.get("model") or body["name"])
            lines = [{"status": "pulling manifest"}, {"status": "success"}]
            return lines_of(*lines) if body.get("stream") is not False else say(lines[-1])
        if what == "DELETE /api/delete":
            if body["model"] not in self.models:
                return say({"error": f"model '{body['model']}' not found"}, 404)
            self.models.remove(body["model"])
            return ok(b"")
        if what.startswith("POST /api/blobs/"):
            self.blobs[what.rpartition("/")[2]] = body
            return ok(b"", status=201)
        if what.startswith("HEAD /api/blobs/"):
            return ok(b"", status=200 if what.rpartition("/")[2] in self.blobs else 404)
        if what in ("POST /api/create", "POST /api/push"):
            return lines_of({"status": "success"})
        if what == "POST /api/copy":
            self.models.append(body["destination"])
            return ok(b"")
        return say({"error": "404 page not found"}, 404)


def lines_of(*documents: Any) -> Script:
    """A stream of Ollama's, each line in a chunk of its own."""
    kind = [("Content-Type", "application/x-ndjson"), ("Transfer-Encoding", "chunked")]
    return [head(200, kind), *chunked([json.dumps(d).encode() + b"\n" for d in documents])]


class Provider(ScriptedServer):
    """A remote provider whose base has a path and which wants a key."""

    def __init__(self, base: str = "/api/v1") -> None:
        super().__init__("provider")
        self.base = base
        self.answer: Script | None = None

    @property
    def url(self) -> str:
        return super().url + self.base

    def _answer(self, received: Received) -> Script:
        if received.header("Authorization") != "Bearer provider-key":
            return say({"error": {"message": "No auth credentials found", "code": 401}}, 401)
        if received.target == f"{self.base}/models":
            return say([{"id": "meta/llama"}, {"id": "gpt-x"}])  # a bare array, as Together's
        if received.target != f"{self.base}/chat/completions":
            return say({"error": {"message": f"no {received.target}", "code": 404}}, 404)
        return self.answer if self.answer is not None else usual(self.name)(received)
