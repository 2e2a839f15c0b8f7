"""`cones serve`: the HTTP service."""

from __future__ import annotations

import os
from pathlib import Path

import click

from cones_registry.errors import NotFoundError, UsageError

from .session import Session
from .verb import verb

TOKEN_VARIABLE = "CONES_SERVE_TOKEN"


@verb()
@click.option(
    "--base", required=True, metavar="MODEL", help="Folder, hub id or `demo`: what draws."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Tokens, one NAME:TOKEN a line; or {TOKEN_VARIABLE}. Needed beyond this machine.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A name the service answers to beside --host; repeatable.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    metavar="FOLDER|URL",
    help="Show a run of `cones batch` while it goes on; repeatable.",
)
@click.option("--max-batch", type=click.IntRange(1, 256), default=8, show_default=True)
@click.option("--max-waiting", type=click.IntRange(1, 100_000), default=256, show_default=True)
@click.option(
    "--requests-per-minute",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of one token or address; 0 is no limit.",
)
@click.option("--allow-write", is_flag=True, help="Pages may alias, tag and remove.")
@click.option("--log-prompts", is_flag=True, help="Prompts stand in the log.")
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    show_default=True,
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: replicas on a Ray cluster, each with a base model of its own.",
)
@click.option("--replicas", type=click.IntRange(1), default=1, show_default=True, help="For ray.")
@click.option("--cpus", type=float, default=1.0, show_default=True, help="Of each Ray replica.")
@click.option("--gpus", type=float, default=0.0, show_default=True, help="Of each Ray replica.")
def command(
    session: Session,
    base: str,
    host: str,
    port: int,
    token_file: Path | None,
    hosts: tuple[str, ...],
    batches: tuple[str, ...],
    max_batch: int,
    max_waiting: int,
    requests_per_minute: int,
    allow_write: bool,
    log_prompts: bool,
    device: str,
    dtype: str,
    engine: str,
    replicas: int,
    cpus: float,
    gpus: float,
) -> None:
    """Draw for others over HTTP, as OpenAI's clients ask, and show pages to look at.

    Requests of all users are drawn together, whatever concepts their prompts name.

    \b
    cones -r s3://models/concepts serve --base ./stable-diffusion-v1-5
    curl 127.0.0.1:8000/v1/images/generations -d '{"prompt": "a photo of <alice/dog>"}'
    """
    from cones_registry.serving import ServiceSettings, serve
    from cones_registry.serving.settings import LOOPBACK, parse_tokens

    tokens = parse_tokens(_token_text(token_file))
    if host not in LOOPBACK and not tokens:
        raise UsageError(
            f"{host} can be reached from other machines, so a token is needed: set "
            f"{TOKEN_VARIABLE}, or name a file with --token-file"
        )
    settings = ServiceSettings(
        tokens=tokens,
        hosts=LOOPBACK | {host, *hosts},
        max_batch=max_batch,
        max_waiting=max_waiting,
        requests_per_minute=requests_per_minute,
        allow_write=allow_write,
        log_prompts=log_prompts,
    )
    serve(
        base,
        session.registry_url,
        settings,
        host=host,
        port=port,
        batches=batches,
        device=device,
        dtype=dtype,
        engine=engine,
        replicas=replicas,
        cpus=cpus,
        gpus=gpus,
        storage_options=session.storage_options,
        say=session.output.message,
    )


def _token_text(file: Path | None) -> str:
    if file is None:
        return os.environ.get(TOKEN_VARIABLE, "")
    try:
        return file.read_text("utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"no file {file}. It holds one NAME:TOKEN a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read tokens from {file}: {error}") from error
