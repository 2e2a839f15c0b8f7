"""tools/results/README.md: each claim, what was measured, the verdict, the command.

Written from the JSON files beside it, so that the page never says anything else than they do:
`python tools/reproduction_claims.py`. A claim whose file is missing, or was made with another base
model than the table, says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
from measured import RESULTS
from reproduction_results import Found, MissingError, Table, listed, read, said_of

PAPER_ROW, OWN_ROW, BOUND_ROW, BASE_ROW = (
    "cones/prompt",
    "gates/subject",
    "base, described in full",
    "base, class noun",
)
RIVAL_ROWS = (
    *("textual-inversion", "textual-inversion, rate 0.03", "dreambooth"),
    *("custom-diffusion", "custom-diffusion, rate 0.003"),
)
MISSING = "not measured yet"
HOW_TO_READ = """\
Cones, arXiv 2303.05125. The demo base is a small model of a rendered world: what holds here holds
here, and what does not is not refuted for Stable Diffusion. An owner of those weights measures the
same with `cones evaluate` ([evaluation.md](../../schema/evaluation.md)). `cones/prompt` is the
paper's own setting, `gates/subject` this package's default. Presence is the share of subjects that
a classifier of the world sees right in shape, both colours and texture. Against the base model a
claim holds where the 95 % interval lies above the other's; against rivals, where the mean is at
least the best rival's for each number of subjects."""


def shutting_draws(results: Path) -> Found:
    """One subject: the paper's setting and ours against the base model without a mask."""
    table = Table(results)
    base = table.cell(BASE_ROW, "presence", 1)
    parts, verdicts = [f"base without a mask {base['mean']:.2f}"], []
    for row in (PAPER_ROW, "first-order/prompt", "gates/prompt", OWN_ROW):
        cell = table.cell(row, "presence", 1)
        density = table.rows[row]["settings"].get("density")
        parts.append(
            f"`{row}` {cell['mean']:.2f} [{cell['low']:.2f}, {cell['high']:.2f}]"
            + (f" with {density:.1%} shut" if density is not None else "")
        )
        verdicts.append((row, cell["low"] > base["high"]))
    bound = table.cell(BOUND_ROW, "presence", 1)["mean"]
    parts.append(f"the same model told everything in words {bound:.2f}")
    return "; ".join(parts), said_of(verdicts)


def sets_add_up(results: Path) -> Found:
    """Two to four subjects by putting masks together."""
    table = Table(results)
    parts, verdicts = [], []
    for row in (BASE_ROW, PAPER_ROW, "gates/prompt", OWN_ROW, BOUND_ROW):
        parts.append(f"`{row}` {listed(table.means(row, 'presence', (2, 3, 4)))}")
    for row in (PAPER_ROW, "gates/prompt", OWN_ROW):
        holds = all(
            table.cell(row, "presence", count)["low"]
            > table.cell(BASE_ROW, "presence", count)["high"]
            for count in (2, 3, 4)
        )
        verdicts.append((row, holds))
    return "presence at 2 / 3 / 4 subjects: " + "; ".join(parts), said_of(verdicts)


def follows_text(results: Path) -> Found:
    """Text alignment against the rivals."""
    return against_rivals(results, "text", "text alignment", (2, 3, 4))


def shows_subjects(results: Path) -> Found:
    """Image alignment against the rivals where there are many subjects."""
    return against_rivals(results, "image", "image alignment", (3, 4))


def against_rivals(results: Path, measure: str, name: str, counts: tuple[int, ...]) -> Found:
    """Whether each of our two rows is at least the best of the paper's three rivals."""
    table = Table(results)
    rows = (PAPER_ROW, OWN_ROW, *RIVAL_ROWS)
    means = {row: table.means(row, measure, counts) for row in rows}
    best = [max(means[row][at] for row in RIVAL_ROWS) for at in range(len(counts))]
    verdicts = [
        (row, all(own >= other for own, other in zip(means[row], best, strict=True)))
        for row in (PAPER_ROW, OWN_ROW)
    ]
    numbers = " / ".join(map(str, counts))
    listing = "; ".join(f"`{row}` {listed(means[row])}" for row in rows)
    return f"{name} at {numbers} subjects: {listing}", said_of(verdicts)


