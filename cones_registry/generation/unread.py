"""The end of a prompt that is longer than the text encoder reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cones_registry.attention.text_layout import TextPart, text_parts

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel


def unread_text(
    base: BaseModel, prompt: str, max_sequence_length: int | None = None, *, negative: bool = False
) -> str:
    """The part of ``prompt`` that the text encoders of ``base`` do not read; empty if all is read.

    Encoders that fill the same rows side by side (both of SDXL) each have to read all of it; of
    encoders that fill rows of their own (CLIP and T5 of Stable Diffusion 3) one is enough.

    Args:
        base: the base model.
        prompt: as the text encoder gets it, with concepts' words in place of their names.
        max_sequence_length: what the stock pipeline is told, where it takes that.
        negative: ``prompt`` is a negative prompt, which some pipelines read in another way.
    """
    ends: dict[int, str] = {}  # first row of the encoders -> the longest end that one leaves out
    with base.lock:
        for part in text_parts(base, max_sequence_length, negative=negative):
            if part.tokenizer is not None:
                ends[part.start] = max(ends.get(part.start, ""), _unread(part, prompt), key=len)
    return min(ends.values(), key=len, default="")


def _unread(part: TextPart, prompt: str) -> str:
    text = part.before + part.prepare(prompt) + part.after
    prompt_end = len(text) - len(part.after)
    limit = part.length if part.kept is None else max(part.kept) + 1  # tokens that become rows
    whole = part.tokenizer(text, truncation=False, verbose=False)["input_ids"]
    if len(whole) <= limit:
        return ""
    if not getattr(part.tokenizer, "is_fast", False):
        # Special tokens stand around the words: as many words fewer are read.
        plain = part.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)
        read = limit - (len(whole) - len(plain["input_ids"]))
        return str(part.tokenizer.decode(plain["input_ids"][read:])).strip()
    cut = part.tokenizer(
        text, truncation=True, max_length=part.length, return_offsets_mapping=True, verbose=False
    )
    end = max((stop for _, stop in cut["offset_mapping"][:limit]), default=0)
    return text[end:prompt_end].strip()
