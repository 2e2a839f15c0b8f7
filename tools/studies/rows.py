"""Which rows a mask acts on, and what happens at the rows after the prompt, as options of one run.

    python tools/studies/rows.py --base FOLDER --run "end=all | | share=mean" --seed 0

A run learns the demo's four subjects in the way said first (unless it finds their masks in
``--work``), then draws them in each of the ways said after it, alone, in pairs, in threes and all
four, and appends a line for each to ``--results``. Ways of drawing start from the way of learning.
What can be said is :class:`Way`. Lines that are there already are not measured again.

The study writes K and V of every row itself, with nothing but the denoiser's own weights, so that
rows may have other text, other weights and other shares of the attention than the package knows.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from cones_registry import BaseModel
from cones_registry.demo import world
from cones_registry.demo.judge import Judge
from cones_registry.demo.measure import Trial, group_trials, score, subject_trials
from cones_registry.demo.subjects import SUBJECTS, Subject
from cones_registry.extraction.gates import FLOOR, OPEN, Gates, _State
from cones_registry.extraction.noise import NoiseSchedule
from cones_registry.extraction.weights import FlatWeights

GUIDANCE = 2.0
RUNS = Path(__file__).parent.parent / "results" / "rows.jsonl"


@dataclass(frozen=True)
class Way:
    """How masks meet the rows of a prompt.

    own: rows of a concept's own words: "phrase" (placeholder and noun), "token", "all" (every row
        of the prompt, those after it too), "none".
    words: what the text encoder reads: the "prompt" as it is; "apart": it without placeholders, and
        for a concept's own rows it with that concept's alone; "none": no placeholder ever, the
        mask acts on the noun's row and on that of the article before it.
    end: which rows after the prompt a mask reaches: "none", "first" (the end-of-text row), "all".
    text: whose the rows after the prompt are: of the "prompt", of the prompt without placeholders
        ("bare"), of the "empty" prompt, of each thing's "own" phrase, or "hidden".
    share: how several concepts share the rows after the prompt: "product" of factors, "mean" of
        what each makes of the row, "split" (each concept its own of them), "copies" (each concept
        has them all, with an equal share of their weight), "gated" (so, but where the picture
        attends to a thing's words it attends to that thing's copy).
    kv, end_kv: "kv", "k", "v": which projections are masked at own rows and after the prompt.
    sharp: gated: how sharply a place decides for one thing.
    masks: 1: one mask for own rows and for those after the prompt; 2: one of each.
    company: things beside the subject where it is learnt: "pairs" or "many" (one to three).
    alone: share of a batch with the subject alone. density: of each mask. steps: of learning.
    """

    own: str = "phrase"
    words: str = "prompt"
    end: str = "none"
    text: str = "prompt"
    share: str = "product"
    kv: str = "kv"
    end_kv: str = "kv"
    sharp: float = 1.0
    masks: int = 1
    company: str = "pairs"
    alone: float = 0.15
    density: float = 0.1
    steps: int = 200

    @classmethod
    def parse(cls, text: str, start: Way) -> Way:
        """``"end=all,share=mean"``."""
        kinds = {each.name: type(getattr(start, each.name)) for each in fields(cls)}
        pairs = [part.split("=") for part in text.split(",") if part]
        return replace(start, **{name: kinds[name](value) for name, value in pairs})

    def said(self) -> str:
        """Only what differs from the default."""
        usual = asdict(Way())
        return ",".join(f"{n}={v}" for n, v in asdict(self).items() if v != usual[n]) or "default"


# ---------------------------------------------------------------- rows of a prompt

Kind = tuple[Any, ...]
"""Which weights a row sees: ("p",) plain; ("x", masks…) their product; ("m", masks…) the mean, with
None for a thing that has no mask."""
PLAIN: Kind = ("p",)


@dataclass(frozen=True)
class Row:
    """One row of the text as the picture attends to it."""

    text: str
    position: int
    key: Kind = PLAIN
    value: Kind = PLAIN
    weight: float = 1.0
    thing: int = -1  # gated: whose copy this is
    owner: int = -1  # whose words these are


def rows_of(prompt: str, tokens: Mapping[str, int], way: Way, length: int) -> list[Row]:
    """All rows of ``prompt``; ``tokens``: placeholder -> number of its mask."""
    words = prompt.split()
    count = len(words) + 1  # with the start row
    # A thing begins at "at"; without places, the whole prompt is one.
    starts = [at for at, word in enumerate(words) if word == "at"] or [0]
    owner = [-1] * len(words)
    for number, start in enumerate(starts):
        stop = starts[number + 1] if number + 1 < len(starts) else len(words)
        for at in range(start, stop):
            if words[at] in ("and", "on"):
                break
            owner[at] = number
    masked: dict[int, int] = {}  # thing -> mask
    own = [PLAIN] * len(words)
    for at, word in enumerate(words):
        if word not in tokens:
            continue
        kind: Kind = ("x", (tokens[word], 0))
        masked[owner[at]] = tokens[word]
        if way.own in ("phrase", "token"):
            own[at] = kind
        if way.own == "phrase" and at + 1 < len(words) and words[at + 1] in world.SHAPES:
            own[at + 1] = kind
    every: Kind = ("x", *sorted((mask, 0) for mask in masked.values())) if masked else PLAIN
    if way.own == "all":
        return [Row(prompt, at, every, every) for at in range(length)]
    if way.words == "prompt":
        found = [Row(prompt, 0)]
        for at in range(len(words)):
            found.append(_row(prompt, at + 1, own[at], way.kv, owner=owner[at]))
        return found + _end_rows(prompt, words, starts, masked, way, count, length)
    bare = _without_placeholders(words, None, owner)
    found = [Row(" ".join(bare), 0)]
    for at, word in enumerate(words):
        kind, keep = own[at], owner[at] if own[at] != PLAIN else None
        if way.words == "none":
            follows = at + 1 < len(words) and words[at + 1] in tokens
            kind = ("x", (tokens[words[at + 1]], 0)) if follows else own[at]
            keep = None
        if word in world.PLACEHOLDERS and keep is None:
            continue
        text = _without_placeholders(words, keep, owner)
        position = 1 + len(_without_placeholders(words[:at], keep, owner))
        found.append(_row(" ".join(text), position, kind, way.kv, owner=owner[at]))
    starts = [at for at, word in enumerate(bare) if word == "at"] or [0]
    return found + _end_rows(" ".join(bare), bare, starts, masked, way, len(bare) + 1, length)


def _without_placeholders(
    words: Sequence[str], keep: int | None, owner: Sequence[int]
) -> list[str]:
    """The words without the placeholders of all things but ``keep``."""
    return [
        word for at, word in enumerate(words) if word not in world.PLACEHOLDERS or owner[at] == keep
    ]


def _row(text: str, position: int, kind: Kind, which: str, **named: Any) -> Row:
    key, value = (kind if "k" in which else PLAIN), (kind if "v" in which else PLAIN)
    return Row(text, position, key, value, **named)


def _end_rows(
    prompt: str,
    words: list[str],
    starts: list[int],
    masked: dict[int, int],
    way: Way,
    count: int,
    length: int,
) -> list[Row]:
    """The rows after the prompt."""
    if way.text == "hidden":
        return []
    things = range(len(starts))
    end = 1 if way.masks == 2 else 0

    def kind_of(number: int) -> Kind:
        return ("x", (masked[number], end)) if number in masked else PLAIN

    texts = dict.fromkeys(things, prompt)
    if way.text == "bare":
        texts = dict.fromkeys(things, " ".join(w for w in words if w not in world.PLACEHOLDERS))
    elif way.text == "empty":
        texts = dict.fromkeys(things, "")
    elif way.text == "own":
        parts = re.split(r" and (?=at )", re.sub(r" on \w+$", "", prompt))
        ground = prompt.removeprefix(" and ".join(parts))
        texts = {number: part + ground for number, part in enumerate(parts)}
    rows: list[Row] = []
    apart = way.share in ("copies", "gated")
    total = length - count
    for number in things if apart or way.text == "own" else [0]:
        text = texts[number]
        first = len(text.split()) + 1
        for at in range(first, length):
            reached = way.end == "all" or (way.end == "first" and at == first)
            weight = total / (length - first)
            kind, thing = PLAIN, -1
            if apart:
                kind = kind_of(number) if reached else PLAIN
                thing = number if way.share == "gated" else -1
                weight /= 1 if way.share == "gated" else len(things)
            elif reached and masked:
                if way.share == "split":
                    kind = kind_of((at - first) % len(things))
                elif way.share == "mean":
                    masks = [(masked[n], end) if n in masked else None for n in things]
                    kind = ("m", *masks)
                else:
                    kind = ("x", *sorted((mask, end) for mask in masked.values()))
            rows.append(_row(text, at, kind, way.end_kv, weight=weight, thing=thing))
    return rows


# ---------------------------------------------------------------- K, V and the attention

Weights = Callable[[int, int, str], torch.Tensor]
"""(mask, 0 for own rows or 1 for those after the prompt, layer) -> what W is multiplied by, or W'
itself in learning: see ``Model.project``."""


@dataclass(frozen=True)
class Context:
    """What a batch attends to: K and V by block, [B, T, out]; log weights [B, T]; gates."""

    tensors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    bias: torch.Tensor
    owners: torch.Tensor  # int64 [B, T]
    things: torch.Tensor  # int64 [B, T]
    sharp: float


class Attention:
    """The arithmetic of diffusers' plain processor on the rows of the study."""

    def __init__(self, model: Model, path: str) -> None:
        self.model, self.path = model, path

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, **_: Any
    ) -> torch.Tensor:
        context = self.model.context
        assert context is not None
        query = _heads(attn.to_q(hidden_states), attn.heads)
        key, value = (_heads(each, attn.heads) for each in context.tensors[self.path])
        bias = context.bias[:, None, None]
        if bool((context.things >= 0).any()):
            bias = bias + _gates(query @ key.transpose(-1, -2) * attn.scale + bias, context)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        out = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out / attn.rescale_output_factor


