"""LoRA: what it trains, that it resumes to the same bits, and that its folders load wherever a model is loaded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForFeatureExtraction, PeftModel
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel
from transformers import __version__ as transformers_version

import hub_upload
from modeling_jina_clip import JinaCLIPModel
from tests.trainer_ext.tiny_run import make_model, make_processor, trained
from tests.trainer_ext.training.test_resume import assert_same_run
from trainer_ext.data.sources import load_sources
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.recipe.stages import LoraSpec
from trainer_ext.run.start import initial_model
from trainer_ext.training.lora import adapted_modules, add_lora, merged
from trainer_ext.training.trainer import JinaCLIPTrainer

TRANSFORMERS = tuple(int(part) for part in transformers_version.split(".")[:2])

LORA = ["lora={r: 2, alpha: 8, dropout: 0.1}", "save_steps=1", "save_total_limit=null"]
TEXTS = ["one red bar", "two is after"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained model."""
    folder = tmp_path_factory.mktemp("base")
    make_model().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


def lora_trainer(recipe_file: Path, base: Path, folder: Path, *overrides: str) -> JinaCLIPTrainer:
    from trainer_ext.run.start import training_arguments

    recipe = load_recipe(recipe_file, [f"model={base}", *LORA, *overrides])
    torch.manual_seed(recipe.seed)
    model, processor = initial_model(recipe)
    return JinaCLIPTrainer(
        model=model,
        args=training_arguments(recipe, folder),
        recipe=recipe,
        train_dataset=load_sources(recipe.used_sources()),
        processing_class=processor,
    )


