"""Lists a registry in a folder and reads masks; written from the pages beside it alone."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import zstandard


def checked(path, digest):
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest[-64:], path
    return data


def catalogue(folder):  # catalog.md, Manifests and Runs
    published = [path.name.split(".") for path in (folder / "log").glob("*.pointer")]
    tables, folded = {"concepts": {}, "aliases": {}}, set()
    for _, digest, _, number, _ in sorted(published, key=lambda each: each[2:4])[-1:]:
        newest = json.loads(checked(folder / f"catalog/{number}.json", digest))
        for path in (folder / f"catalog/{n:09d}.json" for n in range(newest["since"], int(number))):
            folded |= set(json.loads(path.read_bytes())["folded"]) if path.exists() else set()
        folded |= set(newest["folded"])
        for table, key in (("concepts", "version"), ("aliases", "alias")):
            for run in reversed(newest["tables"].get(table, ())):  # newer lines replace older ones
                for digest in (part["digest"] for part in run["parts"]):
                    data = checked(folder / f"runs/{digest[7:]}.parquet", digest)
                    for row in pq.read_table(io.BytesIO(data)).to_pylist():
                        tables[table][row["owner"], row["name"], row[key]] = row
    return *({k: v for k, v in lines.items() if not v["gone"]} for lines in tables.values()), folded


def read_registry(folder):
    """((owner, name, version) -> row, (owner, name, alias) -> version), of versions in use."""
    folder, said = Path(folder), []  # said: (what of, order, value); the last in order holds
    assert json.loads((folder / "cones.json").read_bytes())["format"] == "cones-registry/2"
    rows, aliases, folded = catalogue(folder)
    said += [((key,), f"{row['generation']:09d}", row["version"]) for key, row in aliases.items()]
    for place, row in rows.items():
        state = json.loads(row["state"] or "{}")
        said.append(((place, None), state.get("removed", ""), row["removed"]))
        said += [((place, tag), *each) for tag, each in state.get("tags", {}).items()]
    for path in sorted((folder / "log").glob("*.json.zst")):  # log.md
        stamp, digest = path.name.split(".")[:2]
        segment = zstandard.decompress(checked(path, digest)) if stamp not in folded else b"{}"
        for event in json.loads(segment).get("events", ()):
            kind, subject = event["type"], event.get("record", event)
            place = tuple(subject.get(name) for name in ("owner", "name", "version"))
            if kind == "push":
                rows.setdefault(place, subject)
            elif kind == "alias":
                key = (*place[:2], event["alias"])
                said.append(((key,), f"{event['generation']:09d}", event["version"]))
            elif kind in ("tag", "remove", "restore"):
                for tag in (*event.get("add", ()), *event.get("remove", ())) or [None]:
                    holds = tag in event["add"] if tag else kind == "remove"
                    said.append(((place, tag), stamp, holds))
    now = {what: value for what, _, value in sorted(said, key=lambda each: each[1])}
    for (place, *tag), holds in now.items():
        if any(tag) and place in rows:
            tags = {*rows[place]["tags"]} - {*tag}
            rows[place]["tags"] = sorted(tags | {*tag} if holds else tags)
    used = {place: row for place, row in rows.items() if not now.get((place, None))}
    return used, {k[0]: n for k, n in now.items() if len(k) == 1 and (*k[0][:2], n) in used}


def bits(data, count):
    return np.unpackbits(np.frombuffer(data, np.uint8), count=count, bitorder="little")


def positions(encoding, data, low, count):  # mask.md, Layout gap8
    if encoding == "bitmap":
        return np.flatnonzero(bits(data, count))
    width, _, shift = encoding.removeprefix("gap").partition(":")
    shift, steps = int(shift or 0), np.frombuffer(data, np.uint8).astype(np.int64)
    member = steps < 2 ** int(width) - 1
    lows = bits(low, member.sum() * shift).reshape(member.sum(), shift).astype(np.int64)
    steps <<= shift
    steps[member] += 1 + (lows << np.arange(shift)).sum(axis=1)
    return np.cumsum(steps)[member] - 1


def members(row):
    rows, cols, low, kinds = row["rows"], row["cols"], row.get("low") or b"", []
    if "gaps" in row:
        return positions(row["encoding"], row["gaps"], low, rows * cols)
    r_classes, c_classes, shift, *streams = row["blocks"]  # mask.md, Layout class
    for cell, base, n in (("row_classes", r_classes, rows), ("col_classes", c_classes, cols)):
        places = base ** np.arange({1: 0, 2: 8, 3: 5, 4: 4, 5: 3, 6: 3}.get(base, 2))
        digits = np.frombuffer(row[cell], np.uint8)[:, None] // places % base
        kinds.append(digits.ravel()[:n] if base > 1 else np.zeros(n, np.int64))
    block = (kinds[0][:, None] * c_classes + kinds[1]).ravel()  # of each neuron
    order, found = np.argsort(block, kind="stable"), []
    for stream, name in enumerate(("bits", *(f"gaps_{2**n}" for n in range(2, 7))), start=1):
        sequence = order[np.array(streams)[block[order]] == stream]
        how = ("bitmap", *["gap8"] * 4, f"gap8:{shift}")[stream - 1]
        found.append(sequence[positions(how, row.get(name) or b"", low, len(sequence))])
    return np.sort(np.concatenate(found))


def read_mask(path):  # name of a layer -> (members int64 [n]; factors [n], None if binary)
    file = pq.ParquetFile(path)
    footer, rows, found = json.loads(file.metadata.metadata[b"cones"]), file.read().to_pylist(), {}
    for name, *_ in footer.get("layer_table", ()):  # mask.md, Layout plain
        its = [(row["index"], row.get("factor")) for row in rows if row["layer"] == name]
        indices, values = np.array(its or np.zeros((0, 2)), float).T
        found[name] = indices.astype(np.int64), None if footer["precision"] == "binary" else values
    for row in rows if footer["layout"] != "plain" else ():
        values, planes = None, [row[name] for name in sorted(row) if name.startswith("factors_")]
        if footer["precision"] == "2bit":  # mask.md, Factors
            values = bits(planes[0], 2 * row["n"]).reshape(-1, 2) @ (1, 2) / np.float32(3)
        elif planes:
            bytes_of = np.stack([np.frombuffer(plane, np.uint8) for plane in planes], axis=1)
            values = bytes_of.copy().view(f"<f{len(planes)}").ravel()
        found[row["layer"]] = members(row), values
    return found
