"""Pages of the service and of the gallery in a real browser, with concepts worth looking at.

Used by the tests that move through the pages, and by tools/screenshots.py.
"""

import io
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cones_registry import BaseModel, ConceptMask, Registry
from cones_registry.serving import ServiceSettings
from cones_registry.serving.application import create_app
from cones_registry.serving.service import Service

PHOTOS = Path(__file__).parents[1] / "cones_registry" / "demo" / "subject_pictures"
LOOKS: dict[str, dict[str, Any]] = {
    f"{device}-{scheme}": {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
    for device, width, height in (("desktop", 1280, 800), ("phone", 390, 844))
    for scheme in ("light", "dark")
}
SCRIPT = "<script>document.title = 'taken over'</script>"
HOSTILE_NOTE = (
    f'{SCRIPT}<img src=x onerror="alert(1)"> [press](javascript:alert(2)) {{{{ 7 * 7 }}}} '
    "\u202eright to left\u202c \u2066isolated\u2069 " + "unbroken" * 60
)
HOSTILE_TAG = "'\"><svg/onload=alert(3)>"
HOSTILE_NOUN = "dog</title><script>alert(4)</script>"
OF_PICTURES = {"alice/buoy": "circle", "bob/crate": "square", "carol/flag": "star"}


def find_chromium() -> str | None:
    """The machine's own Chromium, if it has one."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # A sandbox needs rights that a container often has not; what is looked at is our own.
        chromium = playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield chromium
        finally:
            chromium.close()


def fill(registry: Registry, base: BaseModel) -> None:
    """Push concepts with pictures, versions, tags and aliases; and one by somebody hostile."""
    dice = np.random.default_rng(11)

    def mask(density: float) -> ConceptMask:
        return ConceptMask.from_indices(
            base.layer_table,
            {
                layer.name: np.flatnonzero(dice.random(layer.neuron_count) < density).astype(
                    np.int32
                )
                for layer in base.layer_table.layers
            },
        )

    for number, (ref, noun) in enumerate(OF_PICTURES.items()):
        photos = sorted((PHOTOS / ref.partition("/")[2]).glob("*.png"))[: 3 - number]
        registry.push(
            ref,
            mask(0.02 * (number + 1)),
            base=base,
            scope="subject",
            token="sks",
            class_noun=noun,
            tags=("sea", "round")[: number + 1],
            note="Learnt from five photos on five backgrounds." if number == 0 else "",
            previews=[_webp(photo) for photo in photos],
        )
    registry.push("alice/buoy", mask(0.03), base=base, scope="subject", token="v2",
                  class_noun="circle", previews=[_webp(PHOTOS / "buoy" / "top.png")])  # fmt: skip
    registry.alias("alice/buoy:1", "prod")
    registry.push(
        "eve/" + "a-very-long-name-" * 3 + "x", mask(0.05), base=base, scope="subject",
        token="sks", class_noun=HOSTILE_NOUN, note=HOSTILE_NOTE, tags=("plain",),
    )  # fmt: skip
    for number in range(4):
        registry.push(f"dora/concept{number}", mask(0.01 * (number + 1)), base=base, scope="prompt")


HOSTILE = "eve/" + "a-very-long-name-" * 3 + "x"


@contextmanager
def serving(base: BaseModel, registry: Registry, **settings: Any) -> Iterator[str]:
    """The service in a thread of this process; its address."""
    import uvicorn

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        service = Service(base, registry, ServiceSettings(**settings))
        config = uvicorn.Config(create_app(service), log_level="warning", loop="asyncio")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


def _webp(photo: Path) -> bytes:
    buffer = io.BytesIO()
    picture = Image.open(photo).convert("RGB")
    picture.resize((256, 256), Image.Resampling.NEAREST).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()
