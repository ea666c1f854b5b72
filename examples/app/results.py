"""What the page shows: pictures as tiles of one size, texts as a list, and a line that says what was found.

HTML of our own, everything from files and visitors escaped. Pictures travel inside the page, as thumbnails.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape

from indexing import Report
from search_index import KINDS, Hit, Index, Item

SHOWN_REFUSED = 50

# A click on a tile's button tells the page which picture was meant.
ON_CLICK = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-key]");
  if (button) trigger("select", {value: button.dataset.key});
});
"""

CSS = """
.tiles {display: grid; grid-template-columns: repeat(auto-fill, minmax(min(150px, 45%), 1fr)); gap: 12px; margin: 8px 0}
.tile {display: flex; flex-direction: column; margin: 0; min-width: 0; border: 1px solid var(--border-color-primary);
  border-radius: 8px; overflow: hidden}
.tile img {width: 100%; aspect-ratio: 1; object-fit: contain; background: white; padding: 6px; margin: 0}
.tile figcaption {padding: 4px 8px 8px; font-size: 13px; line-height: 1.3; flex: 1; display: flex;
  flex-direction: column; gap: 4px}
.tile .words {height: 2.6em; overflow: hidden; overflow-wrap: break-word; word-break: normal;
  display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical}
.tile .file, .place {color: var(--body-text-color-subdued)}
.tile .file {font-size: 11px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis}
.tile button {font-size: 12px; border: 1px solid var(--border-color-primary); border-radius: 6px; padding: 3px 6px;
  background: var(--button-secondary-background-fill); cursor: pointer}
.found-texts {list-style: none; padding: 0; margin: 8px 0}
.found-texts li {display: grid; grid-template-columns: 2.5em 4em 1fr; gap: 8px; padding: 6px 0; margin: 0;
  border-bottom: 1px solid var(--border-color-primary); overflow-wrap: break-word; word-break: normal}
"""


def safe(text: str) -> str:
    """Text as HTML shows it; braces too, which Gradio's templates would read."""
    return escape(text).replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;")


def count(number: int, thing: str) -> str:
    """``1 picture``, ``2 pictures``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def tile(item: Item, place: str) -> str:
    """One picture: itself, its place, its caption or else its file's name, and a button."""
    source = f"data:image/webp;base64,{base64.b64encode(item.thumbnail).decode()}"
    name, words = safe(item.name), safe(item.caption or item.name)
    file = f'<span class="file" title="{name}">{name if item.caption else "&nbsp;"}</span>'  # cells of one height
    return (
        f'<figure class="tile"><img src="{source}" alt="{words}"><figcaption><span class="place">{place}</span>'
        f'<span class="words" title="{words}">{words}</span>{file}'
        f'<button data-key="{item.key}" aria-label="Find pictures similar to {name}">Find similar</button>'
        "</figcaption></figure>"
    )


def tiles(items: Iterable[tuple[Item, str]]) -> str:
    return f'<div class="tiles">{"".join(tile(item, place) for item, place in items)}</div>'


def lists(hits: Sequence[Hit]) -> str:
    """Pictures and texts apart, each counted from 1."""
    pictures = [(score, item) for score, kind, item in hits if kind == "images"]
    texts = [(score, item) for score, kind, item in hits if kind == "texts"]
    parts = []
    if pictures:
        parts.append(tiles((item, f"{place} &middot; {score:.3f}") for place, (score, item) in enumerate(pictures, 1)))
    if texts:
        lines = (
            f'<li><span class="place">{place}</span><span class="place">{score:.3f}</span>'
            f"<span>{safe(item.name)}</span></li>"
            for place, (score, item) in enumerate(texts, 1)
        )
        parts.append(f'<ol class="found-texts" aria-label="Texts">{"".join(lines)}</ol>')
    return "".join(parts)


def summary(hits: Sequence[Hit], asked: str, kinds: Sequence[str], correct: bool) -> str:
    """What was found, in words, as Markdown without anything from outside but ``asked``, which is escaped."""
    pictures = sum(kind == "images" for _, kind, _ in hits)
    found = [
        count(number, thing) for number, thing in ((pictures, "picture"), (len(hits) - pictures, "text")) if number
    ]
    said = f"**{' and '.join(found) or 'Nothing'}** for {asked}."
    if len(kinds) > 1:
        said += f" The best {len(hits)} of pictures and texts together, each kind counted from 1. "
        said += (
            "The scores are standard deviations above the mean of their kind."
            if correct
            else "Texts score higher with texts, and pictures with pictures: tick *Correct the modality gap* to let "
            "both compete."
        )
    return said


def start(index: Index, first: int = 24) -> str:
    """What the page shows before the first search."""
    pictures = index.items["images"]
    return tiles((item, "") for item in pictures[:first])


def counts(index: Index) -> str:
    return ", ".join(count(len(index.items[kind]), kind[:-1].replace("image", "picture")) for kind in KINDS)


def told(report: Report) -> list[str]:
    """Copies and files that were left out, counted and named."""
    said = [f"{count(report.copies, 'copy').replace('copys', 'copies')} of what is there"] if report.copies else []
    if report.refused:
        said.append(f"left out {count(len(report.refused), 'file')}:")
        said += report.refused[:SHOWN_REFUSED]
        if len(report.refused) > SHOWN_REFUSED:
            said.append(f"and {len(report.refused) - SHOWN_REFUSED} more")
    return said
