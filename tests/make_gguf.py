"""Writes GGUF models with random weights, so that a real llama-server can be tested without a download.

    python tests/make_gguf.py red.gguf              # 260 kB, loads in 20 ms, thousands of tokens a second
    python tests/make_gguf.py red.gguf --size 1024  # about 1 GiB, really held with `--load-mode none`

What a model says is gibberish, but tells who said it: every word of model `red` is `red` and a number.
It never ends an answer by itself (the end-of-text token is out of reach): it says `max_tokens` words.
Needs the `real` extra (gguf, numpy).
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gguf
import numpy as np

CONTEXT_TOKENS = 8192
# More than twice llama-server's default top-k of 40: bytes and </s> are never among the 40 likeliest.
WORDS = 96
SPECIAL = ["<unk>", "<s>", "</s>"]
CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths of a llama model: `blocks` layers, each of 4 attention and 3 feed-forward matrices."""

    embedding: int
    feed_forward: int
    heads: int
    blocks: int

    @property
    def block_bytes(self) -> int:
        return 2 * (4 * self.embedding**2 + 3 * self.embedding * self.feed_forward)


def shape_for(size: Literal["tiny"] | int) -> Shape:
    """`size` is "tiny" or the wanted size in MiB; the result is within half a block of it."""
    if size == "tiny":
        return Shape(embedding=64, feed_forward=128, heads=4, blocks=2)
    width = 2048 if size >= 256 else 512
    one = Shape(embedding=width, feed_forward=width, heads=width // 64, blocks=1)
    blocks = max(1, round(size * 1024 * 1024 / one.block_bytes))
    return Shape(embedding=width, feed_forward=width, heads=width // 64, blocks=blocks)


def make_gguf(
    path: str | Path, *, size: Literal["tiny"] | int = "tiny", name: str | None = None, fills_gaps: bool = False
) -> Path:
    """Write a model that answers in words made of `name` (the file's stem if None); return its path.

    `fills_gaps`: it has the tokens for `/infill`, the last three of its words.
    It appears whole or not at all, so a cached file is never half a model.
    """
    path = Path(path)
    name = path.stem if name is None else name
    shape = shape_for(size)
    random = np.random.default_rng(seed=7)
    partial = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(str(partial), "llama")
    _add_metadata(writer, name, shape)
    _add_vocabulary(writer, name)
    if fills_gaps:
        keys, last = gguf.Keys.Tokenizer, len(SPECIAL) + 256 + WORDS - 1
        for key, token in ((keys.FIM_PRE_ID, last - 2), (keys.FIM_SUF_ID, last - 1), (keys.FIM_MID_ID, last)):
            writer.add_uint32(key, token)
    _add_tensors(writer, shape, random)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)
    return path


def _add_metadata(writer: gguf.GGUFWriter, name: str, shape: Shape) -> None:
    writer.add_name(name)
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.embedding // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def _add_vocabulary(writer: gguf.GGUFWriter, name: str) -> None:
    word = re.sub(r"\W+", "", name) or "word"
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    words = [f"\u2581{word}{i}" for i in range(WORDS)]  # U+2581 is how sentencepiece writes a space
    kinds = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_token_list(SPECIAL + bytes_ + words)
    writer.add_token_scores([0.0] * (len(SPECIAL) + 256) + [-float(i) for i in range(WORDS)])
    writer.add_token_types([kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256 + [kinds.NORMAL] * WORDS)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_tensors(writer: gguf.GGUFWriter, shape: Shape, random: np.random.Generator) -> None:
    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns), dtype=np.float32) / columns**0.5).astype(np.float16)

    width, inner = shape.embedding, shape.feed_forward
    tokens = len(SPECIAL) + 256 + WORDS
    ones = np.ones(width, dtype=np.float32)
    output = matrix(tokens, width) * np.float16(4)
    output[: len(SPECIAL) + 256] = 0
    writer.add_tensor("token_embd.weight", matrix(tokens, width))
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", output)
    # Every block repeats the same numbers: a gigabyte of fresh ones would take ten seconds, and says no more.
    attention = [matrix(width, width) for _ in range(4)]
    gate, up, down = matrix(inner, width), matrix(inner, width), matrix(width, inner)
    for block in range(shape.blocks):
        prefix = f"blk.{block}"
        writer.add_tensor(f"{prefix}.attn_norm.weight", ones)
        for part, weights in zip(("q", "k", "v", "output"), attention, strict=True):
            writer.add_tensor(f"{prefix}.attn_{part}.weight", weights)
        writer.add_tensor(f"{prefix}.ffn_norm.weight", ones)
        writer.add_tensor(f"{prefix}.ffn_gate.weight", gate)
        writer.add_tensor(f"{prefix}.ffn_up.weight", up)
        writer.add_tensor(f"{prefix}.ffn_down.weight", down)


def _size(text: str) -> Literal["tiny"] | int:
    if text == "tiny":
        return "tiny"
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'tiny' nor a number of MiB")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write a GGUF model with random weights.")
    parser.add_argument("path", type=Path, help="the file to write")
    parser.add_argument("--size", type=_size, default="tiny", metavar="tiny|MIB", help="default: tiny, 260 kB")
    parser.add_argument("--name", help="what its words are made of; default: the file's name")
    options = parser.parse_args(argv)
    path = make_gguf(options.path, size=options.size, name=options.name)
    print(f"{path}: {path.stat().st_size / 1024 / 1024:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