@pytest.fixture(scope="module")
def finished(tiny_recipe: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> JinaCLIPTrainer:
    """A LoRA run with gradient cache, and its model folder in ``model/``."""
    folder = tmp_path_factory.mktemp("lora")
    trainer = trained(lora_trainer(tiny_recipe, base, folder, "gradient_cache_chunk_size=3"))
    trainer.save_model(str(folder / "model"))
    return trainer


def folder_of(finished: JinaCLIPTrainer) -> Path:
    return Path(finished.args.output_dir) / "model"


def vectors(model: JinaCLIPModel) -> np.ndarray:
    model.processor = make_processor()
    return model.eval().encode_text(TEXTS)


def test_only_the_adapters_and_the_temperature_are_trained(finished: JinaCLIPTrainer) -> None:
    own = make_model().state_dict()
    tuned = {name.replace(".base_layer.", "."): value for name, value in finished.model.state_dict().items()}
    changed = {name for name, value in own.items() if not torch.equal(value, tuned[name])}
    assert changed == {"logit_scale"}
    lora_b = {name: value for name, value in tuned.items() if ".lora_B." in name}
    # Every linear layer of both blocks: 4 in the text tower, 7 in the image tower; B starts at zero.
    assert len(lora_b) == 11
    assert all(value.abs().max() > 0 for value in lora_b.values())
    known = sum(len(group["params"]) for group in finished.optimizer.param_groups)
    assert known == 2 * 11 + 1


def test_the_model_folder_is_an_ordinary_one(finished: JinaCLIPTrainer) -> None:
    """Merged by PEFT's own formula: the same vectors as with the adapters beside the weights."""
    folder = folder_of(finished)
    assert load_file(folder / "model.safetensors").keys() == make_model().state_dict().keys()
    assert not (folder / "adapter_config.json").exists()
    expected = vectors(finished.model)
    assert np.abs(expected - vectors(make_model())).max() > 1e-3
    plain = JinaCLIPModel.from_pretrained(folder)
    np.testing.assert_allclose(vectors(plain), expected, atol=1e-6)
    assert torch.equal(plain.logit_scale, finished.model.logit_scale.cpu())
    reference = PeftModel.from_pretrained(make_model(), folder / "adapter").merge_and_unload()
    for name, value in reference.state_dict().items():
        if name != "logit_scale":
            torch.testing.assert_close(plain.state_dict()[name], value, rtol=0, atol=1e-7)


def test_merging_leaves_the_trained_model_alone(finished: JinaCLIPTrainer) -> None:
    before = {name: value.clone() for name, value in finished.model.state_dict().items()}
    merged(finished.model)
    assert all(torch.equal(value, before[name]) for name, value in finished.model.state_dict().items())


def test_loads_as_remote_code(finished: JinaCLIPTrainer, base: Path, tmp_path: Path) -> None:
    """Merged in AutoModel and SentenceTransformer; the adapter on the base model in both, and by PEFT alone."""
    expected = vectors(finished.model)
    hub = hub_upload.build(folder_of(finished), tmp_path / "hub")
    hub_base = hub_upload.build(base, tmp_path / "base")
    adapter = str(folder_of(finished) / "adapter")
    found = {
        "AutoModel": AutoModel.from_pretrained(hub, trust_remote_code=True).encode_text(TEXTS),
        "SentenceTransformer": SentenceTransformer(str(hub), trust_remote_code=True, device="cpu").encode(TEXTS),
    }
    if TRANSFORMERS >= (5, 6):  # 5.5 finds no name of an adapter unless the model's begin with "model."
        unmerged = AutoModel.from_pretrained(hub_base, trust_remote_code=True)
        unmerged.load_adapter(adapter)
        found["load_adapter"] = unmerged.eval().encode_text(TEXTS)
        stacked = SentenceTransformer(str(hub_base), trust_remote_code=True, device="cpu")
        stacked.load_adapter(adapter)
        found["SentenceTransformer.load_adapter"] = stacked.encode(TEXTS)
    wrapped = PeftModel.from_pretrained(AutoModel.from_pretrained(hub_base, trust_remote_code=True), adapter)
    found["PeftModel"] = wrapped.eval().encode_text(TEXTS)
    by_name = AutoPeftModelForFeatureExtraction.from_pretrained(adapter, trust_remote_code=True)
    found["AutoPeftModel"] = by_name.eval().encode_text(TEXTS)
    for name, value in found.items():
        np.testing.assert_allclose(value, expected, atol=1e-6, err_msg=name)


def test_the_runs_own_folders_load_in_sentence_transformers(finished: JinaCLIPTrainer, tmp_path: Path) -> None:
    """Before anything is built for the Hub, by the same files as there: unit vectors, merged and by the adapter."""
    expected = vectors(finished.model)
    folder = folder_of(finished)
    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6)
    if TRANSFORMERS >= (5, 6):  # see above
        model = SentenceTransformer(str(folder / "adapter"), trust_remote_code=True, device="cpu")
        np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6)
    hub = hub_upload.build(folder, tmp_path / "hub")
    names = [
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "1_Normalize/config.json",
    ]
    for name in names:
        assert json.loads((folder / name).read_text()) == json.loads((hub / name).read_text()), name
    assert (folder / "custom_st.py").read_bytes() == (hub / "custom_st.py").read_bytes()


def test_the_adapters_layers_are_written_in_order(finished: JinaCLIPTrainer) -> None:
    for folder in (folder_of(finished) / "adapter", Path(finished.args.output_dir) / "checkpoint-2"):
        names = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
        assert len(names) == 11
        assert names == sorted(names)


def test_adapters_without_their_weights_start_no_run(tiny_recipe: Path, finished: JinaCLIPTrainer) -> None:
    checkpoint = Path(finished.args.output_dir) / "checkpoint-2"
    with pytest.raises(FileNotFoundError, match=r"adapters without the weights .* start from .* stages/N-NAME"):
        load_recipe(tiny_recipe, [f"model={checkpoint}"])


# A boundary lies at 3.
@pytest.mark.parametrize("steps", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow)])
def test_resumes_to_the_same_bits(
    tiny_recipe: Path, base: Path, finished: JinaCLIPTrainer, tmp_path: Path, steps: int
) -> None:
    checkpoint = Path(finished.args.output_dir) / f"checkpoint-{steps}"
    resumed = trained(lora_trainer(tiny_recipe, base, tmp_path, "gradient_cache_chunk_size=3"), checkpoint)
    assert_same_run(resumed, finished)


