"""What the Hub is known to check in a card's metadata before it takes a commit (``POST /api/validate-yaml``).

The wording follows its answers, as users have reported them. A rule that is not here may still exist there.
"""

import re
from typing import Any

import yaml

from trainer_ext.hub.card import LICENCES

BLOCK = re.compile(r"^(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(\r\n|\n|$))")
DATASET = r"^(?:[\w-]+\/)?[\w-.]+$"  # as the Hub prints it; in Python the hyphen has to stand last
DATASET_RULE = re.compile(r"(?:[\w-]+/)?[\w.-]+", re.ASCII)
MODEL_RULE = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*", re.ASCII)
LANGUAGE_RULE = re.compile(r"[a-z]{2,3}|code|multilingual")


def card_errors(content: str) -> list[str]:
    """One message for every rule that the card breaks; a card without metadata breaks none."""
    match = BLOCK.match(content)
    if match is None:
        return []
    try:
        data = yaml.safe_load(match[2])
    except yaml.YAMLError as error:
        return [f"YAML metadata error: {error}"]
    if not isinstance(data, dict):
        return ['"value" must be of type object']
    return [*_simple_errors(data), *_index_errors(data.get("model-index", []))]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _simple_errors(data: dict[str, Any]) -> list[str]:
    errors = []
    for value in _listed(data.get("license")):
        if value not in LICENCES:
            errors.append(f'"license" must be one of [{", ".join(sorted(LICENCES))}], got {value!r}')
    if "license_name" in data and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", str(data["license_name"])):
        errors.append(f'"license_name" with value "{data["license_name"]}" fails to match the required pattern')
    for value in _listed(data.get("language")):
        if not isinstance(value, str) or not LANGUAGE_RULE.fullmatch(value):
            errors.append(f'"language" with value "{value}" is not valid. It must be an ISO 639-1, 639-2 or 639-3 code')
    for value in _listed(data.get("base_model")):
        if not isinstance(value, str) or not MODEL_RULE.fullmatch(value):
            errors.append(f'"base_model" with value "{value}" is not valid. Use a model id from https://hf.co/models.')
    for value in _listed(data.get("datasets")):
        if not isinstance(value, str) or not DATASET_RULE.fullmatch(value):
            errors.append(f'"datasets" with value "{value}" fails to match the required pattern: /{DATASET}/')
    for key in ("tags", "metrics", "widget", "model-index"):
        if key in data and not isinstance(data[key], list):
            errors.append(f'"{key}" must be an array')
    for key in ("pipeline_tag", "library_name", "license_link"):
        if key in data and not isinstance(data[key], str):
            errors.append(f'"{key}" must be a string')
    return errors + [
        f'"tags[{i}]" must be a string' for i, v in enumerate(_listed(data.get("tags"))) if type(v) is not str
    ]


def _index_errors(index: Any) -> list[str]:
    """The rules of model-index: names, tasks, data sets and metrics have to be there, and data sets to be ids."""
    errors = []
    for i, model in enumerate(index if isinstance(index, list) else []):
        place = f"model-index[{i}]"
        if not isinstance(model.get("name"), str) or not model["name"]:
            errors.append(f'"{place}.name" is required')
        if not isinstance(model.get("results"), list):
            errors.append(f'"{place}.results" is required')
            continue
        for j, result in enumerate(model["results"]):
            errors += _result_errors(f"{place}.results[{j}]", result)
    return errors


def _result_errors(place: str, result: dict[str, Any]) -> list[str]:
    required = {"task.type": result.get("task", {}).get("type")}
    required |= {f"dataset.{key}": result.get("dataset", {}).get(key) for key in ("type", "name")}
    metrics = result.get("metrics")
    for k, metric in enumerate(metrics or [{}]):
        required |= {f"metrics[{k}].{key}": metric.get(key) for key in ("type", "value")}
    errors = [f'"{place}.{key}" is required' for key, value in required.items() if value is None]
    kind = required["dataset.type"]
    if kind is not None and not DATASET_RULE.fullmatch(str(kind)):
        errors.append(f'"{place}.dataset.type" with value "{kind}" fails to match the required pattern: /{DATASET}/')
    for k, metric in enumerate(metrics or []):
        value = metric.get("value")
        if isinstance(value, float) and not -1e300 < value < 1e300:
            errors.append(f'"{place}.metrics[{k}].value" must be a finite number')
    return errors
