"""A catalogue's entries in the shapes that clients look for. Pure: entries in, JSON out.

What clients ask for, and what they conclude:

* Open WebUI: `model` in `/api/tags`, `expires_at` in `/api/ps`, a version of dotted integers; `data[].id`.
* Copilot Chat: a version of 0.6.4 or more, `model` in `/api/tags`, then `POST /api/show`: the context under
  `<general.architecture>.context_length`, `general.basename` as the name, "tools" among the capabilities.
* Continue: `POST /api/show {"name"}`: `num_ctx` in `parameters`, `.Suffix` in `template` for filling in the middle.
* Cline: `name` in `/api/tags`.
* Zed: every field of `/api/tags`, each of its type.
* Hermes: `/api/v1/models` (with it we are LM Studio), `/api/tags`, `/v1/props`, `/props`, `/version`.
* the `ollama` command: `HEAD /`, `POST /api/show`.
"""
