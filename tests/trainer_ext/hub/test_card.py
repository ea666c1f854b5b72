"""The model card: the figures of the run, metadata that the Hub accepts, and the author's own words."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from hub_upload import HubFolderError, build, verify
from modeling_jina_clip import JinaCLIPModel, JinaCLIPProcessor
from tests.hub_checkpoint import TOKEN, finished_run, run_record, v2_checkpoint
from tests.loopback_card_rules import card_errors
from trainer_ext.evaluation import figures
from trainer_ext.hub.run_record import NOT_SHARES, as_code, dataset_slug, table
from trainer_ext.recipe.recipe import load_recipe


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
    assert "license" not in metadata  # nobody stated one
    assert "language" not in metadata
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
        ({"license": "Apache 2.0"}, r"'Apache 2.0' is not an identifier of the Hub, did you mean 'apache-2.0'\?"),
        ({"license": "no-such licence: x"}, r"is not an identifier of the Hub"),
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


def with_run(golden: Path, folder: Path, recipe: str, *changes: str) -> Path:
    """The golden model as a run of that recipe leaves it."""
    shutil.copytree(golden / "tiny_model", folder)
    (folder / "run.json").write_text(json.dumps(run_record(recipe, *changes)))
    return folder


@pytest.fixture
def base(golden: Path, tmp_path: Path) -> Path:
    """A model to start from, in the cache of the Hub's client."""
    return Path(shutil.copytree(golden / "tiny_model", tmp_path / "hub/models--me--base-clip/snapshots" / ("0" * 40)))


def finetuned(golden: Path, place: Path, model: Path, *changes: str) -> Path:
    return with_run(golden, place / "run", "finetune", f"model={model}",
        f"sources.pictures.location={place}/secret-place/captions.csv", "sources.texts.location=pairs.csv", *changes,
    )  # fmt: skip


def test_card_tells_how_a_model_was_tuned(golden: Path, base: Path, tmp_path: Path) -> None:
    taught = f"teacher={{model: {base}, kind: vectors, weight: 0.5}}"
    checkpoint = finetuned(golden, tmp_path, base, "matryoshka={dims: [64, 32]}", taught)
    content = (build(checkpoint, tmp_path / "out") / "README.md").read_text()
    assert "Started from `me/base-clip`. LoRA of rank 16 (alpha 32) on text and vision, merged into" in content
    assert "A teacher's vectors beside the losses of the image-text and text side (weight 0.5)." in content
    assert "Matryoshka losses at 64, 32 dimensions. Gradient cache: whole batches as negatives," in content
    assert "embedded in chunks of 32 rows." in content
    assert "| tune | 100 | 0.0005 | 77 | 128 | 128 | image-text: InfoNCE, text: InfoNCE | pictures, texts |" in content
    assert "| pictures | image-text | local CSV files |\n| texts | text-pair | local CSV files |" in content
    assert ModelCard(content).data.base_model == "me/base-clip"
    assert card_errors(content) == []
    assert "secret-place" not in content
    assert str(tmp_path) not in content


CHANGED = "stages.0.text={sources: [texts], batch_size: 4, label_smoothing: 0.1, hardness: 5.0, temperature: 0.02}"
ADDED = (
    "stages.0.image_text={sources: [pictures], batch_size: 4, temperature: trained, matryoshka: {dims: [64, 32]}, "
    "alignment: 0.5, cross_uniformity: 0.25, captions_per_image: 2, short_caption: {principal_components: 4}}"
)
ALONE = ["stages.0.text=null", "evaluation.tasks=[{name: pictures, source: pictures}]"]
MINED = {"name": "mined", "task": "triplet", "format": "parquet", "location": "mined.parquet"}
MINED |= {"columns": {name: name for name in ("query", "positive", "negatives", "margins")}}
HARD = "stages.0.text={sources: [mined], batch_size: 4, loss: info_nce_plus}"


def test_what_a_recipe_adds_to_a_loss_is_told(golden: Path, base: Path, tmp_path: Path) -> None:
    """Otherwise two models with other objectives would have the same card."""
    checkpoint = finetuned(golden, tmp_path, base, ADDED, CHANGED)
    content = (build(checkpoint, tmp_path / "out") / "README.md").read_text()
    changed = "InfoNCE (2 captions a picture; Matryoshka at 64, 32; temperature trained)"
    image_text = f"{changed} + 0.5 alignment + 0.25 cross-uniformity + 1 short caption (4 principal components)"
    text = "InfoNCE (label smoothing 0.1; hardness 5; temperature 0.02)"
    assert f"| image-text: {image_text}, text: {text} |" in content
    assert card_errors(content) == []


