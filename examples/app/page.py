"""The page itself, as Gradio blocks, and what its buttons do.

The text and its button stand above, then the results, then all settings beside them: below them on a phone.
"""

import os
from pathlib import Path
from typing import Any

import gradio as gr
from indexing import Report, add_images
from picture_files import Found, why
from results import CSS, ON_CLICK, count, counts, lists, safe, start, summary, told
from search_index import KINDS, MAX_SIZE, MAX_UPLOADS, Index

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

TITLE = "Jina CLIP search"
EMPTY = "**There is nothing to search yet.** Add a folder of pictures."


def styles() -> str:
    return CSS + "#query {align-items: end} #query button {min-height: 42px}"


class Actions:
    """What the page does. What a visitor adds goes into a copy of the index that is theirs alone (``own``)."""

    def __init__(self, shared: Index, max_uploads: int) -> None:
        self.shared, self.max_uploads = shared, max_uploads

    def answer(self, own, text, picture, image_share, kinds, dim, correct, top) -> tuple[str, str]:
        """Pictures and texts for a text, a picture or both."""
        index = own or self.shared
        try:
            image = index.opener.read(Path(picture)) if picture else None
            query = index.query(text or "", image, image_share)
        except Exception as error:  # Pillow's readers let errors of many kinds through
            words = why(error).replace(str(picture), "the picture")
            raise gr.Error(f"the picture cannot be read: {words}" if words == "not a picture" else words) from None
        hits = index.search(query, kinds, int(dim), correct, int(top))
        shown = text.strip() if len(text.strip()) <= 60 else f"{text.strip()[:60]} ..."
        asked = " and ".join([f"\u201c{safe(shown)}\u201d"] * bool(shown) + ["your picture"] * bool(picture))
        return summary(hits, asked, kinds, correct), lists(hits)

    def similar(self, own, kinds, dim, correct, top, event: gr.EventData) -> tuple[str, str]:
        """What is most like the picture whose button was pressed."""
        try:
            name, hits = (own or self.shared).similar(event.value, kinds, int(dim), correct, int(top))
        except ValueError as error:
            raise gr.Error(str(error)) from None
        return summary(hits, f"pictures similar to {safe(name)}", kinds, correct), lists(hits)

    def add(self, own, paths, progress=gr.Progress()) -> tuple[Any, str, str, None]:  # noqa: B008 - Gradio finds it there
        """Add a visitor's files, as many as one may have; all of them are deleted again."""
        index, paths = own or self.shared, sorted(paths or [], key=lambda path: Path(path).name)
        added = len(index.items["images"]) - len(self.shared.items["images"])
        before, taken = len(index.items["images"]), paths[: max(0, self.max_uploads - added)]
        try:
            files = (Found(Path(path).name, Path(path)) for path in taken)
            index, report = add_images(index, files, len(taken), lambda share, text: progress(share, desc=text))
        finally:
            for path in paths:
                Path(path).unlink(missing_ok=True)
        new = len(index.items["images"]) - before
        said = [f"{count(new, 'picture')} added. {counts(index)}", *map(safe, told(report))]
        if len(taken) < len(paths):
            over = count(len(paths) - len(taken), "file")
            said.append(f"left out {over}: a visitor may add {count(self.max_uploads, 'picture')}")
        return index, counts(index), "\n\n".join(said), None


def page(shared: Index, report: Report, model: str, max_uploads: int = MAX_UPLOADS) -> gr.Blocks:
    """The page over an index that all visitors share."""
    do = Actions(shared, max_uploads)
    something = any(shared.items.values())
    # Files that Gradio keeps of a visit are deleted after an hour.
    with gr.Blocks(title=TITLE, delete_cache=(600, 3600)) as blocks:
        own = gr.State()  # of this visitor: None until they add something
        gr.Markdown(f"# {TITLE}\n\nModel: **{safe(model)}**, {shared.dim} dimensions")
        state = gr.Markdown(counts(shared) if something else EMPTY)
        with gr.Row(elem_id="query"):
            text = gr.Textbox(label="Text", placeholder="a red heart", scale=4)
            button = gr.Button("Search", variant="primary", scale=1, min_width=100)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                shown = min(24, len(shared.items["images"]))
                words = f"The first {shown} of {count(len(shared.items['images']), 'picture')}." if shown else ""
                said = gr.Markdown(words, elem_id="said")
                found = gr.HTML(start(shared, shown), js_on_load=ON_CLICK, elem_id="found")
            with gr.Column(scale=1, min_width=280):
                picture = gr.Image(label="Picture", type="filepath", image_mode=None, height=180)  # opened by us
                share = gr.Slider(0, 1, 0.5, step=0.05, label="Share of the picture, when both are given")
                kinds = gr.CheckboxGroup(KINDS, value=["images"], label="Search in")
                top = gr.Slider(1, 50, 12, step=1, label="Results")
                dim = gr.Slider(min(16, shared.dim), shared.dim, shared.dim, step=8, label="Dimensions (Matryoshka)")
                correct = gr.Checkbox(
                    False,
                    label="Correct the modality gap",
                    info="Lets pictures and texts compete: score within their kind",
                )
                files = gr.File(
                    label="Add a folder of pictures",
                    file_count="directory",
                    type="filepath",
                    height=140,
                )
                added = gr.Markdown(f"At most {max_uploads:,}, of {MAX_SIZE} each; only you will find them.")
                if lines := told(report):
                    with gr.Accordion("Left out at the start", open=False):
                        gr.Markdown("\n\n".join(map(safe, lines)))
        settings = [kinds, dim, correct, top]
        gr.on([button.click, text.submit], do.answer, [own, text, picture, share, *settings], [said, found])
        found.select(do.similar, [own, *settings], [said, found])
        files.upload(do.add, [own, files], [own, state, added, files])
    return blocks
