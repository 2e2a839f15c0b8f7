"""Several handles on one registry agree with a dictionary, whatever the order of what they do."""

import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.errors import ConflictError, NotFoundError

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (8, 16)})
MASKS = [
    ConceptMask.from_indices(TABLE, {TABLE.names[0]: np.arange(n, 128, 7 + n, dtype=np.int32)})
    for n in range(4)
]
NAMES = st.sampled_from(["a/x", "a/y", "b/x"])
HANDLES = st.integers(0, 2)
TAGS = st.sampled_from(["red", "blue"])
_COUNT = itertools.count()


class RegistryModel(RuleBasedStateMachine):
    """versions: (name, number) -> mask, tags, removed, pruned; aliases: (name, alias) -> number."""

    def __init__(self) -> None:
        super().__init__()
        self.versions: dict[tuple[str, int], dict[str, Any]] = {}
        self.aliases: dict[tuple[str, str], int] = {}

    @initialize()
    def create(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        url = f"memory://model-{os.getpid()}-{next(_COUNT)}"
        Registry.create(url, cache=self.folder.name)
        # Two share a local copy, as processes of one machine do; the third is another machine.
        caches = [self.folder.name, self.folder.name, Path(self.folder.name, "far")]
        self.handles = [Registry.open(url, cache=cache) for cache in caches]

    def teardown(self) -> None:
        if hasattr(self, "handles"):
            for handle in self.handles:
                handle.close()
            self.folder.cleanup()

    def in_use(self, name: str) -> list[int]:
        return sorted(
            number for (n, number), v in self.versions.items() if n == name and not v["removed"]
        )

    @rule(
        handle=HANDLES, items=st.lists(st.tuples(NAMES, st.integers(0, 3)), min_size=1, max_size=3)
    )
    def push(self, handle: int, items: list[tuple[str, int]]) -> None:
        pushed = self.handles[handle].push_many(
            [(name, MASKS[n], {"scope": "prompt"}) for name, n in items]
        )
        for (name, index), concept in zip(items, pushed, strict=True):
            key = (name, concept.version)
            assert key not in self.versions, "a version number was given twice"
            assert concept.version == 1 + max(
                (number for n, number in self.versions if n == name), default=0
            )
            self.versions[key] = {"mask": index, "tags": set(), "removed": False, "pruned": False}

    @rule(handle=HANDLES, name=NAMES, alias=st.sampled_from(["prod", "dev"]), expect=st.booleans())
    def alias(self, handle: int, name: str, alias: str, expect: bool) -> None:
        stands = self.aliases.get((name, alias), 0)
        if not self.in_use(name):
            with pytest.raises(NotFoundError):
                self.handles[handle].alias(name, alias)
            return
        newest = self.in_use(name)[-1]
        with pytest.raises(ConflictError):
            self.handles[handle].alias(name, alias, expect=stands + 1)
        self.handles[handle].alias(name, alias, expect=stands if expect else None)
        self.aliases[name, alias] = newest

    @rule(handle=HANDLES, name=NAMES, add=st.sets(TAGS), remove=st.sets(TAGS))
    def tag(self, handle: int, name: str, add: set[str], remove: set[str]) -> None:
        if not self.in_use(name):
            return
        version = self.versions[name, self.in_use(name)[-1]]
        version["tags"] = (version["tags"] | (add - remove)) - (remove - add)
        got = self.handles[handle].tag(name, add=add - remove, remove=remove - add)
        assert set(got.tags) == version["tags"]

    @rule(handle=HANDLES, name=NAMES)
    def remove(self, handle: int, name: str) -> None:
        if not self.in_use(name):
            with pytest.raises(NotFoundError):
                self.handles[handle].remove(name)
            return
        newest = self.in_use(name)[-1]
        assert self.handles[handle].remove(name).version == newest
        self.versions[name, newest]["removed"] = True

    @rule(handle=HANDLES, name=NAMES)
    def restore(self, handle: int, name: str) -> None:
        can = [
            number
            for (n, number), v in self.versions.items()
            if n == name and v["removed"] and not v["pruned"]
        ]
        if not can:
            with pytest.raises(NotFoundError):
                self.handles[handle].restore(name)
            return
        assert self.handles[handle].restore(name).version == max(can)
        self.versions[name, max(can)]["removed"] = False

    @rule(handle=HANDLES, now=st.booleans())
    def compact(self, handle: int, now: bool) -> None:
        self.handles[handle].compact(grace=0 if now else 3600)

    @rule(handle=HANDLES)
    def prune(self, handle: int) -> None:
        self.handles[handle].plan_prune(grace=0).execute()
        for version in self.versions.values():
            version["pruned"] = version["pruned"] or version["removed"]

    @rule(handle=HANDLES)
    def prune_with_grace_deletes_nothing(self, handle: int) -> None:
        assert self.handles[handle].plan_prune().execute().freed_bytes == 0

    @rule(handle=HANDLES)
    def sync(self, handle: int) -> None:
        self.handles[handle].sync()

    @precondition(lambda self: hasattr(self, "handles"))
    @invariant()
    def every_handle_sees_the_same(self) -> None:
        expected = {
            f"{name}:{number}": (MASKS[v["mask"]].digest, tuple(sorted(v["tags"])))
            for (name, number), v in self.versions.items()
            if not v["removed"]
        }
        for handle in self.handles:
            found = {c.ref: (c.mask_digest, c.tags) for c in handle.find()}
            assert found == expected
            named = {
                (f"{row['owner']}/{row['name']}", row["alias"]): row["version"]
                for row in handle.query("SELECT * FROM aliases").to_pylist()
            }
            assert named == self.aliases

    @precondition(lambda self: hasattr(self, "handles"))
    @invariant()
    def nothing_in_use_lacks_its_bytes(self) -> None:
        refs = [f"{n}:{number}" for (n, number), v in self.versions.items() if not v["removed"]]
        masks = self.handles[2].pull_many(refs)
        for ref, mask in zip(refs, masks, strict=True):
            name, _, number = ref.partition(":")
            assert mask == MASKS[self.versions[name, int(number)]["mask"]]


TestRegistryModel = RegistryModel.TestCase
TestRegistryModel.settings = settings(
    max_examples=int(os.environ.get("CONES_EXAMPLES", "8")),
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
