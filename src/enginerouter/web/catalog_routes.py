"""The routes of the catalogue, of Ollama's management and of llama.cpp's extras."""

from __future__ import annotations

from collections.abc import Iterable

from enginerouter.web.catalog import Catalog
from enginerouter.web.extras import GENERATING, LOOKING, METHODS, Extras
from enginerouter.web.inference import Inference
from enginerouter.web.ollama_management import OllamaManagement
from enginerouter.web.routes import Route


def catalog_routes(catalog: Catalog) -> Iterable[Route]:
    yield Route("GET", "/v1", catalog.root)
    yield Route("GET", "/v1/models", catalog.models)
    yield Route("GET", "/v1/models/{id...}", catalog.model)
    yield Route("GET", "/v1/aliases", catalog.aliases)
    yield Route("GET", "/v1/props", catalog.props)
    yield Route("GET", "/props", catalog.props)
    yield Route("GET", "/version", catalog.engine_version)
    yield Route("GET", "/api/v1/models", catalog.lmstudio_models)
    yield Route("GET", "/api/tags", catalog.tags)
    yield Route("GET", "/api/show", catalog.show)
    yield Route("POST", "/api/show", catalog.show)
    yield Route("GET", "/api/ps", catalog.running)
    yield Route("GET", "/api/version", catalog.version)


def management_routes(management: OllamaManagement) -> Iterable[Route]:
    yield Route("POST", "/api/pull", management.pull, "admin")
    yield Route("POST", "/api/push", management.destructive, "admin")
    yield Route("POST", "/api/create", management.destructive, "admin")
    yield Route("POST", "/api/copy", management.destructive, "admin")
    yield Route("DELETE", "/api/delete", management.destructive, "admin")
    yield Route("HEAD", "/api/blobs/{digest}", management.blob, "admin")
    yield Route("POST", "/api/blobs/{digest}", management.blob, "admin")


def extra_routes(extras: Extras, inference: Inference) -> Iterable[Route]:
    for path in GENERATING:
        yield Route("POST", path, inference.serve)
    for path in LOOKING:
        yield Route("POST", path, extras.look)
    for method in METHODS:
        yield Route(method, "/upstream/{engine}/{path*}", extras.upstream, "admin")