def saves_storage(results: Path) -> Found:
    """Bytes against dense K and V."""
    table = Table(results)
    dense = table.size("custom-diffusion")
    sizes = {row: table.size(row) for row in (PAPER_ROW, OWN_ROW)}
    parts = [f"`{row}` {size:,.0f} bytes" for row, size in sizes.items()]
    parts.append(f"Custom Diffusion's float32 K and V {dense:,.0f}")
    verdicts = [(row, size <= 0.1 * dense) for row, size in sizes.items()]
    saved = ", ".join(f"{1 - size / dense:.1%}" for size in sizes.values())
    return "; ".join(parts) + f": {saved} less", said_of(verdicts)


def tuning_helps(results: Path) -> Found:
    """What joint tuning adds."""
    rows = read(results, "tuning")["rows"]
    parts, verdicts = [], []
    for scope in dict.fromkeys(row["scope"] for row in rows):
        gains = []
        for size in (2, 3, 4):
            means = [
                [
                    row["thing"]
                    for row in rows
                    if (row["scope"], row["masks"], len(row["subjects"])) == (scope, kind, size)
                ]
                for kind in ("as learnt", "tuned")
            ]
            if all(means):
                before, after = map(statistics.fmean, means)
                gains.append(after - before)
                parts.append(f"`{scope}`, {size} subjects: {before:.2f} → {after:.2f}")
        if gains:
            verdicts.append((f"scope {scope}", min(gains) > 0))
    return "subjects right: " + "; ".join(parts), said_of(verdicts)


def precision_matters_little(results: Path) -> Found:
    """The same masks with factors of four precisions."""
    rows = read(results, "precision")["precision"]
    alone = {row["precision"]: float(row["alone"]) for row in rows}
    measured = "subject right: " + "; ".join(
        f"{row['precision']} {row['alone']:.3f} in {row['bytes']:,.0f} bytes" for row in rows
    )
    holds = max(alone.values()) - alone["binary"] <= 0.03
    return measured, "holds" if holds else "**does not hold**"


def attention_moves(results: Path) -> Found:
    """Where the subject's words are heard."""
    found = read(results, "attention")["attention"]
    pairs = [pair for each in found.values() for pair in each]
    without, with_mask = (statistics.fmean(pair[at] for pair in pairs) for at in (0, 1))
    higher = sum(after > before for before, after in pairs)
    measured = (
        f"share of the words' attention on the subject {without:.3f} without the mask, "
        f"{with_mask:.3f} with it; higher in {higher} of {len(pairs)} pictures"
    )
    clear = with_mask - without > 0.05 and higher > 0.75 * len(pairs)
    return measured, "holds" if clear else "**not seen clearly here**"


def own_words_are_enough(results: Path) -> Found:
    """Subject's rows against every row."""
    rows = read(results, "scope")["rows"]
    shares = {}
    for name in ("phrase", "prompt"):
        alone = statistics.fmean(each for seed in rows[name]["alone"] for each in seed)
        pairs = statistics.fmean(
            each["all"] for seed in rows[name]["pairs"] for each in seed.values()
        )
        shares[name] = (alone, pairs)
    own, whole = shares["phrase"], shares["prompt"]
    measured = (
        f"subject right alone {own[0]:.2f}, both of a pair {own[1]:.2f}; with every row masked "
        f"{whole[0]:.2f} and {whole[1]:.2f}"
    )
    return measured, said_of([("own words", own[0] >= whole[0] and own[1] >= whole[1])])


def collateral_lessens(results: Path) -> Found:
    """Remedies against what masks on every row do to ordinary prompts."""
    rows = {row["remedy"]: row for row in read(results, "collateral")["rows"]}
    plain = rows["none"]
    helps = [
        name
        for name, row in rows.items()
        if name not in ("no mask", "none")
        and row["alone"] >= plain["alone"] - 0.02
        and row["ordinary"] > plain["ordinary"] + 0.02
    ]
    shown = [
        f"{name} {row['alone']:.2f} / {row['ordinary']:.2f}"
        for name, row in rows.items()
        if name != "no mask"
    ]
    measured = "subject alone / ordinary prompts, whole-prompt masks: " + "; ".join(shown)
    if not helps:
        return measured, "**does not hold**: what spares other prompts loses the subject"
    return measured, "holds: " + ", ".join(helps)


