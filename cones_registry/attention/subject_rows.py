"""Which rows of an encoded prompt are a concept's own: one answer, for learning and for drawing.

A prompt is text; a ``Phrase`` says where in it a concept's words stand, by character position.
``subject_rows`` follows these positions through the pipeline's own preparation of the text and
through each tokenizer's offsets to rows of K and V. ``find_phrases`` is the search for people who
write a concept's token themselves.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import torch

from cones_registry.attention.pieces import SPACE, piece_spans
from cones_registry.attention.text_layout import TextPart, text_parts
from cones_registry.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from cones_registry.base_model import BaseModel

RowChoice = Literal["phrase", "token", "padding"]
"""Which rows count: placeholder and noun, the placeholder alone, or also all after the prompt."""
ROW_CHOICES: Final[tuple[str, ...]] = get_args(RowChoice)

_MARK = "|"  # stands behind a piece of text while it is prepared, so that its end is not trimmed
# Scripts that are written without spaces between words, by how Unicode names their letters.
_UNSPACED = (
    *("CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC"),
    *("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "YI"),
)


@dataclass(frozen=True)
class Phrase:
    """Where one concept's words stand in a prompt, as character offsets.

    Attributes:
        start: first character of the placeholder.
        token_end: one past its last character.
        end: one past the last character of the class noun behind it; ``token_end`` without one.
        token: the placeholder as the concept was learnt with it; empty: as the prompt has it.
        name: what the user calls these words, for messages; empty: the words themselves.
    """

    start: int
    token_end: int
    end: int
    token: str = ""
    name: str = ""


def row_count(base: BaseModel, max_sequence_length: int | None = None) -> int:
    """Rows T that the text encoder of ``base`` gives for every prompt.

    Args:
        base: the base model.
        max_sequence_length: what the stock pipeline is told, where it takes that (PixArt does).
    """
    return max(part.start + part.row_count for part in text_parts(base, max_sequence_length))


def subject_rows(
    base: BaseModel,
    prompt: str,
    phrases: Sequence[Phrase],
    *,
    choice: RowChoice = "phrase",
    length: int | None = None,
    negative: bool = False,
) -> torch.Tensor:
    """Find the rows of ``phrases`` in ``prompt`` as the pipeline of ``base`` reads it: bool [T].

    A row counts for a phrase if its token covers at least one of the phrase's characters, in any
    of the pipeline's tokenizers (SDXL has two).

    Args:
        base: the base model.
        prompt: the prompt as it is given to the pipeline.
        phrases: where the concept's words stand in it; none gives no rows.
        choice: "phrase" for placeholder and noun, "token" for the placeholder alone, "padding" for
            both and every row after the prompt.
        length: T, the number of rows the text encoder reads; by default ``row_count(base)``.
        negative: ``prompt`` is a negative prompt, which some pipelines read in another way.

    Raises:
        NotFoundError: the text encoder does not read as far as the end of a phrase.
        UsageError: a tokenizer that cuts characters, or one that reads a placeholder as other
            tokens than where it stands by itself.
    """
    rows = row_count(base) if length is None else length
    found = torch.zeros(rows, dtype=torch.bool)
    if not phrases:
        return found
    with base.lock:
        for part in _parts_of(base, rows, negative):
            if part.tokenizer is None:
                continue
            own = tokenizer_rows(part, prompt, phrases, choice)
            found[part.start : part.start + len(own)] |= own
    return found


def _parts_of(base: BaseModel, rows: int, negative: bool) -> tuple[TextPart, ...]:
    """The text's parts where it has ``rows`` rows in all."""
    usual = text_parts(base, negative=negative)
    last = max(usual, key=lambda part: part.start)
    if last.start + last.row_count == rows:
        return usual
    return text_parts(base, rows - last.start, negative=negative)


def tokenizer_rows(
    part: TextPart, prompt: str, phrases: Sequence[Phrase], choice: RowChoice
) -> torch.Tensor:
    """``subject_rows`` for one tokenizer: bool [rows that it fills].

    Args:
        part: the tokenizer, and what becomes of its tokens.
        prompt: the prompt as it is given to the pipeline.
        phrases: where the words stand in it.
        choice: which rows count.
    """
    found = torch.zeros(part.length, dtype=torch.bool)
    reading = _Reading(part, prompt)
    for phrase in phrases:
        found |= reading.rows_of(phrase, choice)
    return found if part.kept is None else found[torch.tensor(part.kept)]


