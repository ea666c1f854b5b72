"""A page with everything on it, made of plain data, and a small task that can be measured."""

import numpy as np
from PIL import Image

from trainer_ext.evaluation.tasks import RetrievalTask, encode_items, image_text_tasks
from trainer_ext.report.data import (
    BrokenRows,
    Difference,
    GalleryEntry,
    Histogram,
    ReportData,
    Row,
    RunCurves,
    RunFacts,
    Series,
    Shown,
    StageSpan,
    StageSpeed,
    TaskDetails,
)
from trainer_ext.report.thumbnails import data_uri

PICTURE = data_uri(Image.new("RGB", (20, 10), "red"))
RECIPE = {
    "name": "tiny",
    "stages": [
        {"name": "short", "steps": 20, "image_text": {"batch_size": 8}, "text": {"batch_size": 4}},
        {"name": "long", "steps": 10, "image_text": {"batch_size": 8}, "text": None},
    ],
}


def facts(name: str = "run", words: str = "photos", recipe: dict | None = None) -> RunFacts:
    """A run that logged 30 steps."""
    steps = list(range(1, 31))
    names = ("loss", "loss_text", "accuracy_text", "temperature", "learning_rate")
    return RunFacts(
        name=name,
        recipe=recipe or RECIPE,
        versions={"torch": "2.6.0"},
        hardware={"processor": words},
        setup={"device": "cpu"},
        command=f"tiny --output_dir {words}",
        curves=RunCurves(
            [StageSpan("short", 1, 20), StageSpan("long", 21, 30)],
            {key: Series(steps, [1 / step for step in steps]) for key in names},
        ),
        speed=[StageSpeed("short", 20, 12.5, 19.2), StageSpeed("long", 10, None, None)],
        shares={"text": {words: {"rows": 80, "share": 0.8}, "other": {"rows": 20, "share": 0.2}}},
        broken_rows=[BrokenRows(words, 2, [{"file": words, "row": 3, "column": "image", "reason": words}])],
    )


def page(words: str = "a cat", name: str = "run") -> ReportData:
    """Every part of a page; ``words`` stands wherever data may put a text."""
    figures = {"shop/t2i_r1": 0.3, "shop/t2i_r5": 0.6, "shop[de]/t2i_r5": 0.5, "shop@64/t2i_r5": 0.55}
    figures |= {"shop[up to 32 tokens]/t2i_r5": 0.7, "shop[up to 77 tokens]/t2i_r5": 0.4, "shop@int8/t2i_r5": 0.59}
    figures |= {"match/threshold": 0.31, f"{words.replace('/', '-')}/r5": 0.2}
    text, image = Shown(words), Shown(None, PICTURE)
    results = [Shown(words, None, 1, 0.9), Shown(None, PICTURE, 2, 0.8, True), Shown(None, PICTURE, 70, None, True)]
    return ReportData(
        title=words,
        rows=[
            Row("chance", {"shop/t2i_r5": 0.05}, "reference"),
            Row("before training", {"shop/t2i_r1": 0.1, "shop/t2i_r5": 0.2}),
            Row(words, figures, "stage", {"shop/t2i_r5": (0.5, 0.7)}),
        ],
        sizes={"shop/t2i": f"9 queries {words}"},
        details=[
            TaskDetails(
                f"{words}/t2i",
                words,
                [Histogram("true pairs", [0.0, 0.5, 1.0], [1, 9]), Histogram("other pairs", [0.0, 0.5, 1.0], [9, 1])],
                [GalleryEntry(text, 1, results)],
                [GalleryEntry(image, 1234, results)],
                candidates=5000,
            )
        ],
        runs=[facts(name, words)],
        differences=[Difference("shop/t2i_r5", "before training", words, 0.4, (0.3, 0.5))],
        notes=[words],
    )


def colors() -> tuple[list[RetrievalTask], object]:
    """Eight plain pictures with two captions each, in both directions, and vectors that confuse the last two."""
    images = [Image.new("RGBA", (12, 8), (30 * number, 0, 0, 255)) for number in range(8)]
    tasks = image_text_tasks("colors", images, [[f"red {number}", f"number {number}"] for number in range(8)])
    angle = {image.getpixel((0, 0))[0]: number for number, image in enumerate(images)}

    def vectors(numbers):
        return np.array([[np.cos(n / 4), np.sin(n / 4)] for n in numbers])

    return tasks, encode_items(
        lambda texts: vectors([0.0 if text == "number 7" else int(text.split()[-1]) for text in texts]),
        lambda pictures: vectors([angle[picture.getpixel((0, 0))[0]] for picture in pictures]),
        [item for task in tasks for item in task.items],
        progress=False,
    )
