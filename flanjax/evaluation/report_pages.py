"""A page of headings, words, tables and pictures, as Markdown or as one HTML file.

    html_page("Flan-T5", [Heading(1, "Flan-T5"), Table(("task", "score"), [("rte", "81.2")])])

Pictures are PNG; HTML has them inside, Markdown leaves them out.
"""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

_STYLE = """body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
th, td { border-bottom: 1px solid #ddd; padding: .25em .8em; text-align: left }
td + td { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100% }"""


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 to 3."""

    level: int
    text: str


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table, each row with a cell for each column."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Picture:
    """A PNG, and what it shows."""

    png: bytes
    text: str


Block: TypeAlias = Heading | Words | Table | Picture


def markdown_page(blocks: Sequence[Block]) -> str:
    """The blocks as Markdown, without the pictures."""
    return "\n\n".join(_markdown(block) for block in blocks if not isinstance(block, Picture)) + "\n"


def html_page(title: str, blocks: Sequence[Block]) -> str:
    """The blocks as one HTML file that loads nothing."""
    body = "\n".join(_html(block) for block in blocks)
    head = f'<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _markdown(block: Heading | Words | Table) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Words):
        return block.text
    lines = [block.columns, ("---",) * len(block.columns), *block.rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Words):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Picture):
        data = base64.b64encode(block.png).decode()
        return f'<p><img alt="{html.escape(block.text)}" src="data:image/png;base64,{data}"></p>'
    rows = [("th", block.columns), *(("td", row) for row in block.rows)]
    cells = ["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for tag, row in rows]
    return "<table>\n" + "\n".join(f"<tr>{row}</tr>" for row in cells) + "\n</table>"
