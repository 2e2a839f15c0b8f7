"""Character places of the tokens of a tokenizer that does not report them."""

from __future__ import annotations

from typing import Any

from cones_registry.errors import UsageError

SPACE = "\u2581"  # how sentencepiece writes a space


def piece_spans(
    tokenizer: Any, text: str, length: int | None = None
) -> tuple[list[tuple[int, int] | None], list[int]]:
    """Characters (start, end) of each token, None where it has none; and the tokens' ids.

    For sentencepiece tokenizers in Python (Kolors): their pieces, put together, are the text.
    length: padded and cut to so many tokens.

    Raises:
        UsageError: the pieces do not make up the text.
    """
    if not hasattr(tokenizer, "tokenize"):
        raise UsageError(
            f"{type(tokenizer).__name__} gives no character offsets, which scope 'subject' needs. "
            "Load the fast tokenizer of this model (pip install tokenizers)"
        )
    pieces = [str(piece) for piece in tokenizer.tokenize(text)]
    spans, at = [], 0
    for number, piece in enumerate(pieces):
        written = piece.replace(SPACE, " ")
        if number == 0 and written.startswith(" ") and not text.startswith(" "):
            written = written[1:]  # the space that sentencepiece puts before a text
        if not text.startswith(written, at):
            raise UsageError(
                f"{type(tokenizer).__name__} gives no character offsets and reads {text!r} as "
                f"{pieces}, which scope 'subject' cannot follow. Use plain letters, or a fast "
                "tokenizer of this model"
            )
        spans.append((at, at + len(written)))
        at += len(written)
    settings: dict[str, Any] = {}
    if length is not None:
        settings = {"padding": "max_length", "max_length": length, "truncation": True}
    ids = list(tokenizer(text, **settings)["input_ids"])
    own = [int(number) for number in tokenizer.convert_tokens_to_ids(pieces)]
    first = next((at for at in range(len(ids)) if ids[at : at + len(own)] == own), None)
    if first is None:  # cut: as many as there is room for
        first = next(at for at in range(len(ids)) if ids[at:] == own[: len(ids) - at])
    found: list[tuple[int, int] | None] = [None] * len(ids)
    kept = spans[: len(ids) - first]
    found[first : first + len(kept)] = [span if span[1] > span[0] else None for span in kept]
    return found, ids
