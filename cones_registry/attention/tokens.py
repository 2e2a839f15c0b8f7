"""The rows of a concept's own tokens in a prompt."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import torch

from cones_registry.errors import NotFoundError, UsageError


def subject_rows(
    tokenizer: Any,
    prompt: str,
    *,
    token: str,
    class_noun: str | None = None,
    length: int | None = None,
    include_padding: bool = False,
    required: bool = True,
) -> torch.Tensor:
    """Find the rows of ``token`` and of the class noun that follows it: bool [T].

    tokenizer: a fast tokenizer (it must report character offsets).
    token: the placeholder, one word or several tokens long. All its occurrences count.
    class_noun: counted where it follows the placeholder directly ("V* dog"); the same noun
        elsewhere is another object and is left alone. A placeholder without it counts by itself.
    length: T, number of rows the text encoder reads; by default the tokenizer's maximum.
    include_padding: also the end-of-text row and the padding rows behind it.
    required: raise NotFoundError if the prompt does not name the token; else return no rows.
    """
    if not token.strip():
        raise UsageError("the concept's token is empty; a subject needs a word that names it")
    rows = length if length is not None else int(tokenizer.model_max_length)
    text = unicodedata.normalize("NFC", prompt)
    spans = [match.span() for match in _phrase(token, class_noun).finditer(text)]
    if not spans:
        if required:
            raise NotFoundError(
                f"token {token!r} is not in the prompt {prompt!r}. A concept of scope 'subject' "
                "acts on the rows of its own token: name it in the prompt"
                + (f", as in '{token} {class_noun}'" if class_noun else "")
            )
        return torch.zeros(rows, dtype=torch.bool)
    found, content = _rows_of_spans(tokenizer, text, spans, rows)
    if not found.any():
        raise NotFoundError(
            f"token {token!r} stands past the {rows} tokens the text encoder reads in the prompt "
            f"{prompt!r}. Name it earlier"
        )
    if include_padding:
        found[int(content.nonzero()[-1]) + 1 :] = True
    return found


def names_token(prompt: str, token: str) -> bool:
    """Whether ``prompt`` names ``token`` as a word; needs no tokenizer."""
    return _phrase(token, None).search(unicodedata.normalize("NFC", prompt)) is not None


def _phrase(token: str, class_noun: str | None) -> re.Pattern[str]:
    """``token``, its numbered continuations (textual inversion) and, if it follows, the noun."""
    name = re.escape(unicodedata.normalize("NFC", token.strip()))
    pattern = rf"(?<!\w){name}(?:\s+{name}_\d+)*"
    words = unicodedata.normalize("NFC", class_noun or "").split()
    if words:
        pattern += r"(?:\s+" + r"\s+".join(map(re.escape, words)) + r"(?!\w))?"
    return re.compile(pattern + r"(?!\w)", re.IGNORECASE)


def _rows_of_spans(
    tokenizer: Any, text: str, spans: list[tuple[int, int]], rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that overlap a span, and rows that carry text at all: two bool [T]."""
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            f"{type(tokenizer).__name__} gives no character offsets, which scope 'subject' needs. "
            "Load the fast tokenizer of this model (pip install tokenizers)"
        )
    encoded = tokenizer(
        text,
        padding="max_length",
        max_length=rows,
        truncation=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    found = torch.zeros(rows, dtype=torch.bool)
    content = torch.zeros(rows, dtype=torch.bool)
    special = encoded["special_tokens_mask"]
    for row, (start, stop) in enumerate(encoded["offset_mapping"]):
        if special[row] or stop <= start:
            continue
        content[row] = True
        found[row] = any(start < end and begin < stop for begin, end in spans)
    return found, content
