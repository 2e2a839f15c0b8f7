"""The templates, and where a page's links lead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import jinja2

FOLDER: Final = Path(__file__).parent
STYLE: Final = FOLDER / "static" / "style.css"


@dataclass(frozen=True)
class Section:
    """One entry of the navigation."""

    name: str
    href: str


@dataclass(frozen=True)
class Site:
    """Where links lead from one page.

    Attributes:
        title: of the whole site.
        home: link to its first page.
        link: name of a file beside the pages -> its address.
        concept: a concept's view -> the address of its page.
        preview: name of a picture -> its address.
        sections: the navigation; none for a site of one kind of page.
        footer: last line of every page.
    """

    title: str
    home: str
    link: Callable[[str], str]
    concept: Callable[[Any], str]
    preview: Callable[[str], str]
    sections: tuple[Section, ...] = ()
    footer: str = "cones_registry"


@cache
def environment() -> jinja2.Environment:
    """The templates of this folder. Every value is escaped; a missing one is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, site: Site, **values: Any) -> str:
    """One page as HTML."""
    return environment().get_template(template).render(site=site, **values)
