"""What a joint batch is called: the columns of each side, which are embedded by themselves, and their ids."""

# Queries and targets of each side.
COLUMNS: dict[str, tuple[str, str]] = {
    "image_text": ("image", "caption"),
    "text": ("query", "positive"),
    "images": ("picture", "partner"),
}
NEGATIVES: dict[str, str] = {"image_text": "negative_caption", "text": "negatives"}
# Further columns of targets that a side may have.
BESIDE: dict[str, tuple[str, ...]] = {
    "image_text": (NEGATIVES["image_text"], "short_caption"),
    "text": (NEGATIVES["text"],),
    "images": (),
}
# The keys of a side's batch with the ids of its queries and targets; pictures that are paired have those of rows alone.
IDS: dict[str, tuple[str, str]] = {
    "image_text": ("image_ids", "text_ids"),
    "text": ("query_ids", "positive_ids"),
}
