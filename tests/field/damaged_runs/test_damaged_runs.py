"""What is no readable picture with its recipe is drawn again when a run goes on."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cones_registry.batch import BatchReport, Compositions, LocalEngine, run_batch
from cones_registry.digest import sha256_bytes

JOBS = json.dumps({"prompt": "a dog", "steps": 1, "count": 3})
HURT = "000001-002"


def run(base: Path, out: Path, format: str = "png") -> BatchReport:
    return run_batch(
        JOBS,
        out,
        engine=LocalEngine(Compositions(None)),
        base=str(base),
        compositions=Compositions(None),
        device="cpu",
        format=format,
    )


def other_picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "last-byte": lambda data: data[:-20],
    "zeros": lambda data: bytes(len(data)),
    "a-page": lambda data: b"<html>quota exceeded</html>",
    "of-another-program": lambda data: other_picture(),
}


@pytest.mark.parametrize("format", ["png", "webp"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_picture_is_drawn_again(
    tiny_pipeline_folder: Path, tmp_path: Path, damage: str, format: str
) -> None:
    run(tiny_pipeline_folder, tmp_path, format)
    file = tmp_path / f"pictures/{HURT}.{format}"
    sound = file.read_bytes()
    hurt = DAMAGES[damage](sound)
    file.write_bytes(hurt)
    report = run(tiny_pipeline_folder, tmp_path, format)
    assert (report.made, report.kept, report.succeeded) == (1, 2, True)
    assert file.read_bytes() == sound
    index = pq.read_table(tmp_path / "index.parquet").to_pylist()
    assert [row["digest"] for row in index] == [
        sha256_bytes((tmp_path / row["picture"]).read_bytes()) for row in index
    ]
    moved = tmp_path / f"replaced/{HURT}.{format}"
    assert moved.exists() == (damage == "of-another-program")
    if moved.exists():
        assert moved.read_bytes() == hurt


def test_a_picture_of_another_seed_is_drawn_again(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    run(tiny_pipeline_folder, tmp_path)
    first, second = (tmp_path / f"pictures/000001-00{n}.png" for n in (1, 2))
    sound = second.read_bytes()
    second.write_bytes(first.read_bytes())
    report = run(tiny_pipeline_folder, tmp_path)
    assert (report.made, report.kept) == (1, 2)
    assert second.read_bytes() == sound


def test_sound_pictures_are_left_as_they_are(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    run(tiny_pipeline_folder, tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("pictures/*")}
    report = run(tiny_pipeline_folder, tmp_path)
    assert (report.made, report.kept) == (0, 3)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("pictures/*")} == before


def test_a_damaged_pixel_is_found(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    run(tiny_pipeline_folder, tmp_path)
    file = tmp_path / f"pictures/{HURT}.png"
    data = np.frombuffer(file.read_bytes(), np.uint8).copy()
    place = file.read_bytes().index(b"IDAT") + 12
    data[place] ^= 0xFF
    file.write_bytes(data.tobytes())
    assert run(tiny_pipeline_folder, tmp_path).made == 1
