"""``python -m trainer_ext.demo_data [CACHE_FOLDER]``: prepare the embedded data now and print its folder."""

import argparse
import sys
from pathlib import Path

from trainer_ext.demo_data.cache import default_cache_dir, prepare
from trainer_ext.demo_data.errors import EmbeddedDataError


def main(arguments: list[str] | None = None) -> int:
    """Prepare, print the folder, return 0; or print one line with the cure and return 1."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer_ext.demo_data", description="Prepare the embedded data now."
    )
    parser.add_argument("cache_folder", nargs="?", type=Path, default=default_cache_dir(), help="default: %(default)s")
    try:
        print(prepare(parser.parse_args(arguments).cache_folder))
    except EmbeddedDataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
