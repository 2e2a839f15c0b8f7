"""The end of a prompt that is longer than the text encoder reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel


def unread_text(base: BaseModel, prompt: str, rows: int) -> str:
    """The part of ``prompt`` that no text encoder of ``base`` reads; empty if all is read.

    rows: T, as ``row_count`` says.
    """
    with base.lock:
        ends = [_unread(tokenizer, prompt, rows) for tokenizer in base.tokenizers]
    return min(ends, key=len, default="")


def _unread(tokenizer: Any, prompt: str, rows: int) -> str:
    whole = tokenizer(prompt, add_special_tokens=True, truncation=False, verbose=False)
    count = len(whole["input_ids"])
    if count <= rows:
        return ""
    # Special tokens stand around the words: as many words fewer are read.
    plain = tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False)
    read = rows - (count - len(plain["input_ids"]))
    if getattr(tokenizer, "is_fast", False):
        first = plain.char_to_token  # asks for the offsets of a fast tokenizer
        start = next((at for at in range(len(prompt)) if (first(at) or 0) >= read), len(prompt))
        return prompt[start:].strip()
    return str(tokenizer.decode(plain["input_ids"][read:])).strip()
