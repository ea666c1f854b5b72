"""Zero-shot classification: the class whose texts lie nearest to an image."""

from collections.abc import Sequence

import numpy as np

from trainer_ext.evaluation.base import Task
from trainer_ext.evaluation.figures import Quantity
from trainer_ext.evaluation.items import Embeddings, Item, refuse_empty
from trainer_ext.evaluation.metrics import tie_margin
from trainer_ext.evaluation.statistics import calibration_error, mean_class_recall

# Images scored at once: with 1,000 classes 4 MB.
IMAGE_BLOCK = 1024


class ClassificationTask(Task):
    """Does the right class score highest for an image? ``labels[i]`` is the place of its class in ``class_names``.

    The vector of a class is the unit mean over ``templates`` of the unit vectors of its texts, as in CLIP. Figures:
    ``acc1``, ``acc5``, ``mean_class_recall`` over the classes that occur, and, where ``logit_scale`` is known, ``ece``:
    the calibration of softmax(cosine x exp(logit_scale)) in 15 bins. It may be set later, for each model.

    >>> from PIL import Image
    >>> images = [Image.new("RGB", (2, 2)) for _ in range(2)]
    >>> task = ClassificationTask("kinds", images, [0, 1], ["cat", "dog"], ["a photo of a {}"])
    >>> task.prompts, task.size
    ([['a photo of a cat'], ['a photo of a dog']], '2 images, 2 classes')
    """

    kind = "classification"

    def __init__(
        self,
        name: str,
        images: Sequence[Item],
        labels: Sequence[int],
        class_names: Sequence[str],
        templates: Sequence[str] = ("{}",),
        logit_scale: float | None = None,
    ) -> None:
        self.name, self.images, self.logit_scale = name, list(images), logit_scale
        self.class_names, self.labels = list(class_names), np.array(labels, dtype=np.int64)
        refuse_empty(name, "images", self.images)
        refuse_empty(name, "class names", self.class_names)
        self._refuse_wrong_classes()
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f"Task {name!r}: template {template!r} needs one {{}} where the class name goes.")
        if not templates:
            raise ValueError(f"Task {name!r}: give at least one template, such as 'a photo of a {{}}'.")
        self.prompts = [[template.replace("{}", one) for template in templates] for one in self.class_names]

    def _refuse_wrong_classes(self) -> None:
        if len(self.labels) != len(self.images):
            raise ValueError(f"Task {self.name!r}: {len(self.images)} images but {len(self.labels)} labels; one each.")
        count = len(self.class_names)
        if len(set(self.class_names)) < count:
            twice = next(one for one in self.class_names if self.class_names.count(one) > 1)
            raise ValueError(f"Task {self.name!r}: the class {twice!r} is named twice.")
        if len(bad := np.flatnonzero((self.labels < 0) | (self.labels >= count))):
            raise ValueError(
                f"Task {self.name!r}: image {bad[0]} has the label {self.labels[bad[0]]}; use 0 to {count - 1}."
            )
        if len(np.unique(self.labels)) < 2:
            raise ValueError(
                f"Task {self.name!r}: all {len(self.labels)} images are of one class, "
                f"{self.class_names[self.labels[0]]!r}; classification needs two at least."
            )

    @property
    def items(self) -> list[Item]:
        """Everything that has to be encoded."""
        return [*self.images, *(text for texts in self.prompts for text in texts)]

    @property
    def size(self) -> str:
        """How much is classified, in words, for the report."""
        return f"{len(self.images)} images, {len(self.class_names)} classes"

    @property
    def answers(self) -> list[np.ndarray]:
        """The class of each image."""
        return [self.labels]

    @property
    def queries_count(self) -> int:
        """Every image has its value."""
        return len(self.images)

    def quantities(self, embeddings: Embeddings) -> dict[str, Quantity]:
        """Values per image of the cosine similarity of these embeddings."""
        images = embeddings.rows_of(self.images, f"{self.label}, images")
        classes = self._class_vectors(embeddings)
        ranks, confidence = np.empty(len(images), np.int64), np.empty(len(images))
        for start in range(0, len(images), IMAGE_BLOCK):
            part = slice(start, start + IMAGE_BLOCK)
            scores = (images.block(start, start + IMAGE_BLOCK) @ classes.T).astype(np.float64)
            own = np.take_along_axis(scores, self.labels[part, None], axis=1)
            ranks[part] = (scores >= own - tie_margin(own)).sum(axis=1) - 1
            if self.logit_scale is not None:
                odds = np.exp(np.exp(self.logit_scale) * (scores - scores.max(axis=1, keepdims=True)))
                confidence[part] = 1.0 / odds.sum(axis=1)
        first = (ranks < 1).astype(np.float64)
        found = {
            "acc1": Quantity(first),
            "acc5": Quantity((ranks < 5).astype(np.float64)),
            "mean_class_recall": Quantity(
                np.stack([self.labels, first], axis=1),
                lambda rows: mean_class_recall(rows[:, 0].astype(int), rows[:, 1]),
            ),
        }
        if self.logit_scale is not None:
            rows = np.stack([confidence, first], axis=1)
            found["ece"] = Quantity(rows, lambda pairs: calibration_error(pairs[:, 0], pairs[:, 1]))
        return found

    def expected(self, chosen: np.ndarray) -> dict[str, float]:
        """Random scores; their calibration has no expectation."""
        count = len(self.class_names)
        return {"acc1": 1.0 / count, "acc5": min(5, count) / count, "mean_class_recall": 1.0 / count}

    def _class_vectors(self, embeddings: Embeddings) -> np.ndarray:
        texts = [text for prompts in self.prompts for text in prompts]
        units = embeddings.of(texts, f"{self.label}, class texts")
        means = units.reshape(len(self.prompts), -1, units.shape[1]).mean(axis=1)
        norms = np.linalg.norm(means, axis=1, keepdims=True)
        if (norms < 1e-6).any():
            name = self.class_names[int(np.argmin(norms))]
            raise ValueError(f"Task {self.label!r}: the vectors of the texts of class {name!r} cancel each other out.")
        return means / norms
