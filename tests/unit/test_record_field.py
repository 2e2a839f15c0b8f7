"""One class says what a record is: a field added to it is everywhere, with no other edit."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import importlib.util, json, sys
from pathlib import Path

folder = Path(sys.argv[1])
spec = importlib.util.find_spec("cones_registry.record")
source = Path(spec.origin).read_text("utf-8")
line = '    key: Short = ""\\n'
assert source.count(line) == 1
module = importlib.util.module_from_spec(spec)
sys.modules["cones_registry.record"] = module
exec(compile(source.replace(line, line + '    licence: str = "CC0"\\n'), spec.origin, "exec"),
     module.__dict__)

import numpy as np
from cones_registry import ConceptMask, LayerTable, Registry
from cones_registry.cli import main

table = LayerTable.from_shapes({"a.attn2.to_k.weight": (8, 16)})
mask = ConceptMask.from_indices(table, {table.names[0]: np.arange(10, dtype=np.int32)})
registry = Registry.create(folder / "r", cache=folder / "cache")
registry.push("alice/dog", mask, scope="prompt")
registry.compact(grace=0)
rows = registry.query("SELECT licence FROM concepts").to_pylist()
(stored,) = (folder / "r" / "versions").rglob("1.json")
fresh = Registry.open(folder / "r", cache=folder / "fresh")
assert fresh.check(read_data=True).ok
definitions = module.json_schema(module.Record, "record")["$defs"]
found = {
    "query": rows,
    "get": fresh.get("alice/dog").licence,
    "stored": json.loads(stored.read_text())["record"]["licence"],
    "schema": definitions["Record"]["properties"]["licence"],
}
sys.stdout.write(json.dumps(found) + "\\n")
sys.stdout.flush()
sys.argv[1:] = ["-r", str(folder / "r"), "show", "alice/dog", "--json"]
main()
"""


def test_a_field_added_to_the_record_is_in_show_query_and_schema(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env=os.environ | {"CONES_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, _, shown = done.stdout.partition("\n")
    found = json.loads(first)
    assert found["query"] == [{"licence": "CC0"}]
    assert found["get"] == found["stored"] == "CC0"
    assert found["schema"] == {"type": "string", "default": "CC0"}
    assert json.loads(shown)["licence"] == "CC0"
