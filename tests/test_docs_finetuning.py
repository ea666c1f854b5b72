"""The fine-tuning guide: its recipes train as shown, its figures are the model's."""

import re
from pathlib import Path

import pandas
import pytest
import torch
import yaml
from PIL import Image

from modeling_jina_clip import JinaCLIPConfig, JinaCLIPModel, JinaCLIPProcessor
from tests.source_imports import ROOT
from trainer_ext.__main__ import main
from trainer_ext.recipe.reading import find_resource
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.recipe.stages import LoraSpec, trained_parts
from trainer_ext.training.lora import add_lora
from trainer_ext.training.model_parts import train_only

GUIDE = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")
RECIPES = {yaml.safe_load(text)["name"]: text for text in re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.M | re.S)}


@pytest.fixture(scope="module")
def workspace(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model's folder, 24 pictures with captions, and pairs of texts."""
    folder = tmp_path_factory.mktemp("guide")
    for part in (JinaCLIPModel, JinaCLIPProcessor):
        part.from_pretrained(golden / "tiny_model").save_pretrained(folder / "outputs" / "openmoji")
    (folder / "pictures").mkdir()
    names = [f"{number}.png" for number in range(24)]
    for number, name in enumerate(names):
        Image.new("RGB", (40, 30), (10 * number, 255 - 10 * number, 90)).save(folder / "pictures" / name)
    captions = [f"shade {number}" for number in range(24)]
    pandas.DataFrame({"file": names, "caption": captions}).to_csv(folder / "captions.csv", index=False)
    pairs = pandas.DataFrame(
        {"query": [f"what is {n}" for n in range(24)], "positive": [f"it is {n}" for n in range(24)]}
    )
    pairs.to_csv(folder / "pairs.csv", index=False)
    return folder


def short(stages: int) -> list[str]:
    overrides = [f"stages.{n}.{key}" for n in range(stages) for key in ("steps=2", "warmup_steps=1", "max_length=12")]
    return [*overrides, "disable_tqdm=true", "save_steps=2"]


@pytest.mark.parametrize(
    "name", [name if name == "locked-texts" else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_recipes_train(name: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    file = workspace / f"{name}.yaml"
    file.write_text(RECIPES[name])
    recipe = load_recipe(file)
    sizes = [f"stages.{n}.{side}.batch_size=8" for n, stage in enumerate(recipe.stages) for side, _ in stage.sides()]
    out = workspace / "runs" / name
    assert main([str(file), "--output_dir", str(out), *short(len(recipe.stages)), *sizes]) == 0
    assert (out / "adapter").is_dir() == (recipe.lora is not None)
    assert (out / "ema").is_dir() == ("ema_decay" in recipe.training)


def test_the_packaged_recipe_is_the_one_that_is_shown(workspace: Path) -> None:
    file = workspace / "shown.yaml"
    file.write_text(RECIPES["my-pictures"])
    places = [f"model={workspace / 'outputs' / 'openmoji'}"]
    shown, packaged = load_recipe(file, places), load_recipe("finetune", places)
    assert (shown.stages, shown.lora) == (packaged.stages, packaged.lora)
    assert {**packaged.training, **shown.training} == packaged.training
    assert shown.evaluation == packaged.evaluation
    assert [source.holdout for source in shown.sources] == [source.holdout for source in packaged.sources]


def test_figures_of_the_memory_table() -> None:
    config = JinaCLIPConfig.from_json_file(find_resource("models", "jina-clip-v1"))
    rows = re.findall(r"^\| (all|`\[.*?\]`|LoRA, r = \d+) \| ([\d.]+) M \| (.*?) \|$", GUIDE, re.M)
    assert len(rows) == 5
    for label, millions, sizes in rows:
        with torch.device("meta"):
            model = JinaCLIPModel(config)
            lora = LoraSpec(r=int(label.split()[-1])) if label.startswith("LoRA") else None
            if lora is not None:
                add_lora(model, lora)
        trainable = yaml.safe_load(label.strip("`")) if label.startswith("`") else None
        train_only(model, trained_parts(trainable, lora))
        trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
        assert f"{trained / 1e6:.1f}" == millions, label
        held = sum(value.numel() for value in model.parameters())
        expected = [4 * held, 4 * trained, 8 * trained, 2 * trained]
        assert sizes == " | ".join(f"{size / 1e9:.2f} GB" for size in expected), label
