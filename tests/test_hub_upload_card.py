"""The model card: the figures of the run, metadata that the Hub accepts, and the author's own words."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from hub_upload import HubFolderError, build
from modeling_jina_clip import JinaCLIPModel, JinaCLIPProcessor
from tests.hub_checkpoint import finished_run
from tests.loopback_card_rules import card_errors
from trainer_ext.hub_folder.hub_names import dataset_slug
from trainer_ext.recipe import load_recipe


@pytest.fixture(scope="module")
def checkpoint(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(golden, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(checkpoint, tmp_path_factory.mktemp("hub") / "tiny-clip")


def test_card_shows_the_measured_table(built: Path) -> None:
    card = ModelCard.load(built / "README.md")
    assert "| task | metric | chance | before training | triplets |" in card.text
    assert "| concepts short | text to image recall@5 | 2.9 | 3.1 | 31.4 |" in card.text
    assert "| words | ndcg@10 | - | 12.0 | 42.0 |" in card.text
    for stage in load_recipe("openmoji").stages:
        row = f"| {stage.name} | {stage.steps} | {stage.learning_rate} | {stage.max_length} | "
        assert f"{row}{stage.image_text.batch_size} | {stage.text.batch_size} | " in card.text
    assert "Recipe `openmoji`, seed " in card.text
    found = {(r.dataset_name, r.metric_type, r.metric_name, r.metric_value) for r in card.data.eval_results}
    assert found == {
        ("concepts short", "recall_at_5", "text to image recall@5", 0.314),
        ("concepts short@64", "recall_at_5", "text to image recall@5", 0.2),
        ("words", "ndcg_at_10", "ndcg@10", 0.42),
    }
    metadata = yaml.safe_load(card.content.split("---")[1])
    assert metadata["model-index"][0]["name"] == "tiny-clip"
    assert metadata["license"] == "apache-2.0"
    assert "2405.20204" in card.text


def test_metadata_is_what_the_hub_accepts(built: Path) -> None:
    """`dataset.type` has to be an id, as the Hub's own answer says; the name may be for people."""
    content = (built / "README.md").read_text()
    card = ModelCard(content)
    assert card_errors(content) == []
    assert {(found.dataset_type, found.dataset_name) for found in card.data.eval_results} == {
        ("concepts_short", "concepts short"),
        ("concepts_short-64", "concepts short@64"),
        ("words", "words"),
    }
    data = card.data.to_dict()
    again = ModelCardData(**yaml.safe_load(card.data.to_yaml()))
    assert again.to_dict() == data == yaml.safe_load(content.split("---")[1])
    assert card_errors(content.replace("concepts_short-64", "concepts short@64")) != []
    assert dataset_slug("größe 3/x") == "gr-e-3-x"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"license": "Apache 2.0"}, r"'Apache 2.0' is no identifier of the Hub, did you mean 'apache-2.0'\?"),
        ({"license": "no-such licence: x"}, r"is no identifier of the Hub"),
        ({"license": "other"}, r"needs a name of small letters, digits and hyphens, got None; give --license_name"),
        ({"license": "other", "license_name": "My Terms"}, r"got 'My Terms'"),
        ({"license": "mit", "license_name": "my-terms"}, r"are for 'other'"),
        ({"license": "other", "license_name": "x", "license_link": "file:///x"}, r"begins with https://"),
    ],
)
def test_licences_the_hub_would_refuse_are_told_at_once(
    checkpoint: Path, tmp_path: Path, options: dict[str, str], complaint: str
) -> None:
    with pytest.raises(HubFolderError, match=complaint):
        build(checkpoint, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_licence_of_ones_own(checkpoint: Path, tmp_path: Path) -> None:
    own = {"license": "other", "license_name": "my-terms-1.0", "license_link": "https://example.org/terms"}
    content = (build(checkpoint, tmp_path / "out", **own) / "README.md").read_text()
    assert {key: ModelCard(content).data[key] for key in own} == own
    assert card_errors(content) == []
    assert "Weights: [my-terms-1.0](https://example.org/terms)." in content


def test_checkpoint_without_measurements_still_builds(golden: Path, tmp_path: Path) -> None:
    """What `save_pretrained` alone writes is enough."""
    model, processor = (part.from_pretrained(golden / "tiny_model") for part in (JinaCLIPModel, JinaCLIPProcessor))
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    card = (build(tmp_path / "saved", tmp_path / "out") / "README.md").read_text()
    assert "Nothing was measured" in card
    assert "model-index" not in card
