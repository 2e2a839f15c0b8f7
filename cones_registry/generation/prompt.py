r"""Prompts that name concepts: ``a photo of <alice/dog> on a beach``.

``<owner/name>``, with ``:version``, ``:alias``, ``@sha256:…`` and ``*weight`` as in refs, stands
for a concept: its own words take the place, and its mask acts at exactly these words.
Without an owner, ``<dog>`` is the default owner's concept if there is one; else it is left as it
is, being a token of the tokenizer's own (textual inversion's ``<cat-toy>``) or a slip. ``\<`` is a
plain ``<``. Other networks' tags (``<lora:x:1>``), arrows, hearts and comparisons are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from cones_registry.attention import Phrase
from cones_registry.errors import ConesError, NotFoundError, UsageError
from cones_registry.refs import parse_ref
from cones_registry.weighting import format_weighted, parse_weighted

if TYPE_CHECKING:
    from cones_registry.record import Concept

PLAIN: Final = r"write \< for a plain '<'"
# Tags by which other programs load a network or an embedding: <lora:name:weight>.
_FOREIGN: Final = re.compile(
    r"(?:lora|lyco|loha|lokr|locon|dora|hypernet|embedding|emb|ti|wildcard|segment|sam|detector):",
    re.IGNORECASE,
)
_OWNED: Final = re.compile(r"(?P<owner>[^\s<>/:@*|]+)/(?P<name>[^\s<>/]+)")
_BARE: Final = re.compile(r"[a-z0-9][a-z0-9._-]*(?:[:@*][^\s<>]+)?")
_LETTERS: Final = re.compile(r"[^\s<>]*")


@dataclass(frozen=True)
class Name:
    """A place in a prompt where a concept is named, or may be.

    Attributes:
        ref: as written, without its weight.
        weight: share of the concept's neurons, (0, 1].
        start: its ``<`` in the prompt, as character offset.
        end: one past its ``>``.
        certain: it has an owner, so it can be nothing else than a concept's name.
        closed: it ends with ``>``.
        place: its column, for messages.
    """

    ref: str
    weight: float
    start: int
    end: int
    certain: bool
    closed: bool
    place: str


@dataclass(frozen=True)
class Place:
    """Words of a concept in a prompt as it is read.

    Attributes:
        ref: the exact ref, ``alice/dog:3``, with its weight where that is not 1.
        phrase: where the words stand.
    """

    ref: str
    phrase: Phrase


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt with words in place of names.

    Attributes:
        text: what the text encoder reads.
        pinned: the prompt as written, with exact refs in its names.
        places: the words that were put in, from left to right.
        whole: exact refs of the concepts named that act on the whole prompt.
        unknown: ``<word>`` and column of names without an owner that are no concept.
    """

    text: str
    pinned: str
    places: tuple[Place, ...] = ()
    whole: tuple[str, ...] = ()
    unknown: tuple[tuple[str, int], ...] = ()

    @property
    def refs(self) -> tuple[str, ...]:
        """Exact refs of all concepts that are named, each once."""
        return tuple(dict.fromkeys([*(place.ref for place in self.places), *self.whole]))


def find_names(prompt: str, *, what: str = "prompt") -> tuple[Name, ...]:
    """The names in ``prompt``, from left to right; ``what`` it is, for messages.

    Raises:
        UsageError: a name with an owner that is no ref, has no weight where one is announced, or
            is not closed; with its column.
    """
    if "<" not in prompt:
        return ()
    return tuple(_names(prompt, what))


def read_prompt(
    prompt: str, concept_of: Callable[[str], Concept | None], *, what: str = "prompt"
) -> ReadPrompt:
    """Put each concept's words in place of its name.

    Args:
        prompt: as written.
        concept_of: the record of the version that a ref names now; for a ref without an owner
            None if there is none.
        what: "prompt" or "negative prompt", for messages.

    Raises:
        ConesError: of the kind that ``concept_of`` raises, with the column of the name.
        UsageError: as ``find_names``; a concept of scope ``subject`` without a token.
    """
    read, pinned = _Writer(prompt), _Writer(prompt)
    places: list[Place] = []
    whole: list[str] = []
    unknown: list[tuple[str, int]] = []
    for name in find_names(prompt, what=what):
        concept = _concept(name, concept_of)
        if concept is None:
            if name.closed:
                unknown.append((prompt[name.start : name.end], name.start + 1))
            continue
        ref = format_weighted(concept.ref, name.weight)
        pinned.put(name, f"<{ref}>")
        token, noun = (concept.token or "").strip(), " ".join((concept.class_noun or "").split())
        start = read.put(name, f"{token} {noun}".strip())
        if concept.scope != "subject":
            whole.append(ref)
        elif not token:
            raise UsageError(
                f"{concept.ref} {name.place} acts at its own words but has no token. Push it with "
                "the token it was learnt with"
            )
        else:
            end = start + len(f"{token} {noun}".strip())
            called = f"{prompt[name.start : name.end]!r} {name.place}"
            places.append(Place(ref, Phrase(start, start + len(token), end, token, called)))
    return ReadPrompt(
        read.text(), pinned.text(keep_escapes=True), tuple(places), tuple(whole), tuple(unknown)
    )


