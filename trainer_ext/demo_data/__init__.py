"""Real images and texts that Python packages carry: OpenMoji drawings and the GCIDE dictionary, as training tables.

>>> from trainer_ext.demo_data import load_table, prepare                                       # doctest: +SKIP
>>> load_table(prepare(), "short_captions", "test_concepts")[0]["caption"]                      # doctest: +SKIP
['FREE button', 'free']
"""

from pathlib import Path
from typing import TYPE_CHECKING

from trainer_ext.demo_data.cache import default_cache_dir, prepare, read_manifest
from trainer_ext.demo_data.errors import EmbeddedDataError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["EmbeddedDataError", "default_cache_dir", "load_table", "prepare", "read_manifest"]


def load_table(folder: Path | str, table: str, split: str) -> "Dataset":
    """One split of one table of a prepared ``folder``, as a ``datasets.Dataset``; see ``build.load_table``."""
    from trainer_ext.demo_data.build import load_table as load

    return load(folder, table, split)
