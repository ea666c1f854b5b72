"""``python -m trainer_ext mine``: hard negatives for a source, as a table that a stage trains on."""

import argparse
from pathlib import Path

from trainer_ext.data.broken_rows import BrokenRows
from trainer_ext.files import refuse_unwritable
from trainer_ext.mining import MiningSettings, mine, read_pairs
from trainer_ext.mining.table import source_entry, summary_path, teacher_hint, words_of, write_table
from trainer_ext.recipe.source_list import find_source, load_source_list

_EXAMPLE = """\
example, with the demo's dictionary:
  python -m trainer_ext mine openmoji --source gcide-definition-example --retriever bm25 --out triplets.parquet

It writes triplets.parquet and triplets.summary.json, and prints the source entry to paste into a source list or recipe.
docs/mine.md says what each option does.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(
        prog="python -m trainer_ext mine",
        description="Find hard negatives: texts that a retriever ranks near a right answer and that are wrong.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("sources", metavar="SOURCES.yaml", help="a source list, a recipe, or a packaged list's name")
    made.add_argument("--source", required=True, metavar="NAME", help="the source, of task text-pair or image-text")
    made.add_argument("--retriever", required=True, metavar="bm25|MODEL", help="bm25, or the folder of a model")
    made.add_argument("--out", required=True, type=Path, metavar="FILE.parquet", help="the table to write; a new file")
    made.add_argument("--negatives", type=int, default=7, help="negatives of each row (7, as the paper)")
    made.add_argument("--range_min", type=int, default=0, help="pass over this many of the best candidates (0)")
    made.add_argument("--range_max", type=int, default=100, help="look at no more than this many candidates (100)")
    made.add_argument(
        *("--absolute_margin", "--margin"), type=_margin, default=0.0,
        help="how far below the right answer a negative must score; none for no such margin (0: not above it)",
    )  # fmt: skip
    made.add_argument(
        *("--relative_margin",), type=_margin, default=None,
        help="the same as a share of the right answer's score, for example 0.05 (none)",
    )  # fmt: skip
    made.add_argument(
        *("--near_equal",), type=float, default=0.8,
        help="a text that shares more of its words with a right answer counts as right (0.8)",
    )  # fmt: skip
    made.add_argument("--cross_encoder", metavar="FOLDER", help="score the candidates anew before the margins")
    made.add_argument("--max_length", type=int, help="cut texts at this many tokens (the model's own limit)")
    made.add_argument("--cache", metavar="DIR", help="keep vectors and mined blocks here, and go on from them")
    return made


def _margin(text: str) -> float | None:
    return None if text == "none" else float(text)


def work(options: argparse.Namespace) -> int:
    """Mine, write, and say what to paste."""
    out: Path = options.out
    if out.suffix != ".parquet":
        raise ValueError(f"--out {out}: must end in .parquet")
    refuse_unwritable(out.parent, "the folder of --out")
    if options.cache is not None:
        refuse_unwritable(Path(options.cache).expanduser(), "--cache")
    for path in (out, summary_path(out)):
        if path.exists():
            raise ValueError(f"--out {out}: {path} is there already; name a new file or delete it")
    settings = MiningSettings(
        retriever=options.retriever,
        negatives=options.negatives,
        range_min=options.range_min,
        range_max=options.range_max,
        absolute_margin=options.absolute_margin,
        relative_margin=options.relative_margin,
        near_equal=options.near_equal,
        cross_encoder=options.cross_encoder,
        max_length=options.max_length,
        cache=options.cache,
    )
    source = find_source(load_source_list(options.sources), options.source, options.sources)
    broken = BrokenRows(None)
    mined = mine(read_pairs(source, broken), settings)
    if not mined.rows:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in mined.summary["queries_left_out"].items())
        raise ValueError(
            f"Source {source.name!r}: none of {len(mined.pairs.queries):,} queries has {settings.negatives} negatives:"
            f" {reasons}. Lower --negatives or the margins, raise --range_max or --near_equal, or give more rows."
        )
    mined.summary["source"] = source.name
    mined.summary["broken_rows"] = broken.counts().get(source.name, 0)
    written = write_table(mined, out)
    for line in words_of(mined, written):
        print(line)
    if source.holdout is not None:
        print(f"the rows that holdout {source.holdout} keeps from training are not among them")
    if mined.summary["broken_rows"]:
        print(f"broken rows left out: {mined.summary['broken_rows']:,}")
    print(f"{out}, {summary_path(out)}\n\n{source_entry(mined, source.name, out)}", end="")
    if mined.pairs.pictures is not None:
        side = f"{{sources: [{source.name}-mined], loss: info_nce_plus}}"
        print(f"# its negatives are read where a stage has image_text: {side}")
    if mined.has_margins:
        print(f"# its margins are read where a recipe has teacher: {teacher_hint(mined)}")
    return 0