def test_a_teacher_is_told_with_the_sides_that_were_taught(golden: Path, base: Path, tmp_path: Path) -> None:
    mined = tmp_path / "sources.yaml"
    mined.write_text(yaml.safe_dump([MINED]))
    pictures = finetuned(golden, tmp_path / "1", base, *ALONE, f"teacher={{model: {base}, kind: scores}}")
    content = (build(pictures, tmp_path / "one") / "README.md").read_text()
    assert "A teacher's scores beside the losses of the image-text side (weight 1)." in content
    changes = [
        f"sources=[{mined}]",
        "stages.0.image_text=null",
        "evaluation=null",
        HARD,
        "teacher={kind: margins, scale: 8.0, weight: 2}",
    ]
    checkpoint = with_run(golden, tmp_path / "run", "finetune", f"model={base}", *changes)
    content = (build(checkpoint, tmp_path / "two") / "README.md").read_text()
    assert (
        "A teacher's margins over hard negatives, from the sources' own column, beside the losses of the text side "
        "(weight 2, scale 8)."
    ) in content


def test_a_loss_of_ones_own_is_shown_by_its_name(golden: Path, tmp_path: Path) -> None:
    checkpoint = with_run(golden, tmp_path / "run", "openmoji")
    run = json.loads((checkpoint / "run.json").read_text())
    run["recipe"]["stages"][0]["text"]["loss"] = "my_loss"
    (checkpoint / "run.json").write_text(json.dumps(run))
    content = (build(checkpoint, tmp_path / "out") / "README.md").read_text()
    assert "| image-text: InfoNCE, text: my_loss |" in content


def test_base_models_by_option_by_manifest_and_unknown(golden: Path, tmp_path: Path) -> None:
    pushed = build(golden / "tiny_model", tmp_path / "pushed")
    checkpoint = finetuned(golden, tmp_path, pushed)
    unknown = (build(checkpoint, tmp_path / "out") / "README.md").read_text()
    assert "base_model" not in unknown
    assert "Started from a checkpoint that is not named here." in unknown
    manifest = json.loads((pushed / "manifest.json").read_text())
    (pushed / "manifest.json").write_text(json.dumps(manifest | {"repo_id": "me/pushed"}))
    assert "base_model: me/pushed\n" in (build(checkpoint, tmp_path / "out") / "README.md").read_text()
    named = (build(checkpoint, tmp_path / "out", base_model=["a/b", "c/d"]) / "README.md").read_text()
    assert ModelCard(named).data.base_model == ["a/b", "c/d"]
    assert "Started from `a/b` and `c/d`." in named
    assert card_errors(named) == []


def test_towers_that_start_from_checkpoints_are_told(golden: Path, base: Path, tmp_path: Path) -> None:
    text = base / "model.safetensors"
    checkpoint = with_run(golden, tmp_path / "run", "openmoji", "tokenizer=null", f"initialize={{text: {text}}}")
    content = (build(checkpoint, tmp_path / "out") / "README.md").read_text()
    assert "The text tower started from `me/base-clip`." in content
    vision = tmp_path / "eva.safetensors"
    shutil.copyfile(text, vision)
    (checkpoint / "run.json").write_text(
        json.dumps(run_record("openmoji", "tokenizer=null", f"initialize={{text: {text}, vision: {vision}}}"))
    )
    content = (build(checkpoint, tmp_path / "out") / "README.md").read_text()
    assert "The text and the vision tower started from `me/base-clip` and another that is not named here." in content