def _heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def _gates(logits: torch.Tensor, context: Context) -> torch.Tensor:
    """Log share [B, heads, pixels, T] of each thing's copy: that of its words' attention."""
    count = int(context.things.max()) + 1
    heard = []
    for number in range(count):
        own = (context.owners == number)[:, None, None]
        heard.append(logits.masked_fill(~own, -1e4).logsumexp(-1))
    present = torch.stack([(context.things == n).any(1) for n in range(count)], 1)  # [B, count]
    scores = context.sharp * torch.stack(heard, -1)  # [B, heads, pixels, count]
    scores = scores.mean(1, keepdim=True)  # one decision for all heads
    shares = scores.masked_fill(~present[:, None, None], -1e4).log_softmax(-1)
    index = context.things.clamp(min=0)[:, None, None].expand(*shares.shape[:3], -1)
    gate = shares.gather(-1, index)
    return gate.masked_fill((context.things < 0)[:, None, None], 0.0)


class Model:
    """The base model with its text kept by prompt."""

    def __init__(self, base: BaseModel) -> None:
        self.base, self.unet = base, base.denoiser
        self.tokenizer, self.encoder = base.tokenizers[0], base.pipeline.text_encoder
        self.length = int(self.tokenizer.model_max_length)
        self.layers = {
            name: self.unet.get_parameter(name).detach().float() for name in base.layer_table.names
        }
        self.context: Context | None = None
        self._texts: dict[str, torch.Tensor] = {}
        for name in base.layer_table.names:
            if name.endswith(".to_k.weight"):
                path = name.removesuffix(".to_k.weight")
                self.unet.get_submodule(path).processor = Attention(self, path)

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> None:
        """Encode what has not been read yet."""
        new = sorted({text for text in texts if text not in self._texts})
        for start in range(0, len(new), 64):
            chunk = new[start : start + 64]
            ids = self.tokenizer(
                chunk, padding="max_length", max_length=self.length, return_tensors="pt"
            ).input_ids
            states = self.encoder(ids).last_hidden_state.float()
            self._texts.update(zip(chunk, states, strict=True))

    def project(self, batch: Sequence[Sequence[Row]], weights: Weights, sharp: float) -> Context:
        """K and V of every block for rows of a batch; ``weights`` gives W' of one mask."""
        self.read([row.text for rows in batch for row in rows])
        width = max(map(len, batch))
        nothing = Row("", 0, weight=0.0)
        flat = [row for rows in batch for row in [*rows, *[nothing] * (width - len(rows))]]
        states = torch.stack([self._texts[row.text][row.position] for row in flat])
        shape = len(batch), width
        tensors = {}
        for name, plain in self.layers.items():
            kind = name.rsplit(".", 2)[1]
            kinds = [row.key if kind == "to_k" else row.value for row in flat]
            found = _project(states, kinds, plain, lambda m, e, n=name: weights(m, e, n))
            tensors[name] = found.view(*shape, -1)
        paths = {name.rsplit(".", 2)[0] for name in self.layers}
        log_weights = [math.log(row.weight) if row.weight else -1e4 for row in flat]
        return Context(
            {p: (tensors[p + ".to_k.weight"], tensors[p + ".to_v.weight"]) for p in paths},
            torch.tensor(log_weights).view(shape),
            torch.tensor([row.owner for row in flat]).view(shape),
            torch.tensor([row.thing for row in flat]).view(shape),
            sharp,
        )

    def __call__(self, latents: torch.Tensor, timesteps: Any, context: Context) -> torch.Tensor:
        """What the denoiser answers."""
        self.context = context
        blank = torch.zeros(len(latents), 1, self.unet.config.cross_attention_dim)
        return self.unet(latents, timesteps, encoder_hidden_states=blank).sample

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[list[Row]],
        seeds: Sequence[int],
        weights: Weights,
        *,
        steps: int,
        sharp: float = 1.0,
    ) -> list[Image.Image]:
        """DDIM with guidance, in batches."""
        scheduler = self.base.pipeline.scheduler
        pictures: list[Image.Image] = []
        size = self.unet.config.sample_size
        for start in range(0, len(prompts), 32):
            chunk = list(prompts[start : start + 32])
            # Where a mask acts on every row it acts on the branch without text too, as the paper's.
            empty = [
                [Row("", at, rows[0].key, rows[0].value) for at in range(self.length)]
                for rows in chunk
            ]
            context = self.project(empty + chunk, weights, sharp)
            noise = [
                torch.randn(
                    1,
                    self.unet.config.in_channels,
                    size,
                    size,
                    generator=torch.Generator("cpu").manual_seed(seed),
                )
                for seed in seeds[start : start + 32]
            ]
            latents = torch.cat(noise)
            scheduler.set_timesteps(steps)
            for timestep in scheduler.timesteps:
                answer = self(torch.cat([latents] * 2), timestep, context)
                without, told = answer.chunk(2)
                guided = without + GUIDANCE * (told - without)
                latents = scheduler.step(guided, timestep, latents).prev_sample
            decoded = self.base.pipeline.vae.decode(latents).sample
            array = decoded.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
            pictures += [Image.fromarray(each) for each in array.numpy()]
        return pictures


