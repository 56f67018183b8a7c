"""Wire formats: pure functions from our words to bytes and back. Bytes, dicts and moments in; bytes and dicts out.

Three dialects – OpenAI, Ollama, Anthropic – and one hub between them: OpenAI's JSON as dicts, with the fields that
nobody here knows kept. A request in a dialect that the engine speaks passes through, and none of this is used but the
errors, the late errors and the keep-alives of `base.Dialect`.

How one request is translated, in the order of the data path (`translation.py`):

1. `dialect` by the path: `OPENAI`, `OLLAMA` (`/api/…`), `ANTHROPIC` (`/v1/messages…`). `dialect.model_of(body)` and
   `dialect.wants_stream(path, body)` say what is asked. `ollama.residency_asked(path, body)` finds the requests that
   only load or unload; `ollama.residency_answer` is what they get.
   `/v1/messages/count_tokens` is answered by `anthropic.estimated_tokens` where the engine has no such path.
2. `plan(dialect, path, body, engine_api, answer_id=…, is_strict=…)` gives a `Translation`, or None: pass through. It
   raises BadRequest naming the field that cannot be said, NotBuilt (501) for a path without a twin. For each try of a
   chain it is made anew from the client's body.
3. `translation.path`, `translation.body` go to the engine as `payload(body)`; the body is in `engine_dialect`, and may
   be changed before (model name, set and default parameters, thinking guard).
4. Status 400 and above: `openai.engine_error_fields(status, raw)`, then `dialect.error_body(status, fields)`.
5. 200, no stream wanted: `translation.answer(raw, times, now, engine=name)` gives an `Answer`, or a `Failure` (an error
   under 200), or raises UpstreamFailed. A stream wanted, and `application/json` came: `answer_as_stream`, likewise.
6. 200, stream: `stream = translation.stream(times)`, then `stream.feed(piece, now)` for every piece and
   `stream.end(now)` once. What they give is whole events; `b""` is no write. After each: `stream.failure` is an error
   of the engine, to be answered like any other – a status before the commit, after it
   `dialect.error_frame(path, failure.status, failure.fields)`, and then a cut connection where
   `dialect.cuts_after_error`. `stream.is_done` is a tidy end.
   `stream.has_begun` says that something of the answer came, and no mere role: until then a chain may go on.
   `stream.usage` counts tokens. Keep-alives fit between any two results of `feed`.

All of it may run in a thread: nothing here is shared. Only `plan`, `payload` and `answer` of megabytes (pictures,
embeddings) are worth one; `is_strict` is for remote engines.

| client | path | engine that speaks OpenAI | only Ollama | only Anthropic |
| --- | --- | --- | --- | --- |
| OpenAI | /v1/chat/completions | passes | /api/chat | /v1/messages |
| OpenAI | /v1/completions | passes | /api/generate, raw | 501 |
| OpenAI | /v1/embeddings | passes | /api/embed | 501 |
| Ollama | /api/chat | /v1/chat/completions | passes | /v1/messages |
| Ollama | /api/generate | the same; raw or suffix: /v1/completions ¹ | passes | /v1/messages; raw or suffix: 501 |
| Ollama | /api/embed, /api/embeddings | /v1/embeddings | passes | 501 |
| Anthropic | /v1/messages | /v1/chat/completions | /api/chat | passes |

¹ with a suffix, for a llama.cpp (`has_infill`): /infill, because its /v1/completions overlooks the suffix.

`*_requests.py` and `*_answers.py` serve clients of a dialect, `*_engine.py` engines that speak nothing else.
"""
