"""Every verb on a real registry in a folder: what it prints, what it changes, what it refuses."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from cones_registry import cli
from cones_registry.codec import load_file, save_file
from cones_registry.layers import LayerTable
from cones_registry.mask import ConceptMask

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (8, 16), "a.attn2.to_v.weight": (8, 16)})
BASE = "sha256:" + "7" * 64
OTHER_BASE = "sha256:" + "9" * 64


def mask_of(*indices: int) -> ConceptMask:
    return ConceptMask.from_indices(
        TABLE, {"a.attn2.to_k.weight": np.array(sorted(indices), dtype=np.int32)}
    )


class Command:
    """`cones -r REGISTRY …` in this process; keeps what was printed."""

    def __init__(self, url: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.url = url
        self._capsys = capsys
        self.out = ""
        self.err = ""

    def __call__(self, *arguments: object, code: int = 0) -> str:
        got = cli.run(["-r", str(self.url), *map(str, arguments)])
        self.out, self.err = self._capsys.readouterr()
        assert got == code, self.err
        assert "Traceback" not in self.err
        return self.out

    def json(self, *arguments: object) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def cones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """An empty registry, with its local copy in a folder of the test's own."""
    monkeypatch.setenv("CONES_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    command = Command(tmp_path / "concepts", capsys)
    command("init")
    return command


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """`file("dog", 1, 2, scope=…)`: a mask file whose footer says what it is."""

    def make(name: str, *indices: int, **record: Any) -> Path:
        path = tmp_path / f"{name}.parquet"
        save_file(mask_of(*indices), path, footer={"base": BASE, "scope": "prompt", **record})
        return path

    return make


@pytest.fixture
def two(cones: Command, file: Callable[..., Path]) -> Command:
    """alice/dog:1, alice/dog:2 and bob/cat:1."""
    subject = {"scope": "subject", "class_noun": "dog"}
    cones("push", "alice/dog", file("dog", 1, 2, 3, token="sks", **subject), "--tag", "pet")
    cones("push", "alice/dog", file("dog", 1, 2, 3, 4, token="sks", **subject))
    cones("push", "bob/cat", file("cat", 3, 4, 5, 6, token="ohwx", class_noun="cat"))
    return cones


def test_init_makes_a_registry_once(cones: Command) -> None:
    assert (cones.url / "cones.json").is_file()
    cones("init", code=11)
    assert cones.err.startswith("error: ")


def test_push_takes_what_the_file_says_and_prints_the_ref(
    cones: Command, file: Callable[..., Path]
) -> None:
    path = file("dog", 1, 2, scope="subject", token="sks", class_noun="dog", note="brown")
    assert cones("push", "alice/dog", path, "--tag", "pet", "--tag", "animal") == "alice/dog:1\n"
    concept = cones.json("show", "alice/dog")
    assert (concept["base"], concept["scope"], concept["token"]) == (BASE, "subject", "sks")
    assert (concept["class_noun"], concept["note"]) == ("dog", "brown")
    assert concept["tags"] == ["animal", "pet"]
    assert concept["mask_digest"] == mask_of(1, 2).digest


def test_push_options_say_otherwise_than_the_file(
    cones: Command, file: Callable[..., Path]
) -> None:
    path = file("dog", 1, scope="subject", token="sks", class_noun="dog")
    cones("push", "dog", path, "--token", "zwp", "--base", OTHER_BASE)
    said = cones.err
    concept = cones.json("show", "dog")
    assert (concept["token"], concept["base"]) == ("zwp", OTHER_BASE)
    assert f"was made for base model {BASE}" in said


def test_push_refuses_what_is_no_mask(cones: Command, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"\x89PNG not a mask")
    cones("push", "alice/dog", tmp_path / "photo.png", code=13)
    cones("push", "alice/dog", tmp_path / "nothing.parquet", code=10)
    assert "nothing.parquet" in cones.err
    cones("push", tmp_path / "photo.png", "alice/dog", code=2)
    assert "cones push alice/dog" in cones.err


def test_pull_writes_the_mask_that_was_pushed_and_never_over_a_file(
    two: Command, tmp_path: Path
) -> None:
    assert two("pull", "alice/dog:1") == "dog-1.parquet\n"
    assert load_file(tmp_path / "dog-1.parquet") == mask_of(1, 2, 3)
    two("pull", "alice/dog:1", code=11)
    two("pull", "alice/dog:2", "-o", "dog-1.parquet", "--force")
    assert load_file(tmp_path / "dog-1.parquet") == mask_of(1, 2, 3, 4)


def test_what_was_pulled_can_be_pushed_elsewhere_and_is_the_same_concept(
    two: Command, tmp_path: Path
) -> None:
    two("pull", "alice/dog:1")
    two("push", "carol/dog", "dog-1.parquet")
    first, second = two.json("show", "alice/dog:1"), two.json("show", "carol/dog")
    for key in ("base", "mask_digest", "scope", "token", "class_noun", "tags"):
        assert first[key] == second[key]


def test_a_mask_in_the_plain_layout_is_read_by_sql(two: Command) -> None:
    two("pull", "bob/cat", "--layout", "plain", "-o", "plain.parquet")
    rows = duckdb.sql("select index from 'plain.parquet' order by index").fetchall()
    assert [row[0] for row in rows] == [3, 4, 5, 6]


def test_show_says_everything_a_person_needs(two: Command) -> None:
    text = two("show", "alice/dog:1")
    for expected in ("alice/dog:1", "subject", "sks", "3 of 256", "pet", BASE):
        assert expected in text


def test_list_shows_the_newest_of_each_and_filters(two: Command) -> None:
    assert set(two("list", "-q").split()) == {"alice/dog:1", "alice/dog:2", "bob/cat:1"}
    assert two("list", "-q", "--filter", "neurons>3", "--sort", "ref").split() == [
        "alice/dog:2",
        "bob/cat:1",
    ]
    assert two("list", "-q", "--tag", "pet") == "alice/dog:1\n"
    assert two("list", "-q", "--owner", "bob") == "bob/cat:1\n"
    assert len(two("list", "-q", "--limit", 1).split()) == 1
    assert two("list", "-q", "--filter", "created>1d") == ""
    assert "Did you mean 'size'" in refused(two, "list", "--filter", "sise>1MB", code=2)


def test_list_writes_json_and_csv(two: Command) -> None:
    assert {each["ref"] for each in two.json("list")} == {"alice/dog:1", "alice/dog:2", "bob/cat:1"}
    rows = list(csv.DictReader(io.StringIO(two("list", "--format", "csv"))))
    assert {row["ref"] for row in rows} == {"alice/dog:1", "alice/dog:2", "bob/cat:1"}


def test_query_answers_a_select_with_parameters_and_refuses_all_else(two: Command) -> None:
    sql = "select ref from concepts where neuron_count > ? and owner = ? order by ref"
    assert two.json("query", sql, 3, "alice") == [{"ref": "alice/dog:2"}]
    assert two("query", sql, 3, "alice", "--format", "csv") == "ref\nalice/dog:2\n"
    refused(two, "query", "drop table concepts", code=2)
    refused(two, "query", "selec ref from concepts", code=2)
    endless = "select count(*) from range(1000000000000) one, range(1000000) other"
    refused(two, "query", endless, "--timeout", 0.1, code=16)


def test_an_alias_moves_only_from_where_it_is_expected(two: Command) -> None:
    two("alias", "alice/dog:1", "prod")
    assert two.json("show", "alice/dog:prod")["version"] == 1
    refused(two, "alias", "alice/dog:2", "prod", "--expect", 2, code=11)
    two("alias", "alice/dog:2", "prod", "--expect", 1)
    assert two.json("show", "alice/dog:prod")["version"] == 2


def test_tags_are_added_and_taken_away(two: Command) -> None:
    two("tag", "alice/dog:1", "brown", "--remove", "pet")
    assert two.json("show", "alice/dog:1")["tags"] == ["brown"]
    refused(two, "tag", "alice/dog:1", code=2)


def test_a_removed_version_is_out_of_sight_until_it_is_restored(two: Command) -> None:
    two("remove", "bob/cat:1")
    assert "bob" not in two("list", "-q")
    refused(two, "resolve", "bob/cat", code=10)
    two("restore", "bob/cat:1")
    assert "bob/cat:1" in two("list", "-q")


def test_diff_counts_what_two_masks_share(two: Command) -> None:
    found = two.json("diff", "alice/dog:2", "bob/cat")
    assert (found["shared"], found["only_first"], found["only_second"]) == (2, 2, 2)
    assert found["jaccard"] == pytest.approx(2 / 6)
    assert "a.attn2.to_k.weight" in two("diff", "alice/dog:1", "alice/dog:2")


def test_resolve_explains_what_concepts_come_to(two: Command) -> None:
    found = two.json("resolve", "alice/dog", "bob/cat")
    assert found["refs"] == ["alice/dog:2", "bob/cat:1"]
    assert found["overlaps"][0]["shared_count"] == 2
    text = two("resolve", "alice/dog", "bob/cat", "--explain")
    for expected in ("alice/dog:2", "bob/cat:1", "sks dog", "Jaccard", "a.attn2.to_v.weight"):
        assert expected in text


def test_resolve_draws_what_it_explains(two: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    two("resolve", "alice/dog", "bob/cat", "--plot", tmp_path / "figures" / "both.png")
    assert (tmp_path / "figures" / "both.png").read_bytes().startswith(b"\x89PNG")
    refused(two, "resolve", "alice/dog", "--plot", tmp_path / "both.txt", code=2)


def test_resolve_refuses_too_much_density_and_mixed_base_models(
    two: Command, file: Callable[..., Path]
) -> None:
    refused(two, "resolve", "alice/dog", "bob/cat", "--max-density", 0.001, code=16)
    two("push", "bob/fox", file("fox", 9, base=OTHER_BASE))
    refused(two, "resolve", "alice/dog", "bob/fox", code=12)
    refused(two, "diff", "alice/dog", "bob/fox", code=12)


@pytest.mark.parametrize(
    ("typed", "meant"), [("alice/dgo", "alice/dog"), ("alce/dog", "alice/dog"), ("cat", "bob/cat")]
)
def test_a_ref_that_is_not_there_names_the_one_that_was_meant(
    two: Command, typed: str, meant: str
) -> None:
    reply = refused(two, "show", typed, code=10)
    assert re.search(rf"[Dd]id you mean[^?]*{meant}", reply), reply


def test_a_registry_that_is_not_there_is_said_so(
    two: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["list", "-r", str(tmp_path / "elsewhere")]) == 10
    assert "elsewhere" in capsys.readouterr().err


def test_check_says_what_is_wrong_and_its_exit_code_too(two: Command) -> None:
    assert two.json("check", "--read-data")["ok"] is True
    digest = two.json("show", "bob/cat")["blob_digest"].removeprefix("sha256:")
    (two.url / "masks" / digest[:2] / f"{digest}.parquet").unlink()
    refused_with_data = two("check", code=13)
    assert "bob/cat:1" in refused_with_data
    assert "1 problem in" in two.err


def test_compact_folds_the_log(two: Command) -> None:
    assert two.json("compact")["rows"] == 3
    assert "nothing to fold" in two("compact") + two.err


def test_prune_and_purge_do_nothing_until_they_are_told_to(two: Command) -> None:
    two("remove", "bob/cat:1")
    refused(two, "prune", "--grace", 0, code=2)
    assert two.json("prune", "--grace", 0, "--dry-run")["versions"] == ["bob/cat:1"]
    assert "to delete now: 1 mask" in two.err and "for later: 0 masks, 0 B" in two.err
    refused(two, "purge", "alice/dog", code=2)
    two("restore", "bob/cat:1")
    two("remove", "bob/cat:1")
    assert two.json("prune", "--grace", 0, "--yes")["freed_bytes"] > 0
    refused(two, "restore", "bob/cat:1", code=10)


def test_a_purge_leaves_a_receipt_and_nothing_else(two: Command) -> None:
    refused(two, "purge", code=2)
    receipt = json.loads(two("purge", "--owner", "alice", "--yes"))
    assert (receipt["versions"], receipt["found"]) == (2, 0)
    assert two("list", "-q") == "bob/cat:1\n"


def test_an_archive_carries_concepts_to_another_registry(
    two: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two("export", "concepts.tar.zst", "alice/dog:1", "bob/cat")
    refused(two, "export", "concepts.tar.zst", code=11)
    two("export", "concepts.tar.zst", "alice/dog:1", "bob/cat", "--force")
    other = Command(tmp_path / "other", capsys)
    other("init")
    assert set(other("import", "concepts.tar.zst").split()) == {"alice/dog:1", "bob/cat:1"}
    other("import", "concepts.tar.zst", "--owner", "carol")
    assert "carol/cat:1" in other("list", "-q")


def test_the_catalogue_is_exported_for_other_engines(two: Command) -> None:
    two("export", "catalogue.parquet")
    count = duckdb.sql("select count(*) from 'catalogue.parquet'").fetchall()
    assert count == [(3,)]
    two("export", "catalogue.jsonl")
    refused(two, "export", "catalogue.xlsx", code=2)
    refused(two, "export", "catalogue.jsonl", "bob/cat", code=2)


def test_a_quota_is_set_shown_kept_and_lifted(cones: Command, file: Callable[..., Path]) -> None:
    cones("push", "alice/one", file("one", 1))
    cones("quota", "alice", "--concepts", 1, "--bytes", "1GB")
    limits = {"owner": "alice", "concepts": 1, "bytes": 10**9}
    assert cones.json("quota")[0].items() >= limits.items()
    cones("push", "alice/two", file("two", 2), code=16)
    assert "the quota is 1" in cones.err
    cones("quota", "alice", "--concepts", "none")
    assert cones.json("quota", "alice")[0].items() >= (limits | {"concepts": None}).items()
    cones("push", "alice/two", file("two", 2))
    cones("quota", "--concepts", 1, code=2)


def test_stats_say_what_is_kept_and_what_it_saves(two: Command) -> None:
    found = two.json("stats")
    assert (found["owners"], found["concepts"], found["versions"]) == (2, 2, 3)
    text = two("stats")
    for expected in ("masks in this registry", "int32 indices", "dense float32 K/V"):
        assert expected in text


def test_the_cache_of_this_machine_can_be_seen_and_emptied(cones: Command, tmp_path: Path) -> None:
    from cones_registry.catalog.keys import mask_key
    from cones_registry.codec import encode
    from cones_registry.digest import sha256_bytes

    data = encode(mask_of(1, 2))
    path = tmp_path / "cache" / mask_key(sha256_bytes(data))
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    (kept,) = cones.json("cache", "ls")
    assert (kept["digest"], kept["bytes"]) == (sha256_bytes(data), len(data))
    cones("cache", "prune", "--limit", "1GB")
    assert path.exists()
    assert cones.json("cache", "prune") == {"freed_bytes": len(data)}
    assert not path.exists()


def refused(command: Command, *arguments: object, code: int) -> str:
    """What the command says when it refuses; nothing may stand on stdout."""
    assert command(*arguments, code=code) == ""
    assert "error: " in command.err
    return command.err