def test_card_lists_the_data_that_the_run_took(checkpoint: Path, golden: Path, tmp_path: Path) -> None:
    plain = (build(checkpoint, tmp_path / "out") / "README.md").read_text()
    assert "From random weights, preset `openmoji-small`." in plain
    assert "| openmoji-short | image-text | packaged table `openmoji/short_captions` (OpenMoji: CC BY-SA 4.0; " in plain
    hub = "{name: photos, task: image-text, format: hub, location: me/photos, revision: '" + "a1" * 20 + "', "
    checkpoint = with_run(
        golden, tmp_path / "run", "finetune", f"model={golden / 'tiny_model'}", "sources.texts.location=pairs.csv",
        f"sources.pictures={hub}columns: {{image: image, caption: caption}}}}",
        "stages.tune.image_text.sources=[photos]", "evaluation=null",
    )  # fmt: skip
    shares = {"image_text": {"photos": {"rows": 12800, "share": 1.0}}, "text": {"texts": {"rows": 3, "share": 0.25}}}
    (checkpoint / "metrics.json").write_text(json.dumps({"rows": [], "shares": shares}))
    content = (build(checkpoint, tmp_path / "out") / "README.md").read_text()
    where = "[me/photos](https://huggingface.co/datasets/me/photos), commit `a1a1a1a1`"
    assert f"| photos | image-text | {where} | 12,800 (100.0% of image-text) |" in content
    assert "| texts | text-pair | local CSV files | 3 (25.0% of text) |" in content
    assert ModelCard(content).data.datasets == ["me/photos"]
    assert card_errors(content) == []
    assert "Nothing was measured." in content
    (checkpoint / "sources").mkdir()
    (checkpoint / "sources" / "shares.json").write_text(json.dumps(shares | {"text": {}, "broken_rows": {}}))
    assert (
        "| texts | text-pair | local CSV files | 0 |" in (build(checkpoint, tmp_path / "out") / "README.md").read_text()
    )


def test_averaged_weights_have_the_record_of_their_run(golden: Path, base: Path, tmp_path: Path) -> None:
    checkpoint = finetuned(golden, tmp_path, base, "ema_decay=0.99")
    shutil.copytree(golden / "tiny_model", checkpoint / "ema")
    (checkpoint / "metrics.json").write_text(
        '{"rows": [{"name": "tune", "kind": "stage", "metrics": {"a/ndcg10": 0.5}}]}'
    )
    content = (build(checkpoint / "ema", tmp_path / "out") / "README.md").read_text()
    assert "Recipe `finetune`" in content
    assert "The weights are the run's moving average (decay 0.99)." in content
    assert "Nothing was measured." in content  # the figures are those of the other weights
    assert "moving average" not in (build(checkpoint, tmp_path / "out") / "README.md").read_text()


def test_languages_are_the_authors_or_the_text_towers(golden: Path, checkpoint: Path, tmp_path: Path) -> None:
    folder = build(checkpoint, tmp_path / "v1", language=["de", "en"])
    assert ModelCard((folder / "README.md").read_text()).data.language == ["de", "en"]
    with pytest.raises(HubFolderError, match=r"language 'German' is not an ISO 639 code"):
        build(checkpoint, tmp_path / "no", language=["German"])
    with pytest.raises(HubFolderError, match=r"base_model '/home/me/x' is not the name of a model on the Hub"):
        build(checkpoint, tmp_path / "no", base_model=["/home/me/x"])
    first, second = (tmp_path / "v1" / "README.md").read_text(), v2_card(golden, tmp_path)
    assert "The text tower is a JinaBERT" in first
    assert "2412.08802" not in first
    assert "The text tower is a Jina XLM-RoBERTa with rotary positions" in second
    assert "arXiv:2405.20204" in second
    assert "arXiv:2412.08802" in second
    assert "| `retrieval.query` | `Find \\| {it}: ` |" in second
    assert ModelCard(second).data.language is None  # nobody stated them
    assert card_errors(second) == []


def v2_card(golden: Path, place: Path) -> str:
    v2 = v2_checkpoint(golden, place / "v2", task_instructions={"retrieval.query": "Find | {it}: "})
    return (build(v2, place / "v2-hub") / "README.md").read_text()


