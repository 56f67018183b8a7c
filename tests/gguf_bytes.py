"""GGUF headers byte by byte, right and wrong ones: what make_gguf.py would never write."""

from __future__ import annotations

import struct

STRING, ARRAY, UINT32, UINT8 = 8, 9, 4, 0


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def header(*pairs: bytes, tensors: int = 0, keys: int | None = None, magic: bytes = b"GGUF", version: int = 3) -> bytes:
    count = len(pairs) if keys is None else keys
    return magic + struct.pack("<IQQ", version, tensors, count) + b"".join(pairs)


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, *items: bytes, count: int | None = None) -> bytes:
    return struct.pack("<IQ", kind, len(items) if count is None else count) + b"".join(items)


def tensor(name: str, *dimensions: int) -> bytes:
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return text(name) + shape + struct.pack("<IQ", 0, 0)


ARCHITECTURE = pair("general.architecture", STRING, text("llama"))
CONTEXT = pair("llama.context_length", UINT32, struct.pack("<I", 131072))
VOCABULARY = pair("tokenizer.ggml.tokens", ARRAY, array(STRING, *(text(f"token {n}") for n in range(5000))))
SCORES = pair("tokenizer.ggml.token_type", ARRAY, array(UINT8, b"\1" * 5000, count=5000))
TEMPLATE = pair("tokenizer.chat_template", STRING, text("{% if tools %}{{ tools }}{% endif %}<think>"))
WHOLE = header(ARCHITECTURE, VOCABULARY, SCORES, CONTEXT, TEMPLATE, tensors=2) + tensor("a", 64, 8) + tensor("b", 100)
