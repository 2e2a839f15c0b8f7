"""Fingerprints over files as large models come in: shards, bfloat16, more than memory holds."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from cones_registry.base_model.source import ModelFolder, Part, folder_fingerprint
from cones_registry.base_model.weight_files import weight_files
from cones_registry.layers import LayerTable

SIDE, BLOCKS = 512, 64
NAMES = [
    f"transformer_blocks.{number}.attn.{projection}.weight"
    for number in range(BLOCKS)
    for projection in ("add_k_proj", "add_v_proj")
]
WHOLE_BYTES = len(NAMES) * SIDE * SIDE * 2  # 67 MB in bfloat16

PEAK = """
import sys, threading, time
from pathlib import Path
from tests.unit.test_base_model_shards import fingerprint_of, opened

def anonymous():  # bytes of memory that is no mapped file
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024

folder = opened(Path(sys.argv[1]))
start, peak, running = anonymous(), 0, True

def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.0005)

watcher = threading.Thread(target=watch)
watcher.start()
digest = fingerprint_of(folder)
running = False
watcher.join()
print(digest, peak - start)
"""


def opened(path: Path) -> ModelFolder:
    files = weight_files(path / "transformer", None)
    part = Part("transformer", "diffusers", "SD3Transformer2DModel", None, files)
    return ModelFolder(path, "StableDiffusion3Pipeline", "transformer", (part,), ())


def fingerprint_of(folder: ModelFolder) -> str:
    return folder_fingerprint(folder, LayerTable.from_shapes(dict.fromkeys(NAMES, (SIDE, SIDE))))


def test_shards_in_bfloat16_have_the_whole_files_fingerprint_a_layer_in_memory_at_a_time(
    tmp_path: Path,
) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: (torch.randn(SIDE, SIDE, generator=generator) / 23).bfloat16() for name in NAMES
    }
    stem = "diffusion_pytorch_model"
    for kind in ("whole", "sharded"):
        (tmp_path / kind / "transformer").mkdir(parents=True)
    save_file(weights, tmp_path / "whole" / "transformer" / f"{stem}.safetensors")
    places = {}
    for number in range(4):
        names = NAMES[number::4]  # K and V of one block are in other shards
        file = f"{stem}-{number + 1:05d}-of-00004.safetensors"
        save_file(
            {name: weights[name] for name in names}, tmp_path / "sharded" / "transformer" / file
        )
        places |= dict.fromkeys(names, file)
    index = tmp_path / "sharded" / "transformer" / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    whole = fingerprint_of(opened(tmp_path / "whole"))
    # In float16, which holds these values too, it is the same base model.
    halves = tmp_path / "halves" / "transformer"
    halves.mkdir(parents=True)
    save_file({name: each.half() for name, each in weights.items()}, halves / f"{stem}.safetensors")
    assert fingerprint_of(opened(tmp_path / "halves")) == whole
    said = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "sharded")],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    ).stdout.split()
    assert said[0] == whole
    assert int(said[1]) < WHOLE_BYTES / 2
