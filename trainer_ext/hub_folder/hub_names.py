"""The names that the Hub accepts in a card: licences, languages, models, data sets.

The Hub refuses a commit whose card breaks these rules; here they are told before anything is built. Licences:
https://huggingface.co/docs/hub/repositories-licenses.
"""

import difflib
import re

from .errors import HubFolderError

_LICENCES = (
    "afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 "
    "bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 "
    "cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 "
    "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 "
    "cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 "
    "etalab-2.0 eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 "
    "lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 "
    "openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib"
)
LICENCES = frozenset(_LICENCES.split())
# JavaScript's \w, as the Hub reads these, knows no letters beyond ASCII.
DATASET_NAME = re.compile(r"(?:[\w-]+/)?[\w.-]+", re.ASCII)
MODEL_NAME = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
LICENCE_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def check_licence(licence: str, name: str | None = None, link: str | None = None) -> None:
    """Raise ``HubFolderError`` unless the Hub knows the licence, or it is "other" with a name of its own.

    >>> check_licence("cc-by-sa-4.0")
    >>> check_licence("Apache 2.0")
    Traceback (most recent call last):
    trainer_ext.hub_folder.errors.HubFolderError: license 'Apache 2.0' is no identifier of the Hub, did you mean
    'apache-2.0'? See https://huggingface.co/docs/hub/repositories-licenses, or use 'other' with --license_name
    """
    if licence not in LICENCES:
        close = difflib.get_close_matches(licence.lower().replace(" ", "-"), LICENCES, n=1)
        hint = f", did you mean {close[0]!r}?" if close else "."
        raise HubFolderError(
            f"license {licence!r} is no identifier of the Hub{hint} See "
            "https://huggingface.co/docs/hub/repositories-licenses, or use 'other' with --license_name"
        )
    if licence != "other" and (name or link):
        raise HubFolderError(
            f"license {licence!r} has a name and a text; --license_name and --license_link are for 'other'"
        )
    if licence == "other" and not (name and LICENCE_NAME.fullmatch(name)):
        raise HubFolderError(
            f"license 'other' needs a name of small letters, digits and hyphens, got {name!r}; "
            "give --license_name such as my-terms-1.0"
        )
    if link is not None and not re.fullmatch(r"https://[^\s\"'<>]+", link):
        raise HubFolderError(f"license_link {link!r} is no address; give one that begins with https://")


def check_languages(languages: list[str]) -> None:
    """Raise ``HubFolderError`` unless all are codes of two or three letters, or "multilingual".

    >>> check_languages(["en", "de"])
    """
    if bad := [language for language in languages if not LANGUAGE.fullmatch(language)]:
        raise HubFolderError(
            f"language {bad[0]!r} is no ISO 639 code; give two or three small letters, or 'multilingual'"
        )


def check_base_models(names: list[str]) -> None:
    """Raise ``HubFolderError`` unless all look like names of models on the Hub.

    >>> check_base_models(["jinaai/jina-clip-v1"])
    """
    if bad := [name for name in names if not MODEL_NAME.fullmatch(name) or "--" in name or ".." in name]:
        raise HubFolderError(f"base_model {bad[0]!r} is no name of a model on the Hub; give owner/name, and no path")


def dataset_slug(name: str) -> str:
    """A name as the Hub wants data sets called in its index of results.

    >>> dataset_slug("concepts_short@64")
    'concepts_short-64'
    """
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-") or "data"
