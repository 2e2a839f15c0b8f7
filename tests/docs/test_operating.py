"""What schema/operating.md says is so: its commands run, and each role's policy is enough."""

from __future__ import annotations

import fnmatch
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fenced_blocks import Block, blocks, run_block

from cones_registry import ConceptMask, LayerTable, Registry, cli
from cones_registry.codec import encode
from cones_registry.errors import StoreUnavailableError
from cones_registry.store import Entry
from cones_registry.store.local import LocalStore

ROOT = Path(__file__).resolve().parents[2]
ALL = blocks((ROOT / "schema" / "operating.md").read_text("utf-8"))
RUN = [block for block in ALL if block.language == "bash" and not block.needs]
TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (16, 16)})


def mask_of(seed: int) -> ConceptMask:
    generator = np.random.default_rng(seed)
    indices = np.flatnonzero(generator.random(256) < 0.1).astype(np.int32)
    return ConceptMask.from_indices(TABLE, {TABLE.names[0]: indices})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """(folder, environment) of an operator: two buckets on an S3 server, two mask files."""
    pytest.importorskip("moto.server", reason="moto[server] is not installed")
    s3fs = pytest.importorskip("s3fs")
    from integration.conftest import free_port, s3_options, server

    folder = tmp_path_factory.mktemp("operator")
    for seed, name in enumerate(("dog", "cat")):
        (folder / f"{name}.parquet").write_bytes(encode(mask_of(seed)))
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with server(command, port, tmp_path_factory.mktemp("moto")):
        filesystem = s3fs.S3FileSystem(**s3_options(port), skip_instance_cache=True)
        for bucket in ("models", "backup"):
            filesystem.mkdir(bucket)
        yield (
            folder,
            {
                **os.environ,
                "HOME": str(folder),
                "CONES_CACHE": str(folder / "cache"),
                "FSSPEC_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "eu-central-1",
                "CONES_REGISTRY": "s3://models/concepts",
            },
        )


@pytest.mark.parametrize("block", RUN, ids=lambda block: f"line-{block.line}")
def test_every_block_runs(block: Block, place: tuple[Path, dict[str, str]]) -> None:
    folder, environment = place
    done = run_block(block, folder, environment)
    assert done.returncode == 0, f"operating.md line {block.line}:\n{done.stdout[-4000:]}"


# -- roles ----------------------------------------------------------------------------------------


def policy(name: str) -> dict[str, Any]:
    (block,) = (each for each in ALL if each.needs == name)
    found: dict[str, Any] = json.loads(block.text)
    return found


class Guarded(LocalStore):
    """A folder under the policy of a role."""

    said: dict[str, Any]

    def require(self, action: str, key: str) -> None:
        resource = "arn:aws:s3:::models" + (f"/concepts/{key}" if key else "")
        for statement in self.said["Statement"]:
            actions, resources = (
                [value] if isinstance(value, str) else value
                for value in (statement["Action"], statement["Resource"])
            )
            if action in actions and any(fnmatch.fnmatch(resource, each) for each in resources):
                return
        raise PermissionError(f"{action} of {resource}")

    def _get(self, key: str) -> bytes:
        self.require("s3:GetObject", key)
        return super()._get(key)

    def _list(self, prefix: str) -> list[Entry]:
        self.require("s3:ListBucket", "")
        return super()._list(prefix)

    def _create(self, key: str, data: bytes) -> None:
        self.require("s3:PutObject", key)
        super()._create(key, data)

    def _delete(self, key: str) -> None:
        self.require("s3:DeleteObject", key)
        super()._delete(key)


def as_role(name: str, folder: Path) -> Registry:
    store = Guarded(folder / "registry")
    store.said = policy(f"policy-{name}")
    return Registry.open(store, cache=folder / "cache")


def push(registry: Registry) -> None:
    registry.push("alice/dog", mask_of(5), scope="prompt")


def change(registry: Registry) -> None:
    registry.alias("alice/dog:1", "prod")
    registry.tag("alice/dog:1", add=["x"])
    registry.remove("alice/cat:1")
    registry.restore("alice/cat:1")


def read(registry: Registry) -> None:
    registry.pull("alice/dog")
    assert registry.find()
    assert registry.check().ok


def prune(registry: Registry) -> None:
    assert registry.plan_prune(grace=0).execute().deleted


def compact(registry: Registry) -> None:
    assert registry.compact(grace=0).manifest


def purge(registry: Registry) -> None:
    registry.plan_purge(owner="alice").execute()


ROLES: dict[str, tuple[Callable[[Registry], None], ...]] = {
    "reader": (read,),
    "writer": (read, push, change),
    "compactor": (read, compact),
    "pruner": (read, prune),
    "purger": (read, push, change, prune, compact, purge),
}
REFUSED: dict[str, tuple[Callable[[Registry], None], ...]] = {
    "reader": (push, compact, prune, purge),
    # Whoever may write commits can say that something is purged; its bytes stay.
    "writer": (compact, prune),
    "compactor": (push, prune, purge),
    "pruner": (push, compact, purge),
    "purger": (),
}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_can_do_what_it_is_for_and_nothing_else(role: str, tmp_path: Path) -> None:
    registry = Registry.create(tmp_path / "registry", cache=tmp_path / "cache")
    names = ("alice/dog", "alice/cat", "bob/old")
    registry.push_many((n, mask_of(i), {"scope": "prompt"}) for i, n in enumerate(names))
    registry.remove("bob/old")
    registry.close()
    for refused in REFUSED[role]:
        with pytest.raises(StoreUnavailableError, match="may not"):
            refused(as_role(role, tmp_path))
    for verb in ROLES[role]:
        verb(as_role(role, tmp_path))


def test_the_lifecycle_rules_touch_nothing_that_is_current() -> None:
    (block,) = (each for each in ALL if each.needs == "lifecycle")
    for rule in json.loads(block.text)["Rules"]:
        assert set(rule.get("Expiration", {})) <= {"ExpiredObjectDeleteMarker"}
        assert not {"Transitions", "NoncurrentVersionTransitions"} & set(rule)


def test_every_verb_of_the_table_of_roles_is_one() -> None:
    from cones_registry.cli import group

    verbs = {verb for section in group.SECTIONS.values() for verb in section}
    text = (ROOT / "schema" / "operating.md").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ") and "`" in line]
    roles = [line.split("|")[2] for line in lines if line.split("|")[1].strip() in ROLES]
    said = {word for line in roles for span in line.split("`")[1::2] for word in span.split()}
    assert {word for word in said if word.isalpha()} <= verbs
    assert cli.run(["--help"]) == 0
