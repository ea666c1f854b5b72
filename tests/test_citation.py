"""CITATION.cff: what the format requires (https://citation-file-format.github.io), and both papers."""

import tomllib
from typing import Any

import yaml

from tests.source_imports import ROOT

CITATION: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PERSON, ENTITY = {"family-names", "given-names"}, {"name"}


def test_software_has_what_the_format_requires() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["type"] == "software"
    assert {"message", "title", "authors", "license"} <= CITATION.keys()
    assert CITATION["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]


def test_references_are_both_papers() -> None:
    papers = {paper["url"].removeprefix("https://arxiv.org/abs/"): paper for paper in CITATION["references"]}
    assert set(papers) == {"2405.20204", "2412.08802"}
    for number, paper in papers.items():
        assert {"type", "title", "authors", "year"} <= paper.keys()
        assert [item["value"] for item in paper["identifiers"]] == [f"arXiv:{number}"]
        assert paper["authors"][0] == {"family-names": "Koukounas", "given-names": "Andreas"}
    for author in [*CITATION["authors"], *(author for paper in papers.values() for author in paper["authors"])]:
        assert author.keys() in (PERSON, ENTITY)
