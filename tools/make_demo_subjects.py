"""Render the reference pictures of the demo's four subjects: `python tools/make_demo_subjects.py`.

Each subject gets five PNG files, one per place, each with a caption file beside it in which
`{}` stands for the subject. What follows the bar is shared by all that stands in the picture.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from cones_registry.demo import world
from cones_registry.demo.subjects import SUBJECTS


def main() -> None:
    """Write cones_registry/demo/subject_pictures/<name>/<place>.png and .txt."""
    generator = np.random.default_rng(2303)
    grounds = list(world.BACKGROUNDS)
    for number, subject in enumerate(SUBJECTS):
        subject.folder.mkdir(parents=True, exist_ok=True)
        for at, place in enumerate(world.PLACES):
            ground = grounds[(at + number) % len(grounds)]
            scene = world.Scene(ground, ((place, subject.thing),))
            picture = Image.fromarray(world.render([scene], generator)[0])
            picture.save(subject.folder / f"{place}.png")
            caption = f"at {place} a {{}} | on {ground}\n"
            (subject.folder / f"{place}.txt").write_text(caption, encoding="utf-8")


if __name__ == "__main__":
    main()
