"""Pictures of the pages, to be looked at: `.venv/bin/python tools/screenshots.py`.

The service and a gallery are opened in the machine's own Chromium, wide and narrow, light and dark,
with the demo's base model and its subjects. What is seen is kept in tools/results/serving and
tools/results/gallery.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from looking import HOSTILE, LOOKS, browser, fill, serving  # noqa: E402

from cones_registry import BaseModel, Registry  # noqa: E402
from cones_registry.pages import write_gallery  # noqa: E402

RESULTS = ROOT / "tools" / "results"
TALLEST = 1800  # pixels kept of a page
MOST_BYTES = 1_500_000  # of a folder
PAGES = {
    "concepts": "/concepts",
    "concept": "/concepts/alice/buoy",
    "hostile": f"/concepts/{HOSTILE}",
    "compose": "/compose?concept=alice/buoy&concept=bob/crate",
    "storage": "/storage",
}
GALLERY = {
    "cards": "index.html",
    "concept": "concepts/alice/buoy.html",
    "hostile": f"concepts/{HOSTILE}.html",
}


def main() -> None:
    """Draw, look, keep."""
    os.environ["CONES_ACTOR"] = "demo"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = BaseModel.load("demo")
        with Registry.create(folder / "registry", cache=folder / "cache") as registry:
            fill(registry, base)
            write_gallery(registry, folder / "gallery")
            with browser() as chromium, serving(base, registry, allow_write=True) as url:
                for place in ("serving", "gallery"):
                    shutil.rmtree(RESULTS / place, ignore_errors=True)
                    (RESULTS / place).mkdir(parents=True)
                for look, settings in LOOKS.items():
                    page = chromium.new_context(**settings).new_page()
                    for name, path in PAGES.items():
                        page.goto(url + path)
                        keep(page, "serving", f"{name}-{look}")
                    job(page, url, look)
                    for name, path in GALLERY.items():
                        page.goto((folder / "gallery" / path).as_uri())
                        keep(page, "gallery", f"{name}-{look}")
                    page.context.close()
    for place in ("serving", "gallery"):
        size = sum(path.stat().st_size for path in (RESULTS / place).iterdir())
        print(f"{RESULTS / place}: {size:,} bytes")
        if size > MOST_BYTES:
            sys.exit(f"more than {MOST_BYTES:,} bytes are too many to keep")


def job(page: Any, url: str, look: str) -> None:
    """A picture that is drawn, and its page when it is done."""
    page.goto(f"{url}/compose")
    page.get_by_label("Prompt").fill("at left a yellow circle and at right a blue square on white")
    page.get_by_label("Seed").fill("7")
    page.get_by_role("button", name="Draw it").click()
    page.get_by_role("heading", name="Here it is").wait_for(timeout=300_000)
    page.wait_for_load_state()
    keep(page, "serving", f"picture-{look}")


def keep(page: Any, place: str, name: str) -> None:
    """Keep what the page looks like."""
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    shot = shot.crop((0, 0, shot.width, min(shot.height, TALLEST)))
    shot.save(RESULTS / place / f"{name}.webp", "WEBP", quality=60, method=6)


if __name__ == "__main__":
    main()
