"""A table as Markdown, LaTeX or JSON text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Final

from cones_registry.evaluation.bootstrap import LEVEL, Interval
from cones_registry.evaluation.table import Table, TableRow


def markdown(table: Table) -> str:
    """The paper's shape first (text / image / presence), then each measure with intervals and n."""
    parts = [f"# {_one_line(table.title)}", ""]
    if warning := _warning(table):
        parts += [warning, ""]
    heads = ["method", *(_subjects(count) for count in table.columns), "bytes a concept"]
    lines = [
        [row.method, *(_short_cell(row, count) for count in table.columns), _size(row)]
        for row in table.rows
    ]
    parts += [f"Each cell: {' / '.join(table.measures.values())}.", ""]
    parts += _markdown_table(heads, lines)
    for measure, name in table.measures.items():
        parts += ["", f"## {name[0].upper()}{name[1:]}", ""]
        lines = [
            [row.method, *(_long_cell(row.cells[measure].get(count)) for count in table.columns)]
            for row in table.rows
        ]
        parts += _markdown_table(heads[:-1], lines)
    parts += ["", *(f"- {_one_line(line)}" for line in _notes(table)), ""]
    return "\n".join(parts)


def latex(table: Table) -> str:
    """A table with its title as caption and one column for each measure and number of subjects.

    Needs the package booktabs. Everything that came from a file or an argument is escaped.
    """
    count = len(table.columns)
    spans = " & ".join(
        rf"\multicolumn{{{count}}}{{c}}{{{name}}}" for name in table.measures.values()
    )
    numbers = " & ".join(str(each) for _ in table.measures for each in table.columns)
    warning = _warning(table)
    remarks = [*([warning] if warning else []), *_notes(table)]
    lines = [
        *(f"% {_one_line(remark)}" for remark in remarks),
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(table.title)}}}",
        rf"\begin{{tabular}}{{l{'r' * (count * len(table.measures))}r}}",
        r"\toprule",
        rf" & {spans} & bytes \\",
        rf"subjects & {numbers} & a concept \\",
        r"\midrule",
    ]
    for row in table.rows:
        cells = [
            "--" if (cell := row.cells[measure].get(each)) is None else f"{cell.mean:.3f}"
            for measure in table.measures
            for each in table.columns
        ]
        lines.append(" & ".join([_escaped(row.method), *cells, _escaped(_size(row))]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if warning:
        lines += ["", rf"\smallskip\footnotesize {_escaped(warning)}"]
    return "\n".join([*lines, r"\end{table}", ""])


def json_text(table: Table) -> str:
    """Everything, as JSON."""
    return json.dumps(table.to_json(), indent=1, ensure_ascii=False) + "\n"


FORMS: Final[Mapping[str, Callable[[Table], str]]] = {
    "markdown": markdown,
    "json": json_text,
    "latex": latex,
}


def _notes(table: Table) -> list[str]:
    """What decides the numbers."""
    preset = table.preset
    backbone = preset.get("backbone")
    scale = f"{preset.get('text_scale'):g} x "
    cosine = "max(cosine, 0)" if preset.get("floor") else "cosine"
    notes = [
        f"preset {preset.get('name')}: {preset.get('source')}",
        f"backbone: {backbone['name'] if backbone else 'as below'}; resize: {preset.get('resize')}",
        f"text alignment: {scale}{cosine}; aggregation: {preset.get('aggregation')}",
        f"per-subject presence: {table.presence}; mean over the subjects asked for",
        f"intervals: {LEVEL:.0%}, bootstrap over sets of subjects and pictures within them",
    ]
    notes += [
        f"{name}: {json.dumps(facts, ensure_ascii=False)}" for name, facts in table.facts.items()
    ]
    bases = sorted({row.base for row in table.rows if row.base})
    if bases:
        notes.append(f"base model: {', '.join(bases)}")
    settings: dict[str, list[str]] = {}
    for row in table.rows:
        settings.setdefault(json.dumps(dict(row.settings), ensure_ascii=False), []).append(
            row.method
        )
    notes += [f"{', '.join(names)}: {text}" for text, names in settings.items() if text != "{}"]
    return notes


def _subjects(count: int) -> str:
    return f"{count} subject{'' if count == 1 else 's'}"


def _short_cell(row: TableRow, count: int) -> str:
    found = [cells.get(count) for cells in row.cells.values()]
    return " / ".join("–" if cell is None else f"{cell.mean:.3f}" for cell in found)


def _long_cell(cell: Interval | None) -> str:
    if cell is None:
        return "–"
    return f"{cell.mean:.3f} [{cell.low:.3f}, {cell.high:.3f}] n={cell.count}"


def _size(row: TableRow) -> str:
    return "–" if row.bytes_per_concept is None else f"{row.bytes_per_concept:,.0f}"


def _markdown_table(heads: list[str], lines: list[list[str]]) -> list[str]:
    rule = "|---" + "|---:" * (len(heads) - 1) + "|"
    return [_line(heads), rule, *map(_line, lines)]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(_one_line(cell).replace("|", r"\|") for cell in cells) + " |"


def _warning(table: Table) -> str:
    """Why these are not the paper's numbers; empty if they are."""
    if not table.differences:
        return ""
    return (
        "Not comparable with the numbers printed in arXiv 2303.05125: "
        + "; ".join(table.differences)
        + "."
    )


def _one_line(text: str) -> str:
    """The text without line breaks, which would end a comment, a heading or a row."""
    return " ".join(text.split())


_LATEX: Final = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


def _escaped(text: str) -> str:
    return _one_line(text).translate(_LATEX)