def _project(
    states: torch.Tensor,
    kinds: Sequence[Kind],
    plain: torch.Tensor,
    weight: Callable[[int, int], torch.Tensor],
) -> torch.Tensor:
    """[R, out]: each row by the weights of its kind."""
    order: dict[Kind, list[int]] = {}
    for at, kind in enumerate(kinds):
        order.setdefault(kind, []).append(at)
    parts = []
    for kind, members in order.items():
        used = plain
        if kind[0] == "x":
            used = weight(*kind[1])
            for other in kind[2:]:
                used = used * torch.where(plain == 0, 1.0, weight(*other) / plain)
        elif kind[0] == "m":
            used = sum(plain if m is None else weight(*m) for m in kind[1:]) / (len(kind) - 1)
        parts.append(functional.linear(states[members], used))
    where = torch.tensor([at for members in order.values() for at in members])
    return torch.cat(parts)[where.argsort()]


# ---------------------------------------------------------------- pictures to learn from


@dataclass(frozen=True)
class Lesson:
    """Latents [E, C, h, w] and the prompts of each; the first ``alone`` show the subject alone."""

    latents: torch.Tensor
    prompts: tuple[tuple[str, ...], ...]
    alone: int


def lessons(model: Model, subject: Subject, company: str, folder: Path, steps: int) -> Lesson:
    """The subject's five pictures, and it pasted beside one to three things the base draws."""
    generator = np.random.default_rng([7, len(subject.name)])
    pool, names = world.things(), [n for n in world.PLACEHOLDERS if n != subject.token]
    images, prompts, cut = [], [], []
    for file in sorted(subject.folder.glob("*.txt")):
        place, ground = file.stem, file.read_text(encoding="utf-8").split("|")[1].strip()
        picture = np.asarray(Image.open(file.with_suffix(".png")).convert("RGB"))
        images.append(picture)
        prompts.append((f"at {place} a {subject.phrase} {ground}",))
        colour = np.array(world.BACKGROUNDS[ground.removeprefix("on ")])
        inside = (np.abs(picture.astype(int) - colour).max(-1) > 16)[..., None]
        if place != "middle":
            cut.append((place, ground, picture, inside))
    asked = []
    for number in range(64):
        place, ground, picture, inside = cut[number % len(cut)]
        others = 1 if company == "pairs" else 1 + (number // len(cut)) % 3
        free = [p for p in world.OUTER_PLACES if p != place]
        where = (
            [world.OPPOSITE[place]] if others == 1 else list(generator.permutation(free)[:others])
        )
        said = []
        for each in where:
            thing = world._balanced(generator, pool)
            vague = generator.random() < 0.5
            words = f"{generator.choice(names)} {thing.shape}" if vague else thing.words()
            said.append(f"at {each} a {words}")
        asked.append((place, ground, picture, inside, said))
    kept = folder / f"company-{subject.name}-{company}.npy"
    if kept.exists():
        drawn = np.load(kept)
    else:
        rows = [
            rows_of(" and ".join(said) + f" {ground}", {}, Way(), model.length)
            for _, ground, _, _, said in asked
        ]
        made = model.draw(rows, range(len(rows)), _no_masks, steps=steps)
        drawn = np.stack([np.asarray(each) for each in made])
        np.save(kept, drawn)
    for (place, ground, picture, inside, said), other in zip(asked, drawn, strict=True):
        images.append(np.where(inside, picture, other))
        own = f"at {place} a {subject.phrase}"
        texts = []
        for _ in range(3):
            parts = list(generator.permutation([own, *said]))
            texts.append(" and ".join(parts) + f" {ground}")
        prompts.append(tuple(texts))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = model.base.pipeline.vae.encode(pixels).latents
    return Lesson(latents, tuple(prompts), 5)


def _no_masks(mask: int, end: int, name: str) -> torch.Tensor:
    raise AssertionError("no row here has a mask")


# ---------------------------------------------------------------- learning and measuring


def learn(model: Model, subject: Subject, lesson: Lesson, way: Way, seed: int) -> torch.Tensor:
    """Gates by the package's rule: bool [masks, N], True where a weight is shut."""
    flat = FlatWeights(model.base)
    schedule = NoiseSchedule.of(model.base.pipeline.scheduler)
    theta = torch.stack([flat.values] * way.masks)
    method = Gates(steps=way.steps)
    state = _State(torch.ones_like(theta))
    generator = torch.Generator("cpu").manual_seed(seed)
    torch.manual_seed(seed)
    allowed = max(1, round(way.density * theta.numel()))
    late, late_steps, threshold = torch.zeros_like(theta), 0, OPEN
    tokens = {subject.token: 0}
    for number in range(1, way.steps + 1):
        alone = max(1, round(way.alone * method.batch_size))
        company = method.batch_size - alone
        chosen = torch.cat(
            [
                torch.randint(lesson.alone, (alone,), generator=generator),
                torch.randint(lesson.alone, len(lesson.latents), (company,), generator=generator),
            ]
        )
        clean = lesson.latents[chosen]
        prompts = []
        for each in chosen.tolist():
            told = lesson.prompts[each]
            prompts.append(told[int(torch.randint(len(told), (1,), generator=generator))])
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = schedule.stratified(len(clean), generator, towards_noise=1.0)
        leaf = (theta * (state.latent > threshold)).requires_grad_()
        parts = [flat.split(each) for each in leaf]
        context = model.project(
            [rows_of(prompt, tokens, way, model.length) for prompt in prompts],
            lambda mask, end, name, parts=parts: parts[end][name],
            way.sharp,
        )
        answer = model(schedule.noisy(clean, noise, timesteps), timesteps, context)
        errors = (answer - schedule.target(clean, noise, timesteps)).square().mean((1, 2, 3))
        loss = (errors * schedule.weights(timesteps)).mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        rate = method.rate(number)
        state.step(theta * gradient, number, rate, (method.first_beta, method.second_beta))
        state.latent.add_(method.pull * rate).clamp_(-FLOOR, 1)
        threshold = min(OPEN, float(state.latent.flatten().kthvalue(allowed).values))
        if number > 0.8 * way.steps:
            late += OPEN - state.latent
            late_steps += 1
    scores = late.flatten()
    edge = float(scores.kthvalue(scores.numel() - allowed + 1).values)
    return (scores >= max(edge, 1e-12)).view(way.masks, -1)


def masked_weights(model: Model, masks: Sequence[torch.Tensor]) -> Weights:
    """W ∘ M of each subject, made once."""
    flat = FlatWeights(model.base)
    made = [[flat.split(flat.values * ~part) for part in mask] for mask in masks]
    return lambda mask, end, name: made[mask][end][name]


def measure(
    model: Model, judge: Judge, masks: Sequence[torch.Tensor], way: Way, steps: int, scale: float
) -> dict[str, Any]:
    """Shares of right pictures for one to four subjects."""
    weights = masked_weights(model, masks)
    tokens = {subject.token: number for number, subject in enumerate(SUBJECTS)}
    found: dict[str, Any] = {}
    counts = {1: round(16 * scale), 2: round(8 * scale), 3: round(12 * scale), 4: round(48 * scale)}
    for size, count in counts.items():
        trials: list[Trial] = []
        for group in combinations(SUBJECTS, size):
            if size == 1:
                trials += subject_trials(group[0], count)
            else:
                trials += group_trials(group, count)
        rows = [rows_of(trial.prompt, tokens, way, model.length) for trial in trials]
        seeds = [trial.seed for trial in trials]
        pictures = model.draw(rows, seeds, weights, steps=steps, sharp=way.sharp)
        found[str(size)] = {
            "pictures": len(trials),
            **{name: round(share, 4) for name, share in score(judge, trials, pictures).items()},
        }
    return found


def described(model: Model, judge: Judge, way: Way, count: int, steps: int) -> dict[str, Any]:
    """The same of prompts that say everything, and of bare nouns: what the base itself can."""
    from cones_registry.demo.measure import described_trials

    found = {}
    for things in (1, 2, 3, 4):
        trials = described_trials(count, things)
        bare = [
            t.scene.caption(names={n: th.shape for n, (_, th) in enumerate(t.scene.things)})
            for t in trials
        ]
        for kind, prompts in (("full", [t.prompt for t in trials]), ("bare", bare)):
            rows = [rows_of(prompt, {}, way, model.length) for prompt in prompts]
            drawn = model.draw(rows, [t.seed for t in trials], _no_masks, steps=steps)
            shares = score(judge, trials, drawn)
            found[f"{things} {kind}"] = {n: round(s, 4) for n, s in shares.items()}
    return found


HEAD = """# What a mask acts on, and what is shared

`python tools/studies/rows.py --table`, of the runs in rows.jsonl. Bases: `demo` is the shipped one,
trained with swapped rows; `plain` is the same world's, trained plainly for 3,000 steps from there
(tools/assets/plain-shapes; `plain, 1,125 steps` on its way). The demo's four subjects, gates at
10 %, 150 steps, 5 drawing steps, alone, in every pair and three, and all four. `each`: subjects
right in shape, both colours and texture at their place; `all`: pictures with every subject right.
Wilson's 95 % intervals count pictures, not seeds or subjects: two seeds of one way differ by more
than they say, and the best of so many ways is partly luck. Ways with one seed are hints.
What the words mean stands in the tool (`Way`); they say what differs from the default, which masks
the rows of placeholder and noun and learns beside one other thing.

"""


def interval(share: float, count: int) -> str:
    """A share of ``count`` with Wilson's 95 % interval."""
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return f"{share:.2f} [{low:.2f}, {high:.2f}]"


def told_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """What each base draws from words alone."""
    rows = [
        "| base | drawing steps | things | pictures | told in full: each right | all | bare nouns: "
        "shape | place |",
        "|---" * 8 + "|",
    ]
    for line in lines:
        if "told" not in line:
            continue
        for things in ("1", "2", "3", "4"):
            full, bare = line["told"][f"{things} full"], line["told"][f"{things} bare"]
            shares = (full["thing"], full["all"], bare["shape"], bare["place"])
            rows.append(
                f"| {Path(line['base']).name} | {line['drawing_steps']} | {things} "
                f"| {line['pictures']} | " + " | ".join(f"{s:.2f}" for s in shares) + " |"
            )
    return "\n".join(rows)


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """One row for each base, way of learning and way of drawing; seeds are put together."""
    # The pictures of a short run are among those of a long one with the same masks.
    longest: dict[tuple[str, str, str, int], Mapping[str, Any]] = {}
    for line in lines:
        if "found" in line:
            one = Path(line["base"]).name, line["learn"], line["draw"], line["seed"]
            before = longest.setdefault(one, line)
            if line["found"]["1"]["pictures"] > before["found"]["1"]["pictures"]:
                longest[one] = line
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for (base, learnt, drawn, _), line in longest.items():
        groups.setdefault((base, learnt, drawn), []).append(line)
    rows = [
        "| base | learnt | drawn | seeds | alone | pairs: each | pairs: both | threes: each "
        "| threes: all | fours: each | fours: all |",
        "|---" * 11 + "|",
    ]
    for (base, learnt, drawn), found in sorted(groups.items()):
        cells = []
        for size in ("1", "2", "3", "4"):
            pictures = sum(line["found"][size]["pictures"] for line in found)
            for name in ("thing", "all") if size != "1" else ("thing",):
                parts = [
                    line["found"][size][name] * line["found"][size]["pictures"] for line in found
                ]
                # Of subjects in one picture some depend on each other: pictures are counted.
                cells.append(interval(sum(parts) / pictures, pictures))
        seeds = len({line["seed"] for line in found})
        rows.append(f"| {base} | {learnt} | {drawn} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


@click.command()
@click.option("--base", "source", default="demo", show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/rows"))
@click.option("--results", type=click.Path(path_type=Path), default=RUNS, help="Its lines.")
@click.option("--label", default="", help="What the table calls the base.")
@click.option("--run", "runs", multiple=True, help="'LEARNT | DRAWN | DRAWN', each a Way; several.")
@click.option("--seed", default=0, show_default=True)
@click.option("--scale", default=1.0, show_default=True, help="Times 208 pictures.")
@click.option("--drawing-steps", default=20, show_default=True)
@click.option("--base-only", is_flag=True, help="Only what the base draws from words.")
@click.option("--table", "only_table", is_flag=True, help="Write tools/results/rows.md.")
def main(
    source: str,
    work: Path,
    results: Path,
    label: str,
    runs: tuple[str, ...],
    seed: int,
    scale: float,
    drawing_steps: int,
    base_only: bool,
    only_table: bool,
) -> None:
    """Learn, draw, append a line for every way of drawing."""
    if only_table:
        lines = _lines(results)
        page = f"{HEAD}{told_table(lines)}\n\n{table(lines)}\n"
        (Path(__file__).parent.parent / "results" / "rows.md").write_text(page, encoding="utf-8")
        click.echo(page)
        return
    torch.set_num_threads(1)
    base = BaseModel.load(source)
    base.denoiser.requires_grad_(False)
    model, judge = Model(base), Judge.load()
    mark = base.fingerprint.removeprefix("sha256:")[:12]
    folder = work / mark
    folder.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "base": source,
        "mark": mark,
        "seed": seed,
        "drawing_steps": drawing_steps,
    }
    about["scale"] = scale

    def note(line: dict[str, Any]) -> None:
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**about, **line}) + "\n")
        click.echo(json.dumps(line))

    for run in runs:
        learnt, *drawn = (part.strip() for part in run.split("|"))
        way = Way.parse(learnt, Way())
        if base_only:
            told = described(model, judge, way, round(32 * scale), drawing_steps)
            note({"draw": way.said(), "pictures": round(32 * scale), "told": told})
            continue
        begun = time.monotonic()
        masks = [
            kept_mask(model, subject, way, seed, folder, drawing_steps) for subject in SUBJECTS
        ]
        learning = round(time.monotonic() - begun)
        density = [round(float(mask.float().mean()), 4) for mask in masks]
        for each in drawn or [""]:
            chosen, begun = Way.parse(each, way), time.monotonic()
            key = {**about, "learn": way.said(), "draw": chosen.said()}
            if any(key.items() <= line.items() for line in _lines(results)):
                continue
            found = measure(model, judge, masks, chosen, drawing_steps, scale)
            took = {"learning_s": learning, "drawing_s": round(time.monotonic() - begun)}
            note({**key, "density": density, **took, "found": found})


def kept_mask(
    model: Model, subject: Subject, way: Way, seed: int, folder: Path, steps: int
) -> torch.Tensor:
    """The subject's mask, learnt unless it is there: bool [masks, N]."""
    kept = folder / f"{subject.name}-{way.said()}-{seed}.npy"
    if not kept.exists():
        begun = time.monotonic()
        lesson = lessons(model, subject, way.company, folder, steps)
        np.save(kept, np.packbits(learn(model, subject, lesson, way, seed).numpy(), axis=1))
        click.echo(f"{kept.name} {time.monotonic() - begun:.0f} s", err=True)
    bits = np.unpackbits(np.load(kept), axis=1, count=model.base.layer_table.neuron_count)
    return torch.from_numpy(bits.astype(bool))


def _lines(results: Path) -> list[dict[str, Any]]:
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
