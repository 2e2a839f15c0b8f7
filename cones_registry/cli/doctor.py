"""`cones doctor`: what is installed here, whether the registry answers, whether a base is sound."""

from __future__ import annotations

import importlib.util
import platform
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

import click

from cones_registry.errors import StoreUnavailableError

from .base_report import look_over, rows_of
from .session import Session
from .verb import verb

if TYPE_CHECKING:
    from cones_registry.store.probe import Finding

# Extra -> what it allows, and the distributions it brings.
EXTRAS = {
    "model": (
        "extract, generate, evaluate",
        ("torch", "diffusers", "transformers", "accelerate", "safetensors", "pillow"),
    ),
    "s3": ("registries on S3", ("s3fs",)),
    "gcs": ("registries on Google Cloud Storage", ("gcsfs",)),
    "azure": ("registries on Azure Blob Storage", ("adlfs",)),
    "ray": ("batches on a Ray cluster", ("ray",)),
    "plot": ("figures", ("matplotlib",)),
    "delta": ("the catalogue as a Delta table", ("deltalake",)),
    "gallery": ("pages about concepts", ("jinja2",)),
    "serve": ("the HTTP service", ("starlette", "uvicorn", "jinja2", "prometheus-client")),
    "serve-ray": ("the HTTP service on a Ray cluster", ("ray", "fastapi")),
    "fast": ("compiled decoding", ("numba",)),
}
CORE = (
    "cones-registry",
    "numpy",
    "pyarrow",
    "duckdb",
    "fsspec",
    "zstandard",
    "click",
    "msgspec",
    "rich",
    "platformdirs",
    "python-ulid",
    "tenacity",
    "msgspec",
)


@verb(reads=True)
@click.option(
    "--base",
    metavar="FOLDER",
    help="Look a base model over instead: every weight, its tokenizers, its size.",
)
def command(session: Session, base: str | None) -> None:
    """Say what is installed, which devices there are, and whether the registry answers.

    With a registry named, its store is tried: conditional create, listing after a write, clock. The
    small objects that this takes are removed again.

    With --base, say whether a base model is whole and sound, what can be done with it, and whether
    it fits into this machine.

    Ends with the registry's own exit code when one is named and does not answer, with that of what
    is wrong with a base model, or with 1 for one that does not fit into memory.
    """
    if base is not None:
        found = look_over(base)
        if session.output.as_json:
            session.output.document(found)
        else:
            session.output.table(("what", "found"), rows_of(found))
        if not found["fits"]:
            raise click.exceptions.Exit(1)
        return
    extras = {
        name: {package: version_of(package) for package in packages}
        for name, (_, packages) in EXTRAS.items()
    }
    findings: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "core": {package: version_of(package) for package in CORE},
        "extras": extras,
        "devices": devices(),
    }
    if session.registry_url:
        start = time.perf_counter()
        registry = session.open(read_only=True)
        findings["registry"] = {
            "url": registry.url,
            "answered_in_seconds": round(time.perf_counter() - start, 3),
            "store": [dict(each.__dict__) for each in probe_store(session)],
        }
    if session.output.as_json:
        session.output.document(findings)
        require_sound(findings)
        return
    rows: list[tuple[str, str]] = [
        ("Python", f"{findings['python']} on {findings['system']}"),
        ("core", versions(findings["core"])),
    ]
    for name, found in extras.items():
        missing = [package for package, version in found.items() if version is None]
        hint = f"missing {', '.join(missing)}: pip install 'cones-registry[{name}]'"
        rows.append((EXTRAS[name][0], hint if missing else versions(found)))
    rows.append(("devices", ", ".join(findings["devices"]) or "none: torch is not installed"))
    if "registry" in findings:
        answer = findings["registry"]
        rows.append(("registry", f"{answer['url']} opened in {answer['answered_in_seconds']} s"))
        marks = {True: "", False: "NOT SOUND: ", None: ""}
        rows += [
            (f"its {each['what']}", marks[each["ok"]] + each["said"]) for each in answer["store"]
        ]
    else:
        rows.append(("registry", "none named; -r or CONES_REGISTRY says which"))
    session.output.table(("what", "found"), rows)
    require_sound(findings)


def probe_store(session: Session) -> list[Finding]:
    """What the registry's store does when it is tried."""
    from cones_registry.store import open_store
    from cones_registry.store.probe import probe

    return probe(open_store(session.url(), **session.storage_options))


def require_sound(findings: dict[str, Any]) -> None:
    """`StoreUnavailableError` if the registry's store does not do what it must."""
    wrong = [
        each["what"]
        for each in findings.get("registry", {}).get("store", ())
        if each["ok"] is False
    ]
    if wrong:
        raise StoreUnavailableError(
            f"the store of {findings['registry']['url']} is not sound: {', '.join(wrong)}. "
            "Change nothing from here until it is mended; see schema/operating.md"
        )


def version_of(package: str) -> str | None:
    """The installed version of a distribution, None when it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions(found: dict[str, str | None]) -> str:
    """'numpy 2.4.6, click 8.5.1', with what is missing said so."""
    return ", ".join(f"{package} {version or 'missing'}" for package, version in found.items())


def devices() -> list[str]:
    """What torch can compute on; empty without torch."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    found = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("Apple GPU (mps)")
    return [*found, f"CPU with {torch.get_num_threads()} threads"]
