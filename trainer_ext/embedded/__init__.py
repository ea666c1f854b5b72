"""Real images and texts that Python packages carry: OpenMoji drawings and the GCIDE dictionary, as training tables.

>>> from trainer_ext.embedded import load_table, prepare                                       # doctest: +SKIP
>>> load_table(prepare(), "short_captions", "test_concepts")[0]["caption"]                      # doctest: +SKIP
['FREE button', 'free']
"""

from pathlib import Path
from typing import TYPE_CHECKING

from .cache import default_cache_dir, prepare, read_manifest
from .errors import EmbeddedDataError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["EmbeddedDataError", "default_cache_dir", "load_table", "prepare", "read_manifest"]


def load_table(folder: Path | str, table: str, split: str) -> "Dataset":
    """One split of one table of a prepared ``folder``, as a ``datasets.Dataset``; see ``tables.load_table``."""
    from .tables import load_table as load  # imports datasets, which takes a second

    return load(folder, table, split)
