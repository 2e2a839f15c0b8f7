"""The registry on every kind of store: what is pushed by one handle is there for all."""

from typing import Any

import numpy as np
import pytest

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.errors import ConflictError, NotFoundError

Place = Any  # of conftest.py: .url and .options
TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (32, 48), "a.attn2.to_v.weight": (32, 48)})


def mask_of(seed: int, density: float = 0.1) -> ConceptMask:
    generator = np.random.default_rng(seed)
    return ConceptMask.from_indices(
        TABLE,
        {
            name: np.flatnonzero(generator.random(32 * 48) < density).astype(np.int32)
            for name in TABLE.names
        },
    )


def test_a_concept_is_pushed_found_aliased_removed_and_restored(place: Place) -> None:
    registry = Registry.create(place.url, **place.options)
    first = registry.push(
        "alice/dog", mask_of(1), tags=["animal"], token="sks", class_noun="dog", scope="prompt"
    )
    second = registry.push("alice/dog", mask_of(2), scope="prompt")
    assert (first.ref, second.ref) == ("alice/dog:1", "alice/dog:2")
    other = Registry.open(place.url, **place.options)
    assert other.get("alice/dog") == second
    assert other.pull("alice/dog:1") == mask_of(1)
    assert [each.ref for each in other.find(tag="animal")] == ["alice/dog:1"]
    assert other.alias("alice/dog:1", "prod", expect=0).aliases == ("prod",)
    assert registry.get("alice/dog:prod").version == 1
    with pytest.raises(ConflictError):
        registry.alias("alice/dog:2", "prod", expect=2)
    assert registry.tag("alice/dog:2", add=["new"]).tags == ("new",)
    assert other.remove("alice/dog:2").removed
    with pytest.raises(NotFoundError, match="cones restore alice/dog:2"):
        registry.get("alice/dog:2")
    assert registry.restore("alice/dog:2").removed is False
    assert other.query("SELECT count(*) AS n FROM concepts").to_pylist() == [{"n": 2}]


def test_equal_masks_are_one_blob(place: Place) -> None:
    registry = Registry.create(place.url, **place.options)
    one = registry.push("alice/dog", mask_of(1), scope="prompt")
    two = Registry.open(place.url, **place.options).push("bob/dog", mask_of(1), scope="prompt")
    assert one.blob_digest == two.blob_digest
    assert one.mask_digest == two.mask_digest


def test_push_many_is_one_commit(place: Place) -> None:
    registry = Registry.create(place.url, **place.options)
    pushed = registry.push_many(
        [(f"alice/c{number}", mask_of(number), {"scope": "prompt"}) for number in range(20)]
    )
    other = Registry.open(place.url, **place.options)
    assert sorted(each.ref for each in other.find()) == sorted(each.ref for each in pushed)
    assert other.sync().segments == 0
    assert other.pull_many(pushed) == [mask_of(number) for number in range(20)]


def test_there_is_one_registry_at_one_place(place: Place) -> None:
    with pytest.raises(NotFoundError, match="cones init"):
        Registry.open(place.url, **place.options)
    Registry.create(place.url, **place.options)
    with pytest.raises(ConflictError, match="already"):
        Registry.create(place.url, **place.options)


@pytest.mark.parametrize("scheme", ["s3", "az"])
def test_a_missing_bucket_is_named_with_what_to_do(
    scheme: str, request: pytest.FixtureRequest
) -> None:
    server = {"s3": "moto", "az": "azurite"}[scheme]
    options = request.getfixturevalue(f"{server}_options")
    for attempt in (Registry.create, Registry.open):
        with pytest.raises(NotFoundError, match=r"no bucket 'not-made'.* To make it: "):
            attempt(f"{scheme}://not-made/registry", **options)


def test_a_folder_marker_in_the_log_is_passed_over(s3_place: Place) -> None:
    """Consoles of object stores make objects whose names end in a slash."""
    import s3fs

    registry = Registry.create(s3_place.url, **s3_place.options)
    registry.push("alice/dog", mask_of(1), scope="prompt")
    client = s3fs.S3FileSystem(**s3_place.options, skip_instance_cache=True)
    bucket, _, root = s3_place.url.removeprefix("s3://").partition("/")
    for folder in ("log", "quotas", "catalog", "runs", "versions/alice", "masks"):
        client.call_s3("put_object", Bucket=bucket, Key=f"{root}/{folder}/", Body=b"")
    other = Registry.open(s3_place.url, **s3_place.options)
    assert other.push("alice/dog", mask_of(2), scope="prompt").version == 2
    other.set_quota("alice", concepts=5)
    other.compact(grace=0)
    other.plan_prune(grace=0).execute()
    assert other.check(read_data=True).ok
    assert len(Registry.open(s3_place.url, **s3_place.options).find()) == 2


@pytest.mark.parametrize("status", ["Enabled", "Suspended"])
def test_a_purge_says_that_a_versioned_bucket_keeps_what_it_deletes(
    moto_place: Place, status: str
) -> None:
    import s3fs

    registry = Registry.create(moto_place.url, **moto_place.options)
    registry.push("alice/dog", mask_of(1), scope="prompt")
    plan = registry.plan_purge(owner="alice")
    assert plan.kept_by_store == ""
    client = s3fs.S3FileSystem(**moto_place.options, skip_instance_cache=True)
    client.call_s3(
        "put_bucket_versioning",
        Bucket=moto_place.url.removeprefix("s3://").partition("/")[0],
        VersioningConfiguration={"Status": status},
    )
    assert status.lower() in plan.kept_by_store
    receipt = plan.execute()
    assert receipt.found == 0
    assert "old versions" in receipt.kept_by_store
