"""The routes of the catalogue, of Ollama's management and of llama.cpp's extras, and in which dialect they fail."""

from __future__ import annotations

from collections.abc import Iterable

from enginerouter.dialects.openai import error_fields
from enginerouter.dialects.translation import OLLAMA
from enginerouter.errors import RouterError
from enginerouter.web.catalog import Catalog
from enginerouter.web.extras import GENERATING, LOOKING, METHODS, Extras
from enginerouter.web.inference import Inference
from enginerouter.web.ollama_management import OllamaManagement
from enginerouter.web.routes import Access, Route, RouteHandler


def ollama_error(error: RouterError, *, is_admin: bool, request_id: str) -> bytes:
    return OLLAMA.error_body(error.status, error_fields(error, is_admin=is_admin, request_id=request_id))


def in_ollama(method: str, path: str, handler: RouteHandler, access: Access = "key") -> Route:
    """A route whose errors are Ollama's."""
    return Route(method, path, handler, access, ollama_error)


def catalog_routes(catalog: Catalog) -> Iterable[Route]:
    yield Route("GET", "/v1", catalog.root)
    yield Route("GET", "/v1/models", catalog.models)
    yield Route("GET", "/v1/models/{id...}", catalog.model)
    yield Route("GET", "/v1/aliases", catalog.aliases)
    yield Route("GET", "/v1/props", catalog.props)
    yield Route("GET", "/props", catalog.props)
    yield Route("GET", "/version", catalog.engine_version)
    yield Route("GET", "/api/v1/models", catalog.lmstudio_models)
    yield in_ollama("GET", "/api/tags", catalog.tags)
    yield in_ollama("GET", "/api/show", catalog.show)
    yield in_ollama("POST", "/api/show", catalog.show)
    yield in_ollama("GET", "/api/ps", catalog.running)
    yield in_ollama("GET", "/api/version", catalog.version)


def management_routes(management: OllamaManagement) -> Iterable[Route]:
    yield in_ollama("POST", "/api/pull", management.pull, "admin")
    yield in_ollama("POST", "/api/push", management.destructive, "admin")
    yield in_ollama("POST", "/api/create", management.destructive, "admin")
    yield in_ollama("POST", "/api/copy", management.destructive, "admin")
    yield in_ollama("DELETE", "/api/delete", management.destructive, "admin")
    yield in_ollama("HEAD", "/api/blobs/{digest}", management.blob, "admin")
    yield in_ollama("POST", "/api/blobs/{digest}", management.blob, "admin")


def extra_routes(extras: Extras, inference: Inference) -> Iterable[Route]:
    for path in GENERATING:
        yield Route("POST", path, inference.serve)
    for path in LOOKING:
        yield Route("POST", path, extras.look)
    for method in METHODS:
        yield Route(method, "/upstream/{engine}/{path*}", extras.upstream, "admin")