class _Writer:
    """A prompt whose names are replaced one after the other."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._done = 0  # characters of the prompt
        self._pieces: list[tuple[str, bool]] = []  # text, and whether it was put in
        self._length = 0

    def put(self, name: Name, words: str) -> int:
        """Replace ``name``; returns where the words begin.

        Spaces part them from letters that touch them. Without words one of two spaces goes.
        """
        before, after = self._prompt[self._done : name.start], self._prompt[name.end : name.end + 1]
        self._add(before, False)
        self._done = name.end
        last = self._pieces[-1][0][-1:] if self._pieces else ""
        if not words:
            if last in ("", " ") and after == " ":
                self._done += 1
            return self._length
        if _is_letter(last):
            self._add(" ", True)
        start = self._length
        self._add(words, True)
        if _is_letter(after) or after == "<":
            self._add(" ", True)
        return start

    def _add(self, text: str, put: bool) -> None:
        if text:
            self._pieces.append((text, put))
            self._length += len(text if put else _plain(text))

    def text(self, *, keep_escapes: bool = False) -> str:
        """All of it."""
        pieces = [*self._pieces, (self._prompt[self._done :], False)]
        return "".join(text if put or keep_escapes else _plain(text) for text, put in pieces)


def _is_letter(text: str) -> bool:
    return bool(text) and (text.isalnum() or text == "_")


def _plain(text: str) -> str:
    return text.replace(r"\<", "<")


def _names(prompt: str, what: str) -> Iterator[Name]:
    at = prompt.find("<")
    while at >= 0:
        if at == 0 or prompt[at - 1] != "\\":
            name = _name(prompt, at, f"at column {at + 1} of the {what}")
            if name is not None:
                yield name
        at = prompt.find("<", at + 1)


def _name(prompt: str, start: int, place: str) -> Name | None:
    """The name that begins with the ``<`` at ``start``; None where that is something else."""
    found = _LETTERS.match(prompt, start + 1)
    inside = found[0] if found else ""
    end = start + 1 + len(inside)
    closed = prompt[end : end + 1] == ">"
    if _FOREIGN.match(inside):
        return None
    if _OWNED.fullmatch(inside):
        if not closed and _is_letter(prompt[:start][-1:]):
            return None  # a comparison, 1<2/3
        if not closed:
            raise UsageError(
                f"the name that begins with {'<' + inside!r} {place} has no '>'. Close it, "
                f"without spaces, or {PLAIN}"
            )
        ref, weight = _parsed(inside, place)
        return Name(ref, weight, start, end + 1, True, True, place)
    if _BARE.fullmatch(inside):
        try:
            ref, weight = _parsed(inside, place)
        except UsageError:
            return None
        return Name(ref, weight, start, end + closed, False, closed, place)
    return None


def _parsed(inside: str, place: str) -> tuple[str, float]:
    try:
        ref, weight = parse_weighted(inside)
        parse_ref(ref)
    except UsageError as error:
        raise UsageError(
            f"{'<' + inside + '>'!r} {place} is no concept's name: {error}. Expected "
            f"<owner/name>, <owner/name:alias> or <owner/name*0.7>; {PLAIN}"
        ) from error
    return ref, weight


def _concept(name: Name, concept_of: Callable[[str], Concept | None]) -> Concept | None:
    try:
        concept = concept_of(name.ref)
    except NotFoundError as error:
        _, _, suffix = name.ref.partition(":")
        hint = f"; a weight is written <{name.ref[: -len(suffix) - 1]}*{suffix}>"
        _raise_placed(error, name, hint if re.fullmatch(r"[01]?\.[0-9]+|1\.0*", suffix) else "")
    except ConesError as error:
        _raise_placed(error, name)
    if concept is None and name.certain:
        raise NotFoundError(f"<{name.ref}> {name.place}: there is no such concept")
    if concept is not None and not name.closed:
        raise UsageError(
            f"the name that begins with {'<' + name.ref!r} {name.place} has no '>'. Close it, "
            f"without spaces, or {PLAIN}"
        )
    return concept


def _raise_placed(error: ConesError, name: Name, hint: str = "") -> NoReturn:
    """The same error, with the column."""
    raise type(error)(f"<{name.ref}> {name.place}: {error}{hint}") from error
