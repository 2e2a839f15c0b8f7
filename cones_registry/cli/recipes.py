"""Recipe: what a picture says of how it was made, read as a stranger's, and shown.

Anybody can write a recipe into a picture: shapes are checked, and nothing of it reaches a terminal
that the terminal would obey.
"""

from __future__ import annotations

import json
import math
import shlex
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cones_registry.digest import quote
from cones_registry.errors import CorruptDataError
from cones_registry.generation.recipe import RECIPE_FORMAT
from cones_registry.generation.schedulers import SCHEDULERS

DEFAULT_DTYPE = "float32"
"""What `cones generate` draws in unless it is told, on a CPU."""
_CONCEPT_TEXTS = ("ref", "mask_digest", "blob_digest", "scope", "token", "class_noun")
_OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories of what is no picture of a letter: controls, formats, halves of characters."""


@dataclass(frozen=True)
class Recipe:
    """The keys of schema/batch.md, checked; what a recipe does not say is None or empty.

    content: all of it, with what this version does not know. baseline: the method of an evaluation
    that trained a model of its own.
    """

    content: Mapping[str, Any]
    prompt: str | None
    negative_prompt: str | None
    read: Mapping[str, str]
    seed: int | None
    steps: int | None
    guidance: float | None
    size: tuple[int, int] | None
    scheduler: str | None
    mask_unconditional: bool
    base: str | None
    dtype: str | None
    composition: str | None
    concepts: tuple[Mapping[str, str | None], ...]
    versions: Mapping[str, str]
    baseline: str | None

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Recipe:
        """Check a recipe; CorruptDataError for another format or a value of another shape."""
        found = content.get("format", RECIPE_FORMAT)
        if found != RECIPE_FORMAT:
            raise CorruptDataError(
                f"the recipe's format is {quote(found)}; this version reads {RECIPE_FORMAT!r}. "
                "Upgrade cones-registry"
            )
        size = _taken(content, "size", _is_size, "[width, height] in pixels")
        # Recipes of before there was a choice do not say so: masks acted on both branches.
        masked = _taken(content, "mask_unconditional", _is_flag, "true or false")
        return cls(
            content=content,
            prompt=_taken(content, "prompt", _is_text, "text"),
            negative_prompt=_taken(content, "negative_prompt", _is_text, "text"),
            read=_taken(content, "read", _are_texts, "an object of texts") or {},
            seed=_taken(content, "seed", _is_whole, "a whole number"),
            steps=_taken(content, "steps", _is_whole, "a whole number"),
            guidance=_taken(content, "guidance", _is_number, "a number"),
            size=None if size is None else (size[0], size[1]),
            scheduler=_taken(content, "scheduler", _is_text, "text"),
            mask_unconditional=masked is not False,
            base=_taken(content, "base", _is_text, "text"),
            dtype=_taken(content, "dtype", _is_text, "text"),
            composition=_taken(content, "composition", _is_text, "text"),
            concepts=tuple(
                _taken(content, "concepts", _are_concepts, "a list of objects of texts") or ()
            ),
            versions=_taken(content, "versions", _are_texts, "an object of texts") or {},
            baseline=_taken(content, "baseline", _is_text, "text"),
        )

    def to_json(self) -> str:
        """All of it as JSON of ASCII alone; CorruptDataError for numbers that JSON has not."""
        try:
            return json.dumps(self.content, indent=2, allow_nan=False)
        except ValueError as error:
            raise CorruptDataError(f"the recipe cannot be written as JSON: {error}") from error

    def fields(self) -> dict[str, str | None]:
        """Name -> what a person reads, safe for a terminal."""
        concepts = "\n".join(shown(_concept(each)) for each in self.concepts)
        pairs = {
            "prompt": self.prompt,
            "negative prompt": self.negative_prompt,
            "read as": self.read.get("prompt"),
            "negative read as": self.read.get("negative_prompt") or None,
            "drawn by": self.baseline and f"the rival {self.baseline}, trained for an evaluation",
            "seed": self.seed,
            "steps": self.steps,
            "guidance": self.guidance,
            "size": self.size and f"{self.size[0]} × {self.size[1]}",
            "scheduler": self.scheduler,
            "unconditional branch": "masked" if self.mask_unconditional else "plain",
            "base": self.base and f"{self.base} in {self.dtype}" if self.dtype else self.base,
            "composition": self.composition,
            "versions": ", ".join(f"{name}={version}" for name, version in self.versions.items()),
        }
        texts = {key: None if value is None else shown(str(value)) for key, value in pairs.items()}
        first = ("prompt", "read as", "negative prompt", "negative read as")
        return {
            **{name: texts.pop(name) for name in first},
            "concepts": concepts,
            **texts,
        }

    def obstacle(self) -> str | None:
        """Why `cones generate` cannot draw it again; None where it can."""
        if self.baseline is not None:
            return f"a model that {shown(self.baseline)} trained drew it, and `generate` has none"
        needed = ("prompt", "seed", "steps", "guidance", "dtype")
        missing = [name for name in needed if getattr(self, name) is None]
        missing += ["the ref of a concept"] * any(not each.get("ref") for each in self.concepts)
        if missing:
            return f"the recipe does not say {', '.join(missing)}"
        words = [self.prompt, self.negative_prompt, *self.read.values()]
        words += [each["ref"] for each in self.concepts]
        if any(not _is_whole_text(word or "") for word in words):
            return "its words hold halves of characters"
        return None

    def again(self, source: str | None) -> str:
        """The `cones generate` that draws the picture again; ask ``obstacle`` first.

        source: what --base has to say; None where `generate` knows from the concepts.
        """
        # Names with exact versions where the prompt names concepts.
        prompt = self.read.get("exact_prompt", self.prompt or "")
        negative = self.read.get("exact_negative_prompt", self.negative_prompt or "")
        words = ["cones", "generate"]
        # What begins with a dash would be read as an option: it goes last, behind "--".
        last = ["--", prompt] if prompt.startswith("-") else []
        words += [] if last else [prompt]
        for concept in self.concepts:
            ref = concept["ref"] or ""
            if f"<{ref}>" not in prompt and f"<{ref}>" not in negative:
                words += ["-c", ref]
        words += ["--seed", str(self.seed), "--steps", str(self.steps)]
        words += ["--guidance", str(self.guidance)]
        if self.scheduler in SCHEDULERS:
            # A class name is the base model's own scheduler, which is taken anyway.
            words += ["--scheduler", self.scheduler]
        if not self.mask_unconditional:
            words.append("--plain-unconditional")
        if self.size is not None:
            words += ["--size", *map(str, self.size)]
        if negative:
            words += ["--negative", negative]
        if self.dtype != DEFAULT_DTYPE:
            words += ["--dtype", self.dtype or ""]
        if source is not None:
            words += ["--base", source]
        return " ".join(_quoted(word) for word in [*words, *last])


def shown(text: str) -> str:
    """``text`` with what a terminal would obey written as an escape."""
    return "".join(_escaped(each) if _is_obeyed(each) else each for each in text)


def _quoted(word: str) -> str:
    """A word for the shell, in $'…' where it holds what a terminal would obey."""
    if not any(map(_is_obeyed, word)):
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{shown(escaped)}'"


def _is_obeyed(character: str) -> bool:
    return unicodedata.category(character) in _OBEYED


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def _concept(concept: Mapping[str, str | None]) -> str:
    words = " ".join(word for key in ("token", "class_noun") if (word := concept.get(key)))
    where = f"at {words!r}" if concept.get("scope") == "subject" else "in the whole prompt"
    return f"{concept.get('ref')} {where}, mask {concept.get('mask_digest')}"


def _taken(
    content: Mapping[str, Any], name: str, check: Callable[[Any], bool], expected: str
) -> Any:
    """The value under ``name``, or None where there is none."""
    value = content.get(name)
    if value is not None and not check(value):
        raise CorruptDataError(
            f"the recipe's {name} is {quote(value)}, expected {expected}: cones did not write it"
        )
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole_text(value: str) -> bool:
    return not any(unicodedata.category(each) == "Cs" or each == "\0" for each in value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_whole, value))


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _are_concepts(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict)
        and all(each.get(key) is None or _is_text(each[key]) for key in _CONCEPT_TEXTS)
        for each in value
    )
