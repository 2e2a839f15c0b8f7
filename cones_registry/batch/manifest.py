"""``run.json``: what a run is, written once before the first picture. See schema/batch.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from cones_registry.base_model import GenerationDefaults
from cones_registry.errors import ConflictError, CorruptDataError
from cones_registry.record import Concept

KEY: Final = "run.json"
FORMAT: Final = "cones run 1"


@dataclass(frozen=True)
class RunManifest:
    """What decides every picture of a run.

    jobs: digest of the job file. base: fingerprint. dtype: of the base model. format: of the
    picture files. batch_size: pictures a chunk. defaults: steps and guidance of jobs that name
    none. pictures: how many there shall be. pins: ref as written, without a weight -> the version
    it stood for when the run began. versions: of the libraries.
    """

    jobs: str
    base: str
    dtype: str
    format: str
    batch_size: int
    defaults: GenerationDefaults
    pictures: int
    pins: Mapping[str, Concept]
    versions: Mapping[str, str]

    def encode(self) -> bytes:
        """The file's bytes: the same manifest always gives the same."""
        content = {
            "format": FORMAT,
            "jobs": self.jobs,
            "base": self.base,
            "dtype": self.dtype,
            "picture_format": self.format,
            "batch_size": self.batch_size,
            "defaults": asdict(self.defaults),
            "pictures": self.pictures,
            "pins": {
                ref: replace(concept, provenance=None, aliases=()).to_json()
                for ref, concept in sorted(self.pins.items())
            },
            "versions": dict(self.versions),
        }
        return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False).encode()


def decode_manifest(data: bytes) -> RunManifest:
    """Inverse of ``RunManifest.encode``; CorruptDataError for anything else."""
    try:
        content: dict[str, Any] = json.loads(data)
        if content["format"] != FORMAT:
            raise CorruptDataError(
                f"{KEY} has format {content['format']!r}, this version reads {FORMAT!r}"
            )
        return RunManifest(
            jobs=str(content["jobs"]),
            base=str(content["base"]),
            dtype=str(content["dtype"]),
            format=str(content["picture_format"]),
            batch_size=int(content["batch_size"]),
            defaults=GenerationDefaults(**content["defaults"]),
            pictures=int(content["pictures"]),
            pins={ref: Concept.from_json(value) for ref, value in content["pins"].items()},
            versions=dict(content["versions"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CorruptDataError):
            raise
        raise CorruptDataError(
            f"{KEY} cannot be read: {error!r}. Start the run again with another --out"
        ) from error


def require_same_run(
    old: RunManifest, *, jobs: str, format: str | None, batch_size: int | None
) -> None:
    """Raise ConflictError unless a run may be continued with these arguments."""
    if old.jobs != jobs:
        raise ConflictError(
            "the output holds a run of another job file. Give this one another --out, or restore "
            "the file the run began with"
        )
    for name, before, now in (
        ("format", old.format, format),
        ("batch size", old.batch_size, batch_size),
    ):
        if now is not None and before != now:
            raise ConflictError(
                f"the run in this output began with {name} {before}, now {now} is asked for. "
                f"Continue it with {before}, or give another --out"
            )
