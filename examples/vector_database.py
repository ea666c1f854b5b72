"""One table of pictures and texts in LanceDB, a database in a folder: add, filter, search by text, picture or both.

    python examples/vector_database.py MODEL db --add photos/ notes.jsonl
    python examples/vector_database.py MODEL db --text "a red shoe" --where "kind = 'image'"
    python examples/vector_database.py MODEL db --text "with laces" --image shoe.jpg --weight 0.6

``--add`` takes folders (their pictures and .txt files) and .jsonl files (``{"id": ..., "text": ...}`` or ``"image"``, a
path beside the file). Added again, only what is new or changed is embedded, by a hash of the content. The index is made
at ``--index_from`` rows, with its recall: the share of the 10 nearest by exact search that it finds. Filters are SQL on
``id``, ``kind``, ``source`` and ``text``. A query of both is fused as ``encode_record`` does it.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from modeling_jina_clip import JinaCLIPModel, fuse_vectors
from trainer_ext.commands.guard import guarded, needed
from trainer_ext.measuring.models import encoders_of
from trainer_ext.measuring.readable import PICTURES, vector_column, vectors_or_reasons

TABLE, HELD, NEAREST, SAMPLE = "items", 512, 10, 200


def items_of(place: Path) -> Iterator[dict[str, Any]]:
    """id, kind, source, text and content of what is in a folder or a .jsonl file."""
    if place.is_dir():
        for path in sorted(place.rglob("*")):
            ending = path.suffix.lower().removeprefix(".")
            if ending in {*PICTURES, "txt"} and path.is_file():
                kind = "text" if ending == "txt" else "image"
                yield item(str(path.relative_to(place)), place.name, path.read_bytes(), kind)
    elif place.suffix == ".jsonl" and place.is_file():
        with place.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row = json.loads(line)
                if not isinstance(row, dict) or "id" not in row or ("text" in row) == ("image" in row):
                    raise ValueError(f'{place}, line {number}: give "id", and one of "text" and "image"')
                content = str(row["text"]).encode() if "text" in row else (place.parent / row["image"]).read_bytes()
                yield item(str(row["id"]), place.name, content, "text" if "text" in row else "image")
    else:
        raise ValueError(f"--add {place}: no folder or .jsonl file there")


def item(name: str, source: str, content: bytes, kind: str) -> dict[str, Any]:
    words = content.decode("utf-8", "surrogateescape") if kind == "text" else None  # the model names what is not UTF-8
    own = {"kind": kind, "text": words, "content": content if words is None else words}
    return own | {"id": f"{source}/{name}", "source": source, "digest": sha256(kind.encode() + content).hexdigest()}


def add(table: Any, model: JinaCLIPModel, places: list[Path]) -> None:
    """Embed what is new or changed, and say how much of each there is; what cannot be read is named and left out."""
    dim, left_out, counts = table.schema.field("vector").type.list_size, [], {"embedded": 0, "unchanged": 0}
    items = (found for place in places for found in items_of(place))
    with tqdm(unit=" items") as bar:
        while few := list({found["id"]: found for found in islice(items, HELD)}.values()):
            names = ", ".join("'" + found["id"].replace("'", "''") + "'" for found in few)
            known = table.search().where(f"id IN ({names})").select(["id", "digest"]).limit(HELD).to_list()
            digests = {row["id"]: row["digest"] for row in known}
            changed = [found for found in few if digests.get(found["id"]) != found["digest"]]
            counts["unchanged"] += len(few) - len(changed)
            for kind, encode in (("text", model.encode_text), ("image", model.encode_image)):
                own = [found for found in changed if found["kind"] == kind]
                vectors = vectors_or_reasons(partial(encode, show_progress_bar=False), [x["content"] for x in own])
                left_out += [f"{x['id']}: {v}" for x, v in zip(own, vectors, strict=True) if isinstance(v, str)]
                if good := [(x, v) for x, v in zip(own, vectors, strict=True) if not isinstance(v, str)]:
                    rows = {name: pa.array([x[name] for x, _ in good], pa.string()) for name in table.schema.names[:-1]}
                    rows["vector"] = vector_column([vector for _, vector in good], dim)
                    merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                    merge.execute(pa.table(rows))
                    counts["embedded"] += len(good)
            bar.update(len(few))
    print(*(f"left out {line}" for line in left_out), sep="\n", end="\n" * bool(left_out), file=sys.stderr)
    print(f"{counts['embedded']:,} embedded, {counts['unchanged']:,} unchanged, {len(left_out):,} left out")


def index(table: Any) -> None:
    """Make the index, or bring it up to date, and print its recall against exact search."""
    if not table.list_indices():
        table.create_index("vector", config=needed("lancedb.index", "ray").HnswSq(distance_type="cosine"))
    table.optimize()
    rows = table.search().select(["vector"]).limit(SAMPLE).to_arrow()["vector"].to_pylist()
    shares = []
    for vector in rows:
        search = partial(table.search(vector).distance_type("cosine").select(["id", "_distance"]).limit, NEAREST)
        near, exact = ({row["id"] for row in x.to_list()} for x in (search(), search().bypass_vector_index()))
        shares.append(len(near & exact) / len(exact))
    print(f"index: recall@{NEAREST} {np.mean(shares):.3f} against exact search, on {len(rows)} vectors of the table")


def query_vector(model: JinaCLIPModel, text: str | None, image: Path | None, weight: float) -> np.ndarray:
    vectors = [model.encode_text(text)] if text is not None else []
    vectors += [model.encode_image(image)] if image is not None else []
    return vectors[0] if len(vectors) == 1 else fuse_vectors(*vectors, weight=weight)


def opened(place: str, model: JinaCLIPModel) -> Any:
    """The table, made where it is not there; one of another model is refused."""
    made_by = encoders_of(model, "").fingerprint
    vector = pa.list_(pa.float32(), model.config.truncate_dim or model.config.projection_dim)
    columns = dict.fromkeys(["id", "kind", "source", "text", "digest"], pa.string()) | {"vector": vector}
    schema = pa.schema(list(columns.items()), metadata={"model": made_by})
    database, is_new = needed("lancedb", "ray").connect(place), not Path(place, f"{TABLE}.lance").exists()
    table = database.create_table(TABLE, schema=schema) if is_new else database.open_table(TABLE)
    if (table.schema.metadata or {}).get(b"model") != made_by.encode():
        raise ValueError(f"{place} holds vectors of another model; give a folder of its own")
    return table


def main() -> None:
    """Add, then search."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="model folder or Hub name")
    parser.add_argument("database", help="folder of the database")
    parser.add_argument("--add", nargs="+", type=Path, default=[], metavar="PLACE", help="folders and .jsonl files")
    parser.add_argument("--index_from", type=int, default=10_000, help="rows from which an index pays (default 10000)")
    parser.add_argument("--text", help="search by a text")
    parser.add_argument("--image", type=Path, help="search by a picture; with --text by both")
    parser.add_argument("--weight", type=float, default=0.5, help="of the picture beside the text (default 0.5)")
    parser.add_argument("--where", help="SQL, such as \"kind = 'image' AND source = 'photos'\"")
    parser.add_argument("--top", type=int, default=NEAREST, help=f"results (default {NEAREST})")
    options = parser.parse_args()
    if not options.add and options.text is None and options.image is None:
        parser.error("nothing to do: give --add, --text or --image")
    model = JinaCLIPModel.from_pretrained(options.model)
    table = opened(options.database, model)
    if options.add:
        add(table, model, options.add)
        if table.count_rows() >= options.index_from:
            index(table)
    if options.text is not None or options.image is not None:
        search = table.search(query_vector(model, options.text, options.image, options.weight))
        search = search.distance_type("cosine").limit(options.top)
        for row in (search.where(options.where, prefilter=True) if options.where else search).to_list():
            print(f"{1 - row['_distance']:6.3f}  {row['kind']:5}  {row['id']}  {(row['text'] or '')[:80]}")


if __name__ == "__main__":
    sys.exit(guarded(main))