def fewer_steps_are_enough(results: Path) -> Found:
    """The default's gradients against those of a warm start."""
    rows = read(results, "steps")["rows"]
    whole = max((row for row in rows if not row["first_pass"]), key=lambda row: row["steps"])
    quick = next(row for row in rows if row["first_pass"] and row["steps"] == 100)
    (slow, slow_pair), (fast, fast_pair) = (
        (statistics.fmean(row["alone"]), statistics.fmean(row["pairs"])) for row in (whole, quick)
    )
    gradients = quick["steps"] + quick["first_pass"]
    measured = (
        f"`gates`, {whole['steps']} gradients: subject right {slow:.2f}, each of a pair "
        f"{slow_pair:.2f}; `quick-gates`, {gradients}: {fast:.2f} and {fast_pair:.2f}"
    )
    near = fast >= slow - 0.05 and fast_pair >= slow_pair - 0.05
    return measured, "holds within 5 points" if near else "**does not hold**"


def page(name: str) -> Callable[[Path], Found]:
    """A claim whose page says it in tables."""

    def look(results: Path) -> Found:
        if not (results / f"{name}.md").exists():
            raise MissingError(f"{name}.md")
        return f"see [{name}.md]({name}.md)", "as the page says"

    return look


@dataclass(frozen=True)
class Claim:
    """A sentence, what decides it, and the part of `tools/reproduce` that measures it."""

    text: str
    part: str
    look: Callable[[Path], Found]


PAPER: Final = (
    Claim("Shutting a small set of K/V weights draws the subject", "table", shutting_draws),
    Claim("Sets add up: their union draws up to four subjects", "table", sets_add_up),
    Claim(
        "Text alignment stays above Textual Inversion, DreamBooth and Custom Diffusion",
        "table",
        follows_text,
    ),
    Claim("Image alignment is the best with three and four subjects", "table", shows_subjects),
    Claim("Storage is 90 % below earlier methods'", "table", saves_storage),
    Claim("A few steps of joint tuning help, most with four subjects", "tuning", tuning_helps),
    Claim(
        "Binary, 2-bit, float16 and float32 factors do about equally well",
        "precision",
        precision_matters_little,
    ),
    Claim("The subject's words are heard where the subject is", "attention", attention_moves),
)
OWN: Final = (
    Claim("A mask need act at the subject's own words alone", "scope", own_words_are_enough),
    Claim(
        "Leaving out general or harmful neurons lessens collateral (CNS, arXiv 2510.02296)",
        "collateral",
        collateral_lessens,
    ),
    Claim("Methods, scopes and densities", "extraction", page("extraction")),
    Claim("Fewer steps give the same masks", "steps", fewer_steps_are_enough),
    Claim("Nothing depends on the demo base's size", "sd1", page("sd1")),
    Claim("How the rivals were tuned", "baselines", page("baselines")),
)


def write_claims(results: Path = RESULTS) -> None:
    """Write README.md into ``results``."""
    base = _fingerprint(results, "table")
    lines = [
        "# Results",
        "",
        "Each page here was written by the command it names, on the machine it names. This one is",
        "written from them by `python tools/reproduction_claims.py`, which `tools/reproduce` runs.",
        "",
        "## The claims of the paper, on the demo base",
        "",
        HOW_TO_READ,
        "",
        *_table(PAPER, results, base),
        "",
        "## Beyond the paper",
        "",
        *_table(OWN, results, base),
        "",
        "## All pages",
        "",
        *(
            f"- [{file.name}]({file.name}): {_title(file)}"
            for file in sorted(results.glob("*.md"))
            if file.name != "README.md"
        ),
        "",
    ]
    (results / "README.md").write_text("\n".join(lines), "utf-8")


def _table(claims: tuple[Claim, ...], results: Path, base: str | None) -> list[str]:
    lines = ["| claim | measured | verdict | again |", "|---|---|---|---|"]
    for claim in claims:
        try:
            measured, verdict = claim.look(results)
            made_with = _fingerprint(results, claim.part)
            if base and made_with and made_with != base:
                measured += f" (with an earlier base model, {made_with[:19]}…)"
        except MissingError as error:
            measured, verdict = f"{MISSING}: no {error}", "open"
        command = f"`tools/reproduce --part {claim.part}`"
        lines.append(f"| {claim.text} | {measured} | {verdict} | {command} |")
    return lines


def _fingerprint(results: Path, name: str) -> str | None:
    """Of the base model a result was made with."""
    try:
        content = read(results, name)
    except MissingError:
        return None
    found = content.get("fingerprint")
    return None if found is None else str(found)


def _title(file: Path) -> str:
    with file.open(encoding="utf-8") as text:
        return text.readline().removeprefix("#").strip()


@click.command()
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(results: Path) -> None:
    """Write README.md from the results beside it."""
    write_claims(results)


if __name__ == "__main__":
    main()
