"""Sizes and vocabularies of the tiny models: the real architectures, with random weights and no files."""

from __future__ import annotations

import string

from transformers import Qwen2Tokenizer

TINY_IMAGE_SIZE = 56  # px: 4 x 4 patches of 14
TINY_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": TINY_IMAGE_SIZE, "patch_size": 14,
}  # fmt: skip
TINY_TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY_CHARACTERS = ["▁", "\n", *string.ascii_letters, *string.digits, *string.punctuation]
PRINTABLE_BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
TINY_BYTES = [chr(byte) for byte in PRINTABLE_BYTES] + [chr(256 + i) for i in range(256 - len(PRINTABLE_BYTES))]
"""GPT-2's characters for the 256 bytes: printable ones stand for themselves, the others for 256 and up."""


def tiny_qwen_tokenizer(marks: tuple[str, ...]) -> Qwen2Tokenizer:
    """Return Qwen's tokenizer class with one token per byte, then `marks`."""
    vocab = {token: i for i, token in enumerate(["<|endoftext|>", *TINY_BYTES, *marks])}
    return Qwen2Tokenizer(vocab=vocab, merges=[], extra_special_tokens=list(marks))
