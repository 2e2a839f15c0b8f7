"""The evaluation on Stable Diffusion 1.x shapes, end to end: `python tools/measure_sd1.py --write`.

The commands an owner of real weights and photos types, run on a pipeline of SD 1.x's shapes and a
CLIP ViT-L/14, both with random weights: every method learns four subjects in two steps, `cones
evaluate` draws one to four of them with every rival beside, scores with the paper's preset and puts
the table together. Pictures are noise; what is shown is that nothing depends on the demo base's
size, what each command takes, and how large a concept is there. Writes tools/results/sd1.{md,json}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import click
import torch
from generation_models import stable_diffusion_1, word_tokenizer
from measured import keep, machine

from cones_registry.demo.subjects import SUBJECTS
from cones_registry.evaluation.baselines import BASELINES
from cones_registry.evaluation.fields import write_object
from cones_registry.evaluation.plan import FORMAT

LEARNT: Final = tuple(zip(SUBJECTS, "vxzq", strict=True))
"""Subjects and their tokens: single letters, which is all that the random model's tokenizer has."""
NOUN: Final = "toy"  # the same for all, so class pictures are drawn once
STEPS: Final = 2
METHODS: Final = (("cones", "prompt"), ("gates", "subject"), ("quick-gates", "subject"))
DENSITY: Final = 0.01


def make_base(folder: Path, side: int) -> None:
    """A folder as diffusers keeps Stable Diffusion 1.x, with random weights in half precision."""
    if not (folder / "model_index.json").exists():
        stable_diffusion_1(side).to(torch.float16).save_pretrained(folder)


def make_clip(folder: Path) -> None:
    """A folder as transformers keeps CLIP ViT-L/14, with random weights."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    if (folder / "config.json").exists():
        return
    tokenizer = word_tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    }
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**text, **ends, "vocab_size": len(tokenizer)},
        vision_config=vision,
        projection_dim=768,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


def write_plan(work: Path) -> Path:
    """One prompt for each number of subjects; our rows, every rival, and both bounds."""
    names = [subject.name for subject in SUBJECTS]
    places = ["{1}", "{1} and {2}", "{1}, {2} and {3}", "{1}, {2}, {3} and {4}"]
    plan = {
        "format": FORMAT,
        "subjects": {
            subject.name: {
                "token": token,
                "noun": NOUN,
                "images": os.path.relpath(subject.folder, work),
            }
            for subject, token in LEARNT
        },
        "groups": [names[: count + 1] for count in range(len(names))],
        "prompts": [f"a photo of {place} on the beach" for place in places],
        "seeds": 1,
        "steps": STEPS,
        "guidance": 3,
        "rows": [
            {"name": "base, class noun", "words": "noun"},
            *(
                {
                    "name": f"{method}/{scope}",
                    "concepts": {name: f"{name}-{method}" for name in names},
                }
                for method, scope in METHODS
            ),
            *({"name": name, "baseline": name, "steps": 1, "sets": [names]} for name in BASELINES),
            {"name": "real pictures", "pictures": "references"},
        ],
    }
    write_object(work / "plan.json", plan)
    return work / "plan.json"


class Commands:
    """Runs `cones` commands one after the other and notes the seconds and memory of each."""

    def __init__(self, work: Path) -> None:
        self.rows: list[dict[str, Any]] = []
        self._environment = {
            **os.environ,
            "CONES_REGISTRY": str(work / "concepts"),
            "CONES_CACHE": str(work / "cache"),
            "OMP_NUM_THREADS": "1",
        }

    def __call__(self, what: str, *arguments: object) -> str:
        """Standard output of a command that must succeed."""
        command = [str(Path(sys.executable).with_name("cones")), *map(str, arguments)]
        click.echo(f"{time.strftime('%H:%M:%S')} {what}", err=True)
        began = time.monotonic()
        with subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            answer = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        self.rows.append(
            {
                "what": what,
                "seconds": round(time.monotonic() - began, 1),
                "peak_gib": round(usage.ru_maxrss / 2**20, 1),
            }
        )
        return answer


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="6 GB of files.")
@click.option("--side", default=8, show_default=True, help="Of the latents; SD 1.x draws with 64.")
@click.option("--write", is_flag=True)
def main(work: Path, side: int, write: bool) -> None:
    """Run everything and print the table; what is there already is not made again."""
    torch.set_num_threads(1)
    work = work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    make_base(work / "sd1", side)
    make_clip(work / "clip")
    plan, run = write_plan(work), Commands(work)
    if not (work / "concepts" / "cones.json").exists():
        run("init", "init")
    base = ("--base", work / "sd1")
    for method, scope in METHODS:
        lines = work / f"{method}.jsonl"
        lines.write_text(
            "".join(
                json.dumps(
                    {
                        "name": f"{subject.name}-{method}",
                        "images": str(subject.folder),
                        "token": token,
                        "class_noun": NOUN,
                        "method": method,
                        "scope": scope,
                        "steps": STEPS,
                        "density": DENSITY,
                    }
                )
                + "\n"
                for subject, token in LEARNT
            )
        )
        out = work / f"learnt-{method}"
        run(f"extract --batch, {method}/{scope}", "extract", "--batch", lines, *base, "--out", out)
    run("evaluate plan", "evaluate", "plan", plan)
    rows = [row["name"] for row in json.loads(plan.read_text("utf-8"))["rows"]]
    folders = []
    for row in rows:
        made = run(
            f"evaluate generate, {row}",
            *("evaluate", "generate", plan, *base, "--out", work / "rows", "--row", row),
        )
        folders += made.split("\n")[:1]
    run(
        "evaluate score --preset paper",
        *("evaluate", "score", *folders, "--preset", "paper", "--clip", work / "clip"),
    )
    table = run("evaluate table", "evaluate", "table", *folders)
    click.echo(table)
    if write:
        record = {
            "machine": machine(),
            "torch": torch.__version__,
            "side": side,
            "density": DENSITY,
            "commands": run.rows,
        }
        # Of the table its first part, without this machine's folders.
        shown = table.split("\n## ")[0].replace(f"{work}/", "")
        keep("sd1", record, _page(record, shown))


def _page(record: dict[str, Any], table: str) -> str:
    lines = [
        "# The evaluation on Stable Diffusion 1.x shapes\n",
        "`python tools/measure_sd1.py --work FOLDER --write`: the commands of the evaluation on a "
        "pipeline of SD 1.x's shapes (19 million neurons) and a CLIP ViT-L/14, both with **random "
        f"weights**, latents {record['side']}×{record['side']}. Four subjects, learnt in {STEPS} "
        f"steps by each method at density {record['density']:.0%}; rivals trained for one step a "
        "subject. The pictures are noise and the scores say nothing: shown is that every command "
        "runs at this size, what it takes, and the bytes of a concept. Learning over the whole "
        "prompt draws 24 class pictures a subject, which is nearly all of its time; `quick-gates` "
        "takes 16 gradients before its steps. A rival trained on all four subjects jointly counts "
        "a quarter of its bytes for each.\n",
        f"{record['machine']}; torch {record['torch']}.\n",
        "| command | seconds | peak memory, GiB |",
        "|---|---:|---:|",
        *(f"| {r['what']} | {r['seconds']} | {r['peak_gib']} |" for r in record["commands"]),
        "",
        "What `cones evaluate table` says of it, its first part:\n",
        table.strip().replace("# ", "### ", 1),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
