"""Sources by themselves, for commands that train nothing: a source list, or whatever file has a key ``sources``."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer_ext.recipe.checks import source_problems
from trainer_ext.recipe.problems import RecipeError, describe_validation, nearest, raise_problems, with_source_names
from trainer_ext.recipe.reading import expand_sources, find_resource, read_yaml
from trainer_ext.recipe.schema import Source, Strict


class _Sources(Strict):
    sources: list[Source]


def load_source_list(path_or_name: str | Path) -> list[Source]:
    """The checked sources of a file: a list, a recipe, or tasks. Relative locations are taken from its folder.

    Raises:
        RecipeError: everything that is wrong with the sources, one line per problem.
        FileNotFoundError: no such file, and no packaged source list of that name.

    >>> [source.name for source in load_source_list("openmoji")][:2]
    ['openmoji-short', 'openmoji-short-concepts']
    """
    path = find_resource("sources", path_or_name)
    content = read_yaml(path)
    items = content.get("sources") if isinstance(content, dict) else content
    if not isinstance(items, list) or not items:
        raise RecipeError(f"{path} lists no sources: expected a list of items with name, task and location.")
    tree: dict[str, Any] = {"sources": expand_sources(items, path.parent)}
    try:
        sources = _Sources.model_validate(tree).sources
    except ValidationError as error:
        raise_problems(str(path), with_source_names(describe_validation(error, _Sources, (), ()), tree))
        raise
    raise_problems(str(path), with_source_names(list(source_problems(sources)), tree))
    return sources


def find_source(sources: list[Source], name: str, origin: str | Path) -> Source:
    """The source of this name.

    Raises:
        RecipeError: there is none; names those there are and the nearest.
    """
    names = [source.name for source in sources]
    if name in names:
        return sources[names.index(name)]
    close = nearest(name, names)
    hint = f" Did you mean {close!r}?" if close else ""
    raise RecipeError(f"{origin} has no source {name!r}.{hint} Its sources are {', '.join(names)}.")