def find_phrases(
    prompt: str, *, token: str, class_noun: str | None = None, required: bool = True
) -> tuple[Phrase, ...]:
    """Find ``token`` and the class noun that follows it wherever ``prompt`` has them as words.

    Case does not count, nor how accented letters are composed. A letter of a script without
    spaces (Chinese, Japanese, Korean, Thai …) beside the token does not make it part of a longer
    word. Needs no tokenizer.

    Args:
        prompt: the text to search.
        token: the placeholder, one word or several tokens long; its numbered continuations
            (``token_1 token_2``, as textual inversion writes them) belong to it.
        class_noun: counted where it follows the placeholder directly ("V* dog"); the same noun
            elsewhere is another object and is left alone. A placeholder without it counts by
            itself.
        required: raise NotFoundError if the prompt does not name the token; else return nothing.

    Raises:
        UsageError: the token is empty.
        NotFoundError: the prompt does not name the token.
    """
    if not token.strip():
        raise UsageError("the concept's token is empty; a subject needs a word that names it")
    found = tuple(_search(_Folded(prompt), token.strip(), (class_noun or "").split()))
    if not found and required:
        raise NotFoundError(
            f"token {token!r} is not in the prompt {prompt!r}. A concept of scope "
            "'subject' acts on the rows of its own token: name it in the prompt"
            + (f", as in '{token} {class_noun}'" if class_noun else "")
        )
    return found


def names_token(prompt: str, token: str) -> bool:
    """Whether ``prompt`` names ``token`` as a word; needs no tokenizer."""
    return bool(token.strip() and find_phrases(prompt, token=token, required=False))


def _chosen(choice: RowChoice, token: torch.Tensor, phrase: torch.Tensor, end: int) -> torch.Tensor:
    """The rows that count, bool [T]: the one place that decides it.

    token, phrase: bool [T], rows of the placeholder, and with its noun. end: first row after the
    prompt (its end-of-text row, or padding).
    """
    if choice == "token":
        return token
    if choice == "phrase":
        return phrase
    if choice == "padding":
        return phrase | (torch.arange(len(phrase)) >= end)
    raise UsageError(f"rows={choice!r}; expected one of {', '.join(ROW_CHOICES)}")


class _Reading:
    """One prompt as one tokenizer reads it."""

    def __init__(self, part: TextPart, prompt: str) -> None:
        self._tokenizer, self._prompt, self._part = part.tokenizer, prompt, part
        self._text = part.before + part.prepare(prompt) + part.after
        self._prompt_end = len(self._text) - len(part.after)
        self._rows = part.length
        self._spans, self._ids = self._encode(padding="max_length", max_length=part.length)
        self._content_end = 1 + max(
            (row for row, span in enumerate(self._spans) if span and span[0] < self._prompt_end),
            default=-1,
        )

    def rows_of(self, phrase: Phrase, choice: RowChoice) -> torch.Tensor:
        """bool [T]."""
        start, token_end, end = (
            self._position(place) for place in (phrase.start, phrase.token_end, phrase.end)
        )
        token, whole = self._covering(start, token_end), self._covering(start, end)
        self._check_end(phrase, end, int(whole.sum()))
        self._check_pieces(phrase, token)
        return _chosen(choice, token, whole, self._content_end)

    def _encode(self, **settings: Any) -> tuple[list[tuple[int, int] | None], list[int]]:
        """Characters (start, end) of each token of the text, None where it has none; and ids."""
        if not getattr(self._tokenizer, "is_fast", False):
            return piece_spans(self._tokenizer, self._text, settings.get("max_length"))
        encoded = self._tokenizer(
            self._text,
            truncation="max_length" in settings,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,  # no warning that the text is long
            **settings,
        )
        offsets, special = encoded["offset_mapping"], encoded["special_tokens_mask"]
        spans = [
            None if mark or stop <= start else (start, stop)
            for (start, stop), mark in zip(offsets, special, strict=True)
        ]
        return spans, encoded["input_ids"]

    def _position(self, place: int) -> int:
        """Where a character of the prompt stands in the prepared text."""
        prepare, before = self._part.prepare, len(self._part.before)
        if prepare(self._prompt) == self._prompt:
            return before + place
        return before + len(prepare(self._prompt[:place] + _MARK)) - len(_MARK)

    def _covering(self, start: int, end: int) -> torch.Tensor:
        """Rows whose tokens cover a character from ``start`` up to ``end``, bool [T]."""
        return torch.tensor([_overlap(span, start, end) for span in self._spans], dtype=torch.bool)

    def _check_end(self, phrase: Phrase, end: int, count: int) -> None:
        """Raise NotFoundError if not all of the phrase is read."""
        if self._content_end and (self._spans[self._content_end - 1] or (0, 0))[1] >= end:
            return
        spans, _ = self._encode()
        if count and count == sum(
            _overlap(span, self._position(phrase.start), end) for span in spans
        ):
            return
        raise NotFoundError(
            f"{self._said(phrase)} is cut off: the text encoder reads the first {self._rows} "
            f"tokens of the prompt {self._prompt!r}. Name it earlier, or shorten the prompt"
        )

    def _check_pieces(self, phrase: Phrase, token: torch.Tensor) -> None:
        """Raise UsageError unless the placeholder is read as where it stands by itself.

        Glued to a neighbour it becomes other tokens, which the concept was not learnt for.
        """
        ids = [number for number, own in zip(self._ids, token.tolist(), strict=True) if own]
        words = phrase.token or self._prompt[phrase.start : phrase.token_end]
        for before in ("", " "):  # some tokenizers read a word differently behind a space
            alone = before + self._part.prepare(words)
            own = list(self._tokenizer(alone, add_special_tokens=False)["input_ids"])
            if ids == own or (ids == own[1:] and self._is_space(own[0])):
                return
        pieces = self._tokenizer.convert_ids_to_tokens(ids)
        raise UsageError(
            f"{self._said(phrase)} is read as {' + '.join(map(repr, pieces))}, not as {words!r} "
            f"is by itself, in the prompt {self._prompt!r}. Write {words!r} with spaces around it"
        )

    def _is_space(self, number: int) -> bool:
        """Whether a token is the space before a word, as sentencepiece writes it."""
        return bool(self._tokenizer.convert_ids_to_tokens([number]) == [SPACE])

    def _said(self, phrase: Phrase) -> str:
        words = self._prompt[phrase.start : phrase.end]
        return phrase.name or f"{words!r} at column {phrase.start + 1}"


