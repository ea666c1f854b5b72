"""LoRA's adapters are merged like the models that they make: against PEFT, and against the run's own folder."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from modeling_jina_clip import JinaCLIPModel
from tests.trainer_ext.merging.families import assert_equal_weights, make_folder, weights_of
from tests.trainer_ext.tiny_run import make_processor
from trainer_ext import merge
from trainer_ext.recipe.stages import LoraSpec
from trainer_ext.training.lora import ADAPTER_FOLDER, add_lora, save_adapter, save_merged


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``; ``run`` as a LoRA run leaves its model, with ``adapter`` inside; ``checkpoint-3`` as it checkpoints."""
    folder = tmp_path_factory.mktemp("lora")
    make_folder(folder / "base")
    model = JinaCLIPModel.from_pretrained(folder / "base")
    add_lora(model, LoraSpec(r=2, alpha=8.0))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
        model.logit_scale += 0.25
    (folder / "checkpoint-3").mkdir()
    (folder / "run" / ADAPTER_FOLDER).mkdir(parents=True)
    save_adapter(model, folder / "checkpoint-3")
    save_merged(model, folder / "run")
    for path in (folder / "checkpoint-3", folder / "run", folder / "run" / ADAPTER_FOLDER):
        make_processor().save_pretrained(path)
    return folder


def test_a_checkpoint_is_the_runs_model(run: Path, tmp_path: Path) -> None:
    for scale in (0.5, 1.0):
        whole = merge(run / "base", [run / "run"], tmp_path / f"whole-{scale}", scale=scale)
        said: list[str] = []
        adapters = merge(run / "base", [run / "checkpoint-3"], tmp_path / f"a-{scale}", scale=scale, say=said.append)
        assert said == []
        assert_equal_weights(adapters, whole)
    assert_equal_weights(tmp_path / "a-1.0", run / "run")


def test_adapters_alone_keep_the_bases_temperature_and_say_so(run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    found = weights_of(merge(run / "base", [run / "run" / "adapter"], tmp_path / "m", scale=1.0, say=said.append))
    reference = PeftModel.from_pretrained(JinaCLIPModel.from_pretrained(run / "base"), run / "run" / "adapter")
    for name, value in reference.merge_and_unload().state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-7)
    assert torch.equal(found["logit_scale"], weights_of(run / "base")["logit_scale"])
    assert len(said) == 1
    assert "adapters without a temperature" in said[0]


def test_a_base_that_is_gone_cannot_be_compared(run: Path, tmp_path: Path) -> None:
    moved = spoiled(run / "checkpoint-3", tmp_path / "moved", base_model_name_or_path="/gone/base")
    said: list[str] = []
    merge(run / "base", [moved], tmp_path / "m", say=said.append)
    assert [line.partition("trained on ")[2][:26] for line in said] == ["/gone/base, which is not h"]


def test_the_lineage_has_the_adapters_hashes(run: Path, tmp_path: Path) -> None:
    record = json.loads((merge(run / "base", [run / "checkpoint-3"], tmp_path / "m") / "merge.json").read_text())
    assert {*record["models"][0]["sha256"]} == {"adapter_model.safetensors", "temperature.safetensors"}


def spoiled(folder: Path, to: Path, **changes: object) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    content = json.loads((to / "adapter_config.json").read_text())
    (to / "adapter_config.json").write_text(json.dumps(content | changes))
    return to


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "holds adapters with use_dora, which is more than low-rank changes of weights"),
        ({"bias": "all"}, "holds adapters with bias 'all', which is more"),
        ({"peft_type": "LOHA"}, "only those of LoRA can be merged"),
        ({"r": 3}, "do not fit the model that they are put on"),
        ({"target_modules": ["nothing"]}, "do not fit the model that they are put on"),
    ],
)
def test_other_adapters_are_refused(run: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    adapters = spoiled(run / "checkpoint-3", tmp_path / "spoiled", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        merge(run / "base", [adapters], tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert str(adapters) in str(caught.value)


def test_adapters_of_another_model_are_refused(run: Path, tmp_path: Path) -> None:
    elsewhere = make_folder(tmp_path / "elsewhere", seed=3)
    adapters = spoiled(run / "checkpoint-3", tmp_path / "spoiled", base_model_name_or_path=str(elsewhere))
    with pytest.raises(ValueError, match=r"were trained on .*elsewhere, not on .*base: give it as BASE"):
        merge(run / "base", [adapters], tmp_path / "m")


def test_adapters_are_no_base(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds LoRA's adapters, which are no BASE"):
        merge(run / "checkpoint-3", [run / "base"], tmp_path / "m")
    assert load_file(run / "checkpoint-3" / "temperature.safetensors").keys() == {"logit_scale"}