def test_the_authors_own_words_survive_rebuilds(golden: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(golden / "tiny_model", tmp_path / "run"))
    (checkpoint / "card_notes.md").write_text("Trained on my {own} photos.\n\n```python\nraise SystemExit\n```\n")
    for _ in range(2):
        folder = build(checkpoint, tmp_path / "out")
        content = (folder / "README.md").read_text()
        assert "## Notes of the author\n\nTrained on my {own} photos.\n" in content
        assert content.index("## Results") < content.index("## Notes of the author") < content.index("## Limits")
        assert {"## Licence", "## Citation"} < set(content.splitlines())
    other = tmp_path / "other.md"
    other.write_text("Other words.")
    assert "Other words." in (build(checkpoint, tmp_path / "out", notes=other) / "README.md").read_text()
    with pytest.raises(HubFolderError, match=r"notes '.*nothing.md' cannot be read"):
        build(checkpoint, tmp_path / "out", notes=tmp_path / "nothing.md")
    other.write_text(f"my token is {TOKEN}")
    with pytest.raises(HubFolderError, match=r"README.md, line \d+, seems to hold a secret"):
        build(checkpoint, tmp_path / "out", notes=other)


@pytest.mark.slow
def test_programs_in_the_notes_are_not_run_by_verify(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("```python\nraise SystemExit\n```")
    folder = build(golden / "tiny_model", tmp_path / "out", notes=notes)
    assert verify(folder) == []
    assert "the card's 2 snippets run; 1 of its author's were not run" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["card_notes.md", "run.json", "metrics.json"])
def test_links_are_not_followed_into_the_card(checkpoint: Path, tmp_path: Path, name: str) -> None:
    """A card is public; a link in a folder from elsewhere may lead to any file of this machine."""
    folder = shutil.copytree(checkpoint, tmp_path / "run")
    (tmp_path / "secret").write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(HubFolderError, match=rf"{name} is a link"):
        build(folder, tmp_path / "out")


def test_names_are_shown_and_not_run() -> None:
    assert as_code("x` <img src=x onerror=alert(1)>\n# y") == "`x' <img src=x onerror=alert(1)> # y`"
    assert table(["stage"], ["<img src=x onerror=alert(1)>"]).endswith("| &lt;img src=x onerror=alert(1)&gt; |")


def test_code_in_a_table_is_shown_as_it_is() -> None:
    """Markdown decodes no entities inside a code span."""
    assert table(["task"], ["`Find <b> & | x: `"]).endswith("| `Find <b> & \\| x: ` |")
    assert table(["task"], ["`a` <img> `b`"]).endswith("| `a` &lt;img&gt; `b` |")


def test_a_chain_of_runs_is_told_from_their_own_records(golden: Path, base: Path, tmp_path: Path) -> None:
    """A stage of a run that started from the averaged model of another one, which started from the Hub's model."""
    first = finetuned(golden, tmp_path, base, "name=first run")
    shutil.copytree(golden / "tiny_model", first / "ema")
    second = with_run(
        golden, tmp_path / "second", "finetune", f"model={first / 'ema'}", "name=second",
        "sources.pictures.location=x.jsonl", "sources.texts.location=pairs.csv",
    )  # fmt: skip
    shutil.copytree(golden / "tiny_model", second / "stages" / "0-tune")
    third = with_run(
        golden, tmp_path / "third", "finetune", f"model={second / 'stages' / '0-tune'}", "stages.tune.max_length=64",
        "sources.pictures.location=x.jsonl", "sources.texts.location=pairs.csv",
    )  # fmt: skip
    record = json.loads((third / "run.json").read_text())
    (third / "run.json").write_text(json.dumps(record | {"commit": "abc+changes", "repository": "example.org/me/clip"}))
    (third / "sources").mkdir()
    (third / "sources" / "shares.json").write_text('{"broken_rows": {"pictures": 1312, "unused": 3}}')
    content = (build(third, tmp_path / "out") / "README.md").read_text()
    assert "commit `abc+changes` of `example.org/me/clip`. Started from an earlier run: recipe `second`, " in content
    assert " That run: Started from an earlier run: recipe `first run`, " in content
    assert " That run: Started from `me/base-clip`." in content
    assert ModelCard(content).data.base_model == "me/base-clip"
    assert "| trained up to 64 tokens, accepts 8,192 |" in content
    assert "Rows left out because they could not be used: 1,312 of `pictures`." in content
    assert str(tmp_path) not in content
    named = (build(third, tmp_path / "out", base_model=["a/b"]) / "README.md").read_text()
    assert "Started from `a/b`." in named
    assert card_errors(content) == []


