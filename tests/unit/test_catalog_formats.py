"""Damaged or hostile files of a registry are refused, each for its own reason."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
import zstandard

from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.catalog import segments
from cones_registry.catalog.clock import Clock
from cones_registry.catalog.documents import canonical, seal, unseal
from cones_registry.catalog.events import Removed, kind_of
from cones_registry.catalog.keys import preview_key
from cones_registry.digest import sha256_bytes
from cones_registry.errors import CorruptDataError, LimitExceededError, NewerFormatError, UsageError

FOLDER = Path(__file__).resolve().parents[2] / "schema"
SCHEMA = json.loads((FOLDER / "log-segment.schema.json").read_text("utf-8"))
STAMP = "01M81X1G71RG9BMDSJFFGKZZPR"
TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (8, 16)})
MASK = ConceptMask.from_indices(TABLE, {TABLE.names[0]: np.arange(10, dtype=np.int32)})

REASONS = {
    "format-of-another-kind": "not of format 'cones-log/2'",
    "format-of-before": "not of format 'cones-log/2'",
    "no-events": "1 to 100000 events",
    "newer-event": "an event of kind 'overwrite' that this version does not know",
    "newer-field-of-an-event": "unknown field `reason`",
    "newer-field-of-a-record": "a record with the field 'colour'",
    "owner-climbs-out": "owner '../etc'",
    "owner-in-capitals": "capital letter 'A'",
    "name-with-separator": "name 'dog/cat'",
    "name-looks-alike": r"U\+043E",
    "version-zero": r"`int` >= 1 - at `\$\[0\].record.version`",
    "version-not-whole": r"Expected `int`, got `float` - at `\$\[0\].record.version`",
    "blob-digest-too-short": r"matching regex .* at `\$\[0\].record.blob_digest`",
    "scope-unknown": "Invalid enum value 'everywhere'",
    "precision-unknown": "Invalid enum value 'float8'",
    "more-members-than-neurons": "neuron_count is 101",
    "density-not-the-counts": "density is not neuron_count / table_neuron_count",
    "blob-bytes-negative": r"`int` >= 0 - at `\$\[0\].record.blob_bytes`",
    "created-not-utc": "created is '2026-11-22T00:00:00'",
    "alias-all-digits": "would read as a version number",
    "alias-generation-zero": r"`int` >= 1 - at `\$\[0\].generation`",
    "tag-empty": "'' is not a tag",
}
# What JSON Schema cannot say.
BEYOND_SCHEMA = {
    "density-not-the-counts",
    "more-members-than-neurons",
    "alias-all-digits",
    "created-not-utc",
    "tag-empty",
    "owner-climbs-out",
    "owner-in-capitals",
    "name-with-separator",
    "name-looks-alike",
}


def packed(value: Any) -> tuple[str, bytes]:
    """(key, bytes) of a segment with any content, its digest right."""
    data = zstandard.ZstdCompressor().compress(canonical(value))
    digest = sha256_bytes(data).removeprefix("sha256:")
    return f"log/{STAMP}.{digest}.json.zst", data


@pytest.mark.parametrize("rule", sorted(REASONS))
def test_a_segment_that_breaks_a_rule_is_refused_for_it(rule: str) -> None:
    value = json.loads((FOLDER / f"bad/log-segment-{rule}.json").read_text("utf-8"))
    with pytest.raises(CorruptDataError, match=REASONS[rule]):
        segments.decode_segment(*packed(value))
    is_valid = jsonschema.Draft202012Validator(SCHEMA).is_valid(value)
    if rule not in BEYOND_SCHEMA:
        assert not is_valid, "the schema allows it"


def test_every_bad_segment_has_its_reason() -> None:
    names = {p.stem.removeprefix("log-segment-") for p in FOLDER.glob("bad/log-segment-*.json")}
    assert names == set(REASONS)


def test_the_example_segment_is_read() -> None:
    value = json.loads((FOLDER / "examples/log-segment.json").read_text("utf-8"))
    segment = segments.decode_segment(*packed(value))
    assert [kind_of(event) for event in segment.events] == ["push", "tag"]


def test_a_flipped_bit_anywhere_in_a_segment_is_found() -> None:
    key, data = segments.encode_segment(segments.Segment(STAMP, (Removed("a", "b", 1),)))
    for position in range(len(data)):
        flipped = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        with pytest.raises(CorruptDataError, match="damaged"):
            segments.decode_segment(key, flipped)


@pytest.mark.parametrize(
    "key",
    [
        "log/x",
        f"log/{STAMP}.json.zst",
        f"log/{STAMP[:-1]}U.{'0' * 64}.json.zst",
        f"log/{STAMP.lower()}.{'0' * 64}.json.zst",
        f"log/{STAMP}.{'0' * 63}.json.zst",
        f"log/{STAMP}.{'0' * 64}.json",
    ],
)
def test_what_is_no_segment_may_not_lie_in_the_log(key: str) -> None:
    with pytest.raises(CorruptDataError):
        segments.parse_name(key)


def test_a_segment_that_announces_terabytes_is_refused_before_it_is_read() -> None:
    # A frame header with an 8-byte content size of 2**50 and nothing behind it.
    data = bytes.fromhex("28b52ffd") + bytes([0b11100000]) + (2**50).to_bytes(8, "little")
    key = f"log/{STAMP}.{sha256_bytes(data).removeprefix('sha256:')}.json.zst"
    with pytest.raises(CorruptDataError, match=r"announces|not zstd"):
        segments.decode_segment(key, data)


def test_a_commit_has_a_largest_size() -> None:
    events = (Removed("a", "b", 1),) * (segments.MAX_EVENTS + 1)
    with pytest.raises(LimitExceededError, match="Use several"):
        segments.encode_segment(segments.Segment(STAMP, events))


def test_deeply_nested_json_is_refused() -> None:
    content = b"[" * 200_000 + b"]" * 200_000
    data = zstandard.ZstdCompressor().compress(content)
    key = f"log/{STAMP}.{sha256_bytes(data).removeprefix('sha256:')}.json.zst"
    with pytest.raises(CorruptDataError):
        segments.decode_segment(key, data)


def test_a_document_is_refused_when_anything_in_it_changed() -> None:
    data = seal("base", {"a": 1, "b": "text"})
    assert unseal("base", data, "x") == {"a": 1, "b": "text"}
    for changed in (
        data.replace(b'"a":1', b'"a":2'),
        data.replace(b"cones-base", b"cones-quota"),
        data[:-10],
        b"[]",
        b"{}",
        b"\xff",
        b'{"format":"cones-base/1","digest":"sha256:' + b"0" * 64 + b'"}',
    ):
        with pytest.raises(CorruptDataError):
            unseal("base", changed, "x")
    with pytest.raises(CorruptDataError, match="expected 'cones-quota/1'"):
        unseal("quota", data, "x")


def test_a_document_of_a_later_version_is_newer_not_damaged() -> None:
    data = seal("base", {"a": 1})
    with pytest.raises(NewerFormatError, match="Upgrade cones-registry; nothing is damaged"):
        unseal("base", data, "x", version=0)


def test_stamps_are_unique_and_later_than_all_seen() -> None:
    clock, other = Clock(), Clock()
    made = [clock.next() for _ in range(500)]
    assert made == sorted(set(made))
    other.observe(made[-1])
    assert other.next() > made[-1]
    far = "7" + "0" * 25
    other.observe(far)
    assert other.next() > far


# -- archives -----------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry.create(tmp_path / "registry", cache=tmp_path / "cache")
    registry.push("alice/dog", MASK, tags=["x"], token="sks", scope="prompt")
    return registry


def archive(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with (
        path.open("wb") as file,
        zstandard.ZstdCompressor().stream_writer(file, closefd=False) as packed_file,
        tarfile.open(fileobj=packed_file, mode="w|") as tar,
    ):
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def members_of(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with (
        path.open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file) as plain,
        tarfile.open(fileobj=plain, mode="r|") as tar,
    ):
        found = []
        for member in tar:
            content = tar.extractfile(member)
            found.append((member, content.read() if content else b""))
        return found


def test_an_archive_carries_concepts_between_registries(registry: Registry, tmp_path: Path) -> None:
    registry.push("bob/dog", MASK, scope="prompt")
    report = registry.export_archive(tmp_path / "a.tar.zst")
    assert (report.concepts, report.blobs) == (2, 1)
    other = Registry.create(tmp_path / "other", cache=tmp_path / "cache")
    assert [c.ref for c in other.import_archive(tmp_path / "a.tar.zst")] == [
        "alice/dog:1",
        "bob/dog:1",
    ]
    assert other.pull("alice/dog") == MASK
    assert other.get("alice/dog").tags == ("x",)
    again = other.import_archive(tmp_path / "a.tar.zst")
    assert [c.ref for c in again] == ["alice/dog:1", "bob/dog:1"]
    assert len(other.find()) == 2
    assert other.import_archive(tmp_path / "a.tar.zst", owner="carl")[0].owner == "carl"


def test_an_archive_carries_the_pictures_of_its_concepts(tmp_path: Path) -> None:
    source = Registry.create(tmp_path / "source", cache=tmp_path / "cache")
    pictures = [b"RIFF....WEBP" + bytes([number]) for number in range(2)]
    kept = source.push("alice/cat", MASK, scope="prompt", previews=pictures)
    source._session.store.delete(preview_key(kept.previews[1]))  # what is lost stops nothing
    source.export_archive(tmp_path / "a.tar.zst")
    target = Registry.create(tmp_path / "target", cache=tmp_path / "cache")
    (imported,) = target.import_archive(tmp_path / "a.tar.zst")
    assert imported.previews == kept.previews[:1]
    assert target.preview(imported.previews[0]) == pictures[0]


def test_an_archive_does_not_say_which_model_is_loaded(registry: Registry, tmp_path: Path) -> None:
    bases = {}
    for name, source in (("mine", "evil/model"), ("ours", "demo")):
        fingerprint = "sha256:" + name.encode().hex().ljust(64, "0")
        base = SimpleNamespace(fingerprint=fingerprint, layer_table=TABLE, published_source=source)
        registry.push(f"carl/{name}", MASK, base=base, scope="prompt")
        bases[source] = fingerprint
    assert registry.base(bases["evil/model"]).source == "evil/model"
    registry.export_archive(tmp_path / "a.tar.zst")
    other = Registry.create(tmp_path / "other", cache=tmp_path / "cache")
    other.import_archive(tmp_path / "a.tar.zst")
    assert other.base(bases["evil/model"]).source is None
    assert other.base(bases["evil/model"]).pinned
    assert other.base(bases["demo"]).source == "demo"


OTHER = ConceptMask.from_indices(TABLE, {TABLE.names[0]: np.arange(20, dtype=np.int32)})


class _Parameter:
    def numel(self) -> int:
        return 12_345


class _Denoiser:
    def parameters(self) -> list[_Parameter]:
        return [_Parameter()]


class WithWeights:
    """What a push takes of a base model."""

    fingerprint = "sha256:" + "ab" * 32
    layer_table = TABLE
    published_source = "hub/x"
    denoiser = _Denoiser()


def facts(registry: Registry) -> list[tuple[Any, ...]]:
    found = sorted(registry.find(owner="alice", name="cat"), key=lambda each: each.version)
    return [(c.mask_digest, c.scope, c.base, c.token, c.class_noun) for c in found]


def moved(tmp_path: Path, *here: tuple[ConceptMask, dict[str, Any]]) -> tuple[Registry, Registry]:
    """(source of the versions A, B and another A, target that has `here`), after two imports."""
    source = Registry.create(tmp_path / "source", cache=tmp_path / "cache")
    source.push("alice/cat", MASK, scope="prompt")
    source.push("alice/cat", OTHER, scope="prompt")
    source.push("alice/cat", MASK, base=WithWeights.fingerprint, scope="subject", note="back")
    source.export_archive(tmp_path / "a.tar.zst")
    target = Registry.create(tmp_path / "target", cache=tmp_path / "cache")
    for mask, options in here:
        target.push("alice/cat", mask, **({"scope": "prompt"} | options))
    first = target.import_archive(tmp_path / "a.tar.zst")
    count = len(target.find())
    again = target.import_archive(tmp_path / "a.tar.zst")
    assert [concept.ref for concept in again] == [concept.ref for concept in first]
    assert len(target.find()) == count
    return source, target


@pytest.mark.parametrize(
    "here",
    [
        (),
        ((MASK, {}),),
        ((OTHER, {}),),
        ((MASK, {}), (OTHER, {})),
        ((OTHER, {}), (MASK, {})),
        ((MASK, {"scope": "subject"}), (OTHER, {"token": "sks"}), (MASK, {"class_noun": "cat"})),
        ((MASK, {}), (MASK, {"base": WithWeights.fingerprint, "scope": "subject"})),
    ],
    ids=range(7),
)
def test_an_import_loses_no_version_and_keeps_their_order(
    tmp_path: Path, here: tuple[tuple[ConceptMask, dict[str, Any]], ...]
) -> None:
    source, target = moved(tmp_path, *here)
    rest = iter(facts(target))
    assert all(fact in rest for fact in facts(source))
    assert facts(target)[-1] == facts(source)[-1]


def test_what_is_here_already_is_not_imported_again(tmp_path: Path) -> None:
    _, target = moved(tmp_path, (MASK, {}), (OTHER, {}))
    assert [c.ref for c in target.import_archive(tmp_path / "a.tar.zst")] == [
        "alice/cat:1",
        "alice/cat:2",
        "alice/cat:3",
    ]


def test_an_archive_carries_what_is_known_of_a_base(tmp_path: Path) -> None:
    source = Registry.create(tmp_path / "source", cache=tmp_path / "cache")
    source.push("alice/cat", MASK, base=WithWeights(), scope="prompt")
    source.export_archive(tmp_path / "a.tar.zst")
    target = Registry.create(tmp_path / "target", cache=tmp_path / "cache")
    target.import_archive(tmp_path / "a.tar.zst")
    had, has = source.stats().by_base, target.stats().by_base
    assert has == tuple(dataclasses.replace(each, source=None) for each in had)
    assert (had[0].source, has[0].source) == ("hub/x", None)
    assert target.stats().by_base[0].unet_bytes == 12_345 * 4
    key = "bases/" + "ab" * 32 + ".json"
    # Whoever loaded the model here knows it from its weights; whoever imports, by hearsay.
    said = unseal("base", target._session.store.get(key), key)
    loaded = unseal("base", source._session.store.get(key), key)
    assert loaded == said | {"loaded": True, "source": "hub/x"}
    # An archive of before that was written lacks it.
    members = []
    for member, data in members_of(tmp_path / "a.tar.zst"):
        if member.name.startswith("bases/"):
            body = unseal("base", data, member.name)
            del body["parameters"]
            data = seal("base", body)
        members.append((member, data))
    older = Registry.create(tmp_path / "older", cache=tmp_path / "cache")
    (concept,) = older.import_archive(archive(tmp_path / "older.tar.zst", members))
    assert concept.base == WithWeights.fingerprint
    assert older.stats().by_base[0].unet_bytes is None


def test_a_concept_with_as_many_tags_as_it_may_have_can_be_carried(tmp_path: Path) -> None:
    source = Registry.create(tmp_path / "source", cache=tmp_path / "cache")
    source.push("alice/cat", MASK, tags=[f"t{number}" for number in range(600)], scope="prompt")
    with pytest.raises(UsageError, match="1200 tags; at most 1000"):
        source.tag("alice/cat", add=[f"u{number}" for number in range(600)])
    assert len(source.get("alice/cat").tags) == 600
    source.tag("alice/cat", add=[f"u{number}" for number in range(401)], remove=["t0"])
    assert len(source.get("alice/cat").tags) == 1000
    source.export_archive(tmp_path / "a.tar.zst")
    target = Registry.create(tmp_path / "target", cache=tmp_path / "cache")
    assert len(target.import_archive(tmp_path / "a.tar.zst")[0].tags) == 1000


def special(name: str, kind: bytes, link: str = "/etc/passwd") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member, b""


@pytest.mark.parametrize(
    "extra",
    [
        special("masks/x", tarfile.SYMTYPE),
        special("masks/x", tarfile.LNKTYPE),
        special("blobs", tarfile.DIRTYPE),
        special("dev", tarfile.CHRTYPE),
        special("fifo", tarfile.FIFOTYPE),
        (tarfile.TarInfo("/etc/cron.d/evil"), b"x"),
        (tarfile.TarInfo("../../evil"), b"x"),
        (tarfile.TarInfo("masks/../../evil"), b"x"),
        (tarfile.TarInfo("unexpected"), b"x"),
    ],
    ids=lambda extra: f"{extra[0].name}-{extra[0].type.decode()}",
)
def test_an_archive_with_anything_unexpected_is_refused_whole(
    registry: Registry, tmp_path: Path, extra: tuple[tarfile.TarInfo, bytes]
) -> None:
    registry.export_archive(tmp_path / "a.tar.zst")
    bad = archive(tmp_path / "bad.tar.zst", [*members_of(tmp_path / "a.tar.zst"), extra])
    other = Registry.create(tmp_path / "other", cache=tmp_path / "cache")
    before = sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)
    with pytest.raises(CorruptDataError):
        other.import_archive(bad)
    assert sorted(p for p in tmp_path.rglob("*") if "cache" not in p.parts) == before
    assert other.find() == []


@pytest.mark.parametrize("kind", ["x", "g", "X", "L", "K", "S"])
def test_a_header_that_announces_gigabytes_is_refused_before_they_are_read(
    registry: Registry, tmp_path: Path, kind: str
) -> None:
    header = tarfile.TarInfo("bomb")
    header.type, header.size = kind.encode(), 7 << 30
    with (
        (tmp_path / "bomb.tar.zst").open("wb") as file,
        zstandard.ZstdCompressor().stream_writer(file, closefd=False) as packed,
    ):
        packed.write(header.tobuf(tarfile.USTAR_FORMAT))
        packed.write(bytes(1 << 20))
    with pytest.raises(CorruptDataError, match="has a header of kind"):
        registry.import_archive(tmp_path / "bomb.tar.zst")


def test_a_damaged_archive_is_refused(registry: Registry, tmp_path: Path) -> None:
    registry.export_archive(tmp_path / "a.tar.zst")
    good = members_of(tmp_path / "a.tar.zst")
    changed = [
        (member, data[:-1] + b"!" if member.name.startswith("masks/") else data)
        for member, data in good
    ]
    other = Registry.create(tmp_path / "other", cache=tmp_path / "cache")
    for path in (
        archive(tmp_path / "changed.tar.zst", changed),
        archive(tmp_path / "short.tar.zst", good[:-1]),
        archive(tmp_path / "headless.tar.zst", good[1:]),
        archive(tmp_path / "empty.tar.zst", []),
    ):
        with pytest.raises(CorruptDataError):
            other.import_archive(path)
    for size in (0, 10, 100):
        cut = tmp_path / "cut.tar.zst"
        cut.write_bytes((tmp_path / "a.tar.zst").read_bytes()[:size])
        with pytest.raises(CorruptDataError):
            other.import_archive(cut)
    assert other.find() == []
