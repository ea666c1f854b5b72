"""The page of a check: one HTML file, without a script and without anything from elsewhere.

Every word of the data is escaped, and pictures are PNGs inside the page, so hostile rows stay text.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from trainer_ext.checking.batches_shown import ShownBatch, ShownRow, ShownText
from trainer_ext.checking.findings import LEVELS, FindingLog
from trainer_ext.checking.fit import Fit
from trainer_ext.checking.plan_shares import SourceShare

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --pale: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .75rem .25rem 0; text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.error { border-left: .3rem solid #d33; } .warning { border-left: .3rem solid #e90; }
.note { border-left: .3rem solid #48c; }
.found { margin: .5rem 0; padding: .25rem .75rem; background: var(--pale); overflow-wrap: anywhere; }
.found ul { margin: .25rem 0; padding-left: 1.2rem; }
.rows { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
.row { border: 1px solid var(--line); padding: .5rem; overflow-wrap: anywhere; break-inside: avoid; }
.row img { background: var(--pale); display: block; image-rendering: pixelated; margin-bottom: .25rem; }
.row img { max-width: 100%; min-width: 6rem; }
.row p { margin: 0; } .small { opacity: .7; font-size: .85em; } .full { color: #c60; }
"""
_NOTHING_FROM_OUTSIDE = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_TITLES = {"error": "Errors", "warning": "Warnings", "note": "Notes"}


def check_page(
    title: str, log: FindingLog, sources: Mapping[str, Mapping[str, Any]], shares: Sequence[SourceShare],
    fit: Fit | None, batches: Sequence[ShownBatch],
) -> str:  # fmt: skip
    """The page as text.

    Args:
        sources: figures of each source, by its name (``record_of``).
        shares: what the plan takes from them.
        fit: None where no steps were tried.
        batches: the first rows of each stage.
    """
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(verdict(log))}</p>",
        *_findings(log),
        "<h2>Sources</h2>",
        _table(("source", "rows", "broken", "texts and pictures"), map(_source_row, sources.items())),
    ]
    if shares:
        parts += ["<h2>What the plan takes</h2>", _table(_SHARES, map(_share_row, shares))]
    if fit is not None:
        parts += ["<h2>Two steps of each stage</h2>", f"<p>{escape(fit.describe())}</p>"]
    if batches:
        parts += ["<h2>One batch of every stage, as the model sees it</h2>", *map(_batch, batches)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_NOTHING_FROM_OUTSIDE}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def verdict(log: FindingLog) -> str:
    """The result in a sentence.

    >>> verdict(FindingLog(None))
    'Nothing was found.'
    """
    counts = [(log.count(level), level) for level in LEVELS]
    said = [f"{count:,} {level}{'s' if count > 1 else ''}" for count, level in counts if count]
    return f"{', '.join(said)}." if said else "Nothing was found."


def _findings(log: FindingLog) -> Iterable[str]:
    for level in LEVELS:
        groups = log.groups(level)
        if groups:
            yield f"<h2>{_TITLES[level]}</h2>"
        for group in groups:
            kept, count = log.shown[group], log.counts[group]
            head = f"{group.kind}{', ' + group.source if group.source else ''}: {count:,}"
            lines = "".join(f"<li>{escape(str(finding))}</li>" for finding in kept)
            more = f"<li>and {count - len(kept):,} more in findings.jsonl</li>" if count > len(kept) else ""
            yield f'<div class="found {level}"><b>{escape(head)}</b><ul>{lines}{more}</ul></div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f"<table><tr>{cells}</tr>{''.join(f'<tr>{_cells(row)}</tr>' for row in rows)}</table>"


def _cells(row: Sequence[Any]) -> str:
    return "".join(
        f'<td class="n">{cell:,}</td>' if isinstance(cell, int) else f"<td>{escape(str(cell))}</td>" for cell in row
    )


def _source_row(item: tuple[str, Mapping[str, Any]]) -> tuple[Any, ...]:
    name, record = item
    return name, record["rows"], record["broken"], "; ".join(describe_source(record))


def describe_source(record: Mapping[str, Any]) -> list[str]:
    """The figures of a source in words, a phrase for its pictures and for each column of texts."""
    found = []
    if (pictures := record.get("pictures")) and pictures["pictures"]:
        side = pictures["shortest_side"]
        modes = ", ".join(f"{mode} {count:,}" for mode, count in pictures["modes"].items())
        words = f"{pictures['pictures']:,} pictures, {pictures['different']:,} different, shortest side "
        words += f"{side['smallest']} to {side['largest']} (median {side['median']}), {modes}"
        words += f", {pictures['turned']:,} turned upright" if pictures["turned"] else ""
        found.append(words)
    for name, column in record.get("texts", {}).items():
        words = f"{name}: {column['texts']:,} texts"
        words += f", {column['different']:,} different" if "different" in column else ""
        if "length" in column:
            length = column["length"]
            words += f", {length['median']} tokens (95% up to {length['p95']}, longest {length['longest']:,})"
            words += f", {column['unknown']:,} unknown" if column["unknown"] else ""
        found.append(words)
    return found


_SHARES = ("source", "side", "rows taken", "share of the side", "epochs", "steps")


def _share_row(share: SourceShare) -> tuple[Any, ...]:
    epochs = "not counted before" if share.epochs is None else f"{share.epochs:.2f}"
    steps = ", ".join(f"{stage} {count:,}" for stage, count in share.steps.items())
    return share.source, share.side, share.rows, f"{share.share:.1%}", epochs, steps


def _batch(batch: ShownBatch) -> str:
    size = "" if batch.image_size is None else f", {batch.image_size} x {batch.image_size} pixels"
    head = f"{batch.stage}, {batch.side}: {batch.of:,} rows of {batch.source}{size}"
    if batch.of > len(batch.rows):
        head += f"; the first {len(batch.rows)}"
    return f'<h3>{escape(head)}</h3><div class="rows">{"".join(map(_row, batch.rows))}</div>'


def _row(row: ShownRow) -> str:
    picture = "" if row.picture is None else f'<img alt="" src="{escape(row.picture)}">'
    return f'<div class="row">{picture}{"".join(map(_text, row.texts))}</div>'


def _text(text: ShownText) -> str:
    tokens = f"{text.name}, {text.tokens} tokens" if text.tokens else text.name
    full = ' <span class="full">as long as allowed</span>' if text.full else ""
    return f'<p><span class="small">{escape(tokens)}:{full}</span> {escape(text.text)}</p>'