def test_parts_of_a_run_have_its_record_until_then(golden: Path, base: Path, tmp_path: Path) -> None:
    """The figures are those of the model in the folder: not of a later stage, nor of the averaged weights."""
    stages = [
        {"name": name, "steps": 10, "learning_rate": 1e-3, "max_length": length,
         "text": {"sources": ["texts"], "batch_size": 8}}
        for name, length in (("short", 32), ("long", 64))
    ]  # fmt: skip
    run = finetuned(golden, tmp_path, base, f"stages={json.dumps(stages)}", "ema_decay=0.99")
    rows: list[dict[str, Any]] = [{"name": "chance", "kind": "reference", "metrics": {"a/ndcg10": 0.01}}]
    for name, figure in (("before training", 0.1), ("short", 0.2), ("long", 0.3), ("EMA", 0.4)):
        rows.append({"name": name, "kind": "stage", "metrics": {"a/ndcg10": figure}})
    (run / "metrics.json").write_text(json.dumps({"rows": rows}))
    for part in ("stages/0-short", "best", "ema", "checkpoint-15"):
        shutil.copytree(golden / "tiny_model", run / part)
    best = {"step": 12, "figure": "a/ndcg10", "figures": {"a/ndcg10": 0.35}}
    (run / "best" / "best.json").write_text(json.dumps(best))

    def card(part: str) -> str:
        content = (build(run / part, tmp_path / "out") / "README.md").read_text()
        assert "Recipe `finetune`" in content
        assert ModelCard(content).data.base_model == "me/base-clip"
        return content

    heads = {
        "": "chance | before training | short | long |",
        "stages/0-short": "chance | before training | short |",
        "best": "chance | step 12 |",
        "ema": "chance | EMA |",
    }
    figures = {"": "30.0", "stages/0-short": "20.0", "best": "35.0", "ema": "40.0"}
    for part, head in heads.items():
        content = card(part)
        assert f"| task | metric | {head}\n" in content
        assert f"| {figures[part]} |\n" in content
        assert ModelCard(content).data.eval_results[0].metric_value == float(figures[part]) / 100
    short, best_card, checkpoint = card("stages/0-short"), card("best"), card("checkpoint-15")
    assert "The weights are those after step 10." in short
    assert "| trained up to 32 tokens, accepts 8,192 |" in short
    assert "| long | " not in short
    assert "The weights are those after step 12, the best by `a/ndcg10`." in best_card
    assert "| long | 2 | " in best_card
    assert "The weights are those after step 15." in checkpoint
    assert "Nothing was measured." in checkpoint


def test_figures_that_are_no_shares_are_no_percentages_and_intervals_and_matches_are_told(
    golden: Path, tmp_path: Path
) -> None:
    checkpoint = finished_run(golden, tmp_path / "run")
    record = json.loads((checkpoint / "metrics.json").read_text())
    record["rows"][-1]["metrics"] |= {
        "shop/t2i_r1": 0.25,
        "shop/t2i_median_rank": 3.0,
        "mix/t2i_corrected_median_rank": 7.0,
        "validation/loss_text": 1.5,
        "same/threshold": 0.3125,
        "same/f1": 0.8,
    }
    record["rows"][-1]["intervals"] = {"shop/t2i_r1": [0.125, 0.375]}
    (checkpoint / "metrics.json").write_text(json.dumps(record))
    card = ModelCard.load(build(checkpoint, tmp_path / "hub") / "README.md")
    lines = [line.strip("| ").split(" | ") for line in card.text.splitlines() if line.count(" | ") > 2]
    last = {f"{cells[0]}/{cells[1]}": cells[-1] for cells in lines}
    assert last["shop/text to image recall@1"] == "25.0 (12.5, 37.5)"
    assert last["shop/text to image median_rank"] == "3"
    assert last["mix/text to image corrected_median_rank"] == "7"
    assert last["validation/loss_text"] == "1.5"
    assert "In brackets the 95% interval" in card.text
    assert "- `same`: a cosine of 0.312 or more is a match (F1 80.0)" in card.text
    names = {f"{found.dataset_name}/{found.metric_name}" for found in card.data.eval_results}
    assert {"shop/text to image recall@1", "same/f1"} <= names
    assert not [name for name in names if "rank" in name or "loss" in name or "threshold" in name]


def test_what_is_no_share_is_the_same_for_cards_and_reports() -> None:
    """Cards are made where the evaluation room is not installed, so they have a list of their own."""
    assert NOT_SHARES == figures.NOT_SHARES
