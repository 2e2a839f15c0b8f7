"""Every page in a real browser: what runs, who can use it, what it looks like in the narrow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from looking import HOSTILE, HOSTILE_NOTE, LOOKS, browser, fill, find_chromium, serving

from cones_registry import BaseModel, Registry
from cones_registry.pages import write_gallery

pytest.importorskip("playwright", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-core")
if find_chromium() is None:
    pytest.skip("no Chromium on this machine (apt-get install chromium)", allow_module_level=True)

from playwright.sync_api import Page, expect  # noqa: E402

TOKEN = "a-token-of-the-tests-0123456789"
PAGES = (
    "/concepts",
    "/concepts?text=eve&filter=nonsense",
    "/concepts/alice/buoy",
    f"/concepts/{HOSTILE}",
    "/compose?concept=alice/buoy&concept=bob/crate",
    "/storage",
    "/batches",
    "/concepts/nobody/none",
)
# What the browser itself objects to, kept where the test can read it.
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation",
    (event) => window.violations.push(event.violatedDirective + " " + event.blockedURI));
"""


@pytest.fixture(scope="module")
def base(tiny_pipeline_folder: Path) -> BaseModel:
    return BaseModel.load(tiny_pipeline_folder)


@pytest.fixture(scope="module")
def registry(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("pages")
    with Registry.create(folder / "registry", cache=folder / "cache") as registry:
        fill(registry, base)
        yield registry


@pytest.fixture(scope="module")
def url(base: BaseModel, registry: Registry) -> Iterator[str]:
    with serving(base, registry, allow_write=True, tokens={TOKEN: "ann"}) as url:
        yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as chromium:
        yield chromium


@pytest.fixture(params=["desktop-light", "phone-dark"])
def look(request: pytest.FixtureRequest) -> dict[str, Any]:
    return LOOKS[request.param]


@pytest.fixture
def page(chromium: Any, look: dict[str, Any], url: str) -> Iterator[Page]:
    """A page of somebody who has signed in; fails if anything ran that should not."""
    context = chromium.new_context(**look)
    context.add_init_script(WATCH)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    sign_in(page, url)
    yield page
    told = [text for text in said if "the server responded with a status of 40" not in text]
    context.close()
    assert told == []


def sign_in(page: Page, url: str) -> None:
    """Open the first page and sign in, without a mouse."""
    page.goto(f"{url}/concepts")
    page.get_by_label("Token of this service").focus()
    page.keyboard.type(TOKEN)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Concepts", level=1)).to_be_visible()


def check_by_axe(page: Page) -> None:
    """No serious finding of axe-core."""
    settings = {"resultTypes": ["violations"], "preload": False}
    found = axe.Axe().run(page, options=settings).response["violations"]
    serious = [
        (each["id"], each["help"], [node["html"][:200] for node in each["nodes"]][:3])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == [], page.url


def check_room(page: Page) -> None:
    """Nothing stands out of the page to the right."""
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, (page.url, wide)


def tab_to(page: Page, role: str, name: str) -> None:
    """Press Tab until something has the focus."""
    wanted = page.get_by_role(role, name=name, exact=True).first  # type: ignore[arg-type]
    for _ in range(60):
        page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"{role} {name!r} cannot be reached with the keyboard")


def test_every_page_can_be_used_by_everybody_and_runs_nothing_of_others(
    page: Page, url: str
) -> None:
    for path in PAGES:
        page.goto(f"{url}{path}")
        assert page.evaluate("window.violations") == [], path
        assert "taken over" not in page.title()
        check_room(page)
        check_by_axe(page)


@pytest.mark.parametrize("look", ["phone-dark"], indirect=True)
def test_hostile_words_are_shown_as_they_were_written(page: Page, url: str) -> None:
    page.goto(f"{url}/concepts/{HOSTILE}")
    expect(page.get_by_text(HOSTILE_NOTE)).to_be_visible()
    # A mark that turns the direction round ends with the text that it stands in.
    for element in page.get_by_text(HOSTILE_NOTE).all():
        assert element.evaluate("element => getComputedStyle(element).unicodeBidi") in (
            "isolate",
            "plaintext",
        )
    assert page.locator("a[href^='javascript']").count() == 0
    assert page.locator("svg[onload], img[onerror]").count() == 0


@pytest.mark.parametrize("look", ["desktop-light"], indirect=True)
def test_a_picture_is_found_composed_and_drawn_without_a_mouse(page: Page, url: str) -> None:
    page.goto(f"{url}/concepts")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    tab_to(page, "searchbox", "Name, note, words or tags contain")
    page.keyboard.type("buoy")
    page.keyboard.press("Enter")
    page.wait_for_url("**text=buoy**")
    tab_to(page, "link", "alice/buoy")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="alice/buoy", level=1)).to_be_visible()
    tab_to(page, "link", "Compose with it")
    page.keyboard.press("Enter")
    tab_to(page, "textbox", "Concept 2")
    page.keyboard.type("bob/crate")
    page.keyboard.press("Enter")
    expect(page.get_by_text("alice/buoy:2 and bob/crate:1")).to_be_visible()
    tab_to(page, "button", "Draw it")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Here it is")).to_be_visible(timeout=60_000)
    picture = page.get_by_role("img")
    assert picture.evaluate("element => element.complete && element.naturalWidth > 0")
    check_by_axe(page)


def test_what_is_changed_on_a_page_is_changed_and_no_other_site_changes_anything(
    chromium: Any, url: str, registry: Registry
) -> None:
    context = chromium.new_context()
    page = context.new_page()
    sign_in(page, url)
    page.goto(f"{url}/concepts/dora/concept0")
    page.get_by_label("Add tags").fill("red shiny")
    page.get_by_label("Add tags").press("Enter")
    expect(page.get_by_role("list", name="Tags")).to_contain_text("shiny")
    assert registry.get("dora/concept0").tags == ("red", "shiny")
    page.route(
        "http://evil.example/",
        lambda route: route.fulfill(
            content_type="text/html",
            body=f"<form method=post action={url}/concepts/dora/concept0/remove>"
            "<input name=version value=1></form><script>document.forms[0].submit()</script>",
        ),
    )
    with page.expect_response("**/remove") as answer:
        page.goto("http://evil.example/", wait_until="commit")
    assert answer.value.status == 403
    assert registry.get("dora/concept0").version == 1
    context.close()


def test_a_gallery_can_be_used_by_everybody_and_runs_nothing(
    chromium: Any, look: dict[str, Any], registry: Registry, tmp_path: Path
) -> None:
    write_gallery(registry, tmp_path / "gallery")
    context = chromium.new_context(**look, java_script_enabled=True)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    for name in ("index.html", "concepts/alice/buoy.html", f"concepts/{HOSTILE}.html"):
        page.goto((tmp_path / "gallery" / name).as_uri())
        assert page.locator("script").count() == 0 and "taken over" not in page.title()
        assert page.evaluate(
            "[...document.images].every(each => each.loading === 'lazy' || each.naturalWidth > 0)"
        )
        check_room(page)
        check_by_axe(page)
    page.goto((tmp_path / "gallery" / "index.html").as_uri())
    tab_to(page, "link", "alice/buoy")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="alice/buoy", level=1)).to_be_visible()
    assert said == []
    context.close()