def _overlap(span: tuple[int, int] | None, start: int, end: int) -> bool:
    return span is not None and span[0] < end and start < span[1]


class _Folded:
    """A text in which letters that are the same to a reader are the same, with their places.

    letters: canonically decomposed, without case. places: int, where each stands in the text; one
    more for its end.
    """

    def __init__(self, text: str) -> None:
        letters, places = [], []
        for place, letter in enumerate(text):
            for part in _folded(letter):
                letters.append(part)
                places.append(place)
        self.letters = "".join(letters)
        self.places = [*places, len(text)]


def _folded(text: str) -> str:
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).casefold())


def _search(text: _Folded, token: str, noun: Sequence[str]) -> Iterator[Phrase]:
    """Phrases from left to right; they do not overlap."""
    name, words = _folded(token), [_folded(word) for word in noun]
    at = text.letters.find(name)
    while at >= 0:
        stop = at + len(name)
        if not _is_word(text.letters, at, stop):
            at = text.letters.find(name, at + 1)
            continue
        while (further := _continued(text.letters, stop, name)) is not None:
            stop = further
        end = _followed(text.letters, stop, words)
        start, token_end, whole = (text.places[place] for place in (at, stop, end))
        # Continuations (``token_1``) are read with the token, so it is not looked for by itself.
        yield Phrase(start, token_end, whole, token if stop == at + len(name) else "")
        at = text.letters.find(name, end)


def _continued(letters: str, at: int, name: str) -> int | None:
    """Where ``name_<number>`` behind spaces at ``at`` ends, None if it is not there."""
    start = _past_spaces(letters, at) + len(name) + 1
    if start <= at + len(name) + 1 or letters[start - len(name) - 1 : start] != f"{name}_":
        return None
    stop = start
    while stop < len(letters) and letters[stop].isdigit():
        stop += 1
    return stop if stop > start and _is_word(letters, start, stop, left=False) else None


def _followed(letters: str, at: int, words: Sequence[str]) -> int:
    """Where ``words`` behind ``at`` end, each behind spaces; ``at`` if they do not follow."""
    stop = at
    for word in words:
        start = _past_spaces(letters, stop)
        if start == stop or not letters.startswith(word, start):
            return at
        stop = start + len(word)
    return stop if _is_word(letters, at, stop, left=False) else at


def _past_spaces(letters: str, at: int) -> int:
    while at < len(letters) and letters[at].isspace():
        at += 1
    return at


def _is_word(letters: str, start: int, stop: int, *, left: bool = True) -> bool:
    """Whether no letter beside ``letters[start:stop]`` makes it part of a longer word."""
    if left and start > 0 and _joins(letters[start - 1], letters[start]):
        return False
    return stop == len(letters) or not _joins(letters[stop - 1], letters[stop])


def _joins(one: str, other: str) -> bool:
    """Whether two neighbouring letters belong to one word; those of two scripts do not."""
    if unicodedata.combining(other):
        return True
    if one.isalpha() and other.isalpha() and _script(one) != _script(other):
        return False
    return all(
        (each.isalnum() or each == "_" or unicodedata.combining(each)) and not _unspaced(each)
        for each in (one, other)
    )


def _script(letter: str) -> str:
    """The script of a letter, as its name in Unicode begins: ``"LATIN"``."""
    return unicodedata.name(letter, "").partition(" ")[0]


def _unspaced(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(_UNSPACED)
