"""What the storage saves, what is like what, and shares of concepts, from the command line."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cones_registry import ConceptMask, LayerTable, cli, encode
from cones_registry.cli.stats import saved
from cones_registry.codec import load_file, read_ranks
from cones_registry.ranking import ranks_of

TABLE = LayerTable.from_shapes({"a.attn2.to_k.weight": (32, 48), "a.attn2.to_v.weight": (32, 48)})
SCORES = {
    name: np.random.default_rng(number).random((32, 48), np.float32)
    for number, name in enumerate(TABLE.names)
}


def above(threshold: float) -> ConceptMask:
    return ConceptMask.from_dense({name: s > threshold for name, s in SCORES.items()}, table=TABLE)


class Cones:
    """`cones …` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.err = ""

    def __call__(self, *arguments: object, code: int = 0) -> str:
        got = cli.run(["-r", "concepts", *map(str, arguments)])
        out, self.err = self._capsys.readouterr()
        assert got == code, self.err
        return out

    def json(self, *arguments: object) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def cones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Cones:
    """A registry with a ranked concept, one like it and an equal one without ranks."""
    monkeypatch.setenv("CONES_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    command = Cones(capsys)
    command("init")
    mask = above(0.7)
    Path("dog.parquet").write_bytes(encode(mask, ranks=ranks_of(mask, SCORES)))
    Path("plain.parquet").write_bytes(encode(above(0.72)))
    command("push", "alice/dog", "dog.parquet", "--scope", "prompt")
    command("push", "bob/dog", "plain.parquet", "--scope", "prompt")
    return command


def test_a_pushed_file_keeps_its_scores_and_gives_them_back(cones: Cones) -> None:
    assert "so it can be cut" in cones("show", "alice/dog")
    assert "so it can be cut" not in cones("show", "bob/dog")
    cones("pull", "alice/dog", "--out", "back.parquet", "--layout", "plain")
    expected = read_ranks(Path("dog.parquet").read_bytes())
    assert expected is not None
    assert (read_ranks(Path("back.parquet").read_bytes()) == expected).all()


def test_pull_cuts_to_a_density(cones: Cones) -> None:
    cones("pull", "alice/dog", "--density", 0.1, "--out", "cut.parquet")
    assert len(load_file("cut.parquet")) == round(0.1 * TABLE.neuron_count)
    cones("pull", "bob/dog", "--density", 0.1, code=2)
    assert "--keep-scores" in cones.err


def test_resolve_takes_a_share_of_a_concept(cones: Cones) -> None:
    whole, part = (cones.json("resolve", ref) for ref in ("alice/dog", "alice/dog*0.5"))
    assert part["refs"] == ["alice/dog:1*0.5"]
    counts = [each["contributions"][0]["neuron_count"] for each in (whole, part)]
    assert counts[1] == round(counts[0] / 2)
    assert cones.json("resolve", "alice/dog:1*0.5")["digest"] == part["digest"]
    cones("resolve", "bob/dog*0.5", code=2)
    assert "keeps no scores" in cones.err
    cones("resolve", "alice/dog*2", code=2)


def test_similar_lists_the_most_alike(cones: Cones) -> None:
    (found,) = cones.json("similar", "alice/dog")
    assert found["ref"] == "bob/dog:1"
    assert found["jaccard"] == above(0.7).jaccard(above(0.72))
    text = cones("similar", "alice/dog")
    assert "bob/dog:1" in text
    assert "1 concept like alice/dog:1" in cones.err
    cones("similar", "alice/cat", code=10)


def test_sketches_are_base64_in_the_answer_to_a_query(cones: Cones) -> None:
    (row,) = cones.json("query", "SELECT sketch FROM concepts WHERE owner = 'alice'")
    assert len(base64.b64decode(row["sketch"])) == 256


def test_a_query_keeps_columns_of_one_name_apart(cones: Cones) -> None:
    cones("alias", "alice/dog", "prod")
    sql = (
        "SELECT c.owner, a.owner, a.alias, 'x' AS owner_1 FROM concepts c"
        " JOIN aliases a ON c.name = a.name WHERE c.owner = 'bob'"
    )
    assert cones("query", sql, "--format", "csv") == (
        "owner,owner,alias,owner_1\nbob,alice,prod,x\n"
    )
    heading, row = cones("query", sql).splitlines()
    assert (heading.split(), row.split()) == (
        ["owner", "owner", "alias", "owner_1"],
        ["bob", "alice", "prod", "x"],
    )
    expected = {"owner": "bob", "owner_2": "alice", "alias": "prod", "owner_1": "x"}
    assert cones.json("query", sql) == [expected]
    every = "SELECT * FROM concepts c JOIN aliases a ON c.owner = a.owner"
    assert "prod" in cones("query", every)
    (record,) = cones.json("query", every)
    assert (record["version"], record["version_1"], record["alias"]) == (1, 1, "prod")


def test_numbers_in_the_answer_to_a_query_are_numbers(cones: Cones) -> None:
    sql = (
        "SELECT sum(blob_bytes) AS total, 1.25 AS part, 'nan'::DOUBLE AS none,"
        " [sum(version)] AS listed, {'a': 'inf'::DOUBLE, 'b': sum(version)} AS held FROM concepts"
    )
    total = sum(concept["blob_bytes"] for concept in cones.json("list"))
    answer = json.loads(cones("query", sql, "--json"), parse_constant=pytest.fail)
    held = {"a": None, "b": 2}
    assert answer == [{"total": total, "part": 1.25, "none": None, "listed": [2], "held": held}]


def test_a_size_that_no_disk_has_is_refused(cones: Cones, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (
        ("quota", "bob", "--bytes", "1e400"),
        ("quota", "bob", "--bytes", "1e300"),
        ("quota", "bob", "--concepts", "9" * 5000),
        ("cache", "prune", "--limit", "1e400"),
        ("list", "--filter", "created<3000y"),
    ):
        cones(*arguments, code=2)
        assert "bug" not in cones.err
    for wrong in ("\u00b2", "-1", "9" * 5000):
        monkeypatch.setenv("CONES_CACHE_BYTES", wrong)
        cones("cache", "ls", code=2)
        assert "expected a number of bytes" in cones.err


def test_unequal_holds_for_what_is_not_there(cones: Cones) -> None:
    for filter in ("method!=gates", "token!=sks", "noun!=dog"):
        assert len(cones.json("list", "--filter", filter)) == 2


def test_push_tells_of_a_near_duplicate(cones: Cones) -> None:
    cones("list")  # whoever reads has the catalogue on this machine
    Path("again.parquet").write_bytes(encode(above(0.701)))
    cones("push", "carol/dog", "again.parquet", code=2)
    assert "does not say where its mask acts" in cones.err
    cones("push", "carol/dog", "again.parquet", "--scope", "prompt")
    assert "alice/dog:1 is nearly the same mask" in cones.err
    assert "cones diff carol/dog:1 alice/dog:1" in cones.err


def test_stats_compare_with_other_forms_and_draw(cones: Cones) -> None:
    cones("push", "carol/dog", "dog.parquet", "--scope", "prompt")
    found = cones.json("stats", "--list-store")
    assert found["saved_by_dedup"] > 0
    assert found["stored"]["masks"] == {"objects": 2, "bytes": found["blob_bytes"]}
    assert sum(found["densities"]) == found["versions"] == 3
    text = cones("stats")
    for words in ("int32 indices", "LoRA of rank 4", "dense float32 K/V", "equal ones each kept"):
        assert words in text
    assert "10 to 30 %" in text
    assert saved(100, 109_000) == ("99.9 %", "1,090")
    pytest.importorskip("matplotlib")
    cones("stats", "--plot", "stats.png")
    assert Path("stats.png").read_bytes().startswith(b"\x89PNG")
    cones("stats", "--plot", "stats.txt", code=2)


def test_stats_of_an_empty_registry_are_zeros(cones: Cones, tmp_path: Path) -> None:
    cones("-r", tmp_path / "empty", "init")
    assert "versions" in cones("-r", tmp_path / "empty", "stats")
    pytest.importorskip("matplotlib")
    cones("-r", tmp_path / "empty", "stats", "--plot", "stats.png", code=2)