def test_a_checkpoint_of_other_adapters_is_refused(
    tiny_recipe: Path, base: Path, finished: JinaCLIPTrainer, tmp_path: Path
) -> None:
    other = lora_trainer(tiny_recipe, base, tmp_path, "lora={r: 2, towers: [text]}")
    with pytest.raises(ValueError, match=r"holds other adapters than the recipe asks for .*vision_model"):
        other.train(str(Path(finished.args.output_dir) / "checkpoint-2"))


@pytest.mark.slow
def test_one_tower_and_named_modules(tiny_recipe: Path, base: Path, tmp_path: Path) -> None:
    """Adapters on the image tower's attention; the text tower is left out of the run altogether."""
    modules = "lora={r: 2, towers: [vision], target_modules: {vision: [q_proj, v_proj]}}"
    no_text = [f"stages.{stage}.text=null" for stage in range(3)]
    trainer = trained(lora_trainer(tiny_recipe, base, tmp_path, modules, *no_text))
    trained_names = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert trained_names == {
        "logit_scale",
        *(f"vision_model.blocks.0.attn.{p}_proj.lora_{k}.default.weight" for p in "qv" for k in "AB"),
    }
    own = make_model()
    np.testing.assert_array_equal(vectors(trainer.model), vectors(own))  # the text tower is the base's


def test_default_targets_are_the_linear_layers_of_the_blocks() -> None:
    names = adapted_modules(make_model(), LoraSpec())
    assert {name.rpartition(".")[2] for name in names if name.startswith("text")} == {
        "Wqkv", "out_proj", "gated_layers", "wo"
    }  # fmt: skip
    assert {name.rpartition(".")[2] for name in names if name.startswith("vision")} == {
        "q_proj", "k_proj", "v_proj", "proj", "w1", "w2", "w3"
    }  # fmt: skip
    # Its weight is read by itself, past any layer around it: an adapter there would be passed over.
    assert not any("patch_embed" in name for name in names)


def test_fresh_adapters_change_nothing() -> None:
    model = make_model()
    expected = vectors(model)
    add_lora(model, LoraSpec(r=2))
    np.testing.assert_array_equal(vectors(model), expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora={target_modules: {text: [query]}}"], r"target_modules.text: no linear layer is called query; .*Wqkv"),
        (["model=MODEL", "lora={}"], r"lora trains small changes of a trained model, but model .* none of its own"),
    ],
)
def test_what_cannot_be_adapted(
    tiny_recipe: Path, tiny_data: Path, base: Path, overrides: list[str], message: str
) -> None:
    overrides = [f"model={base}", *(item.replace("MODEL", str(tiny_data / "model.json")) for item in overrides)]
    with pytest.raises(ValueError, match=message):
        initial_model(load_recipe(tiny_recipe, overrides))


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["gradient_checkpointing=true", "gradient_cache_chunk_size=3"])
def test_memory_savers_reach_the_adapters_of_both_towers(
    tiny_recipe: Path, base: Path, tmp_path: Path, extra: str
) -> None:
    """Without dropout the adapters end where a plain run ends."""
    quiet = [f"stages.{stage}.patch_dropout=0.0" for stage in range(3)]
    quiet += ["lora={r: 2, dropout: 0.0}", "save_steps=8"]
    ends = []
    for folder, overrides in (("plain", quiet), ("saving", [*quiet, extra])):
        trainer = lora_trainer(tiny_recipe, base, tmp_path / folder, *overrides)
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer.model.text_model.config.attention_probs_dropout_prob = 0.0
        for layer in trainer.model.text_model.transformer.encoder.layers:
            layer.mixer.attention_dropout = 0.0
        trainer.train()
        ends.append({name: value for name, value in trainer.model.named_parameters() if ".lora_B." in name})
    for name, value in ends[0].items():
        assert value.abs().max() > 0
        torch.testing.assert_close(ends[1][name], value, rtol=2e-3, atol=2e-5, msg=name)
