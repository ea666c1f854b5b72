"""Models of the first layers: their vectors are the earlier layer's through the tower's own end, by every door."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from modeling_jina_clip import (
    JinaCLIPConfig,
    JinaCLIPModel,
    JinaCLIPTextConfig,
    JinaCLIPVisionConfig,
    save_published,
    shortened,
    with_earlier_layers,
)

DEPTH = 4
KINDS = ("v1", "v2", "projected")


def make_model(kind: str) -> JinaCLIPModel:
    """v1: ALiBi and gated GELU; v2: rotary positions and active adapters; projected: heads, and projections behind."""
    text = {"vocab_size": 99, "hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": DEPTH}
    text |= {"intermediate_size": 96, "embed_dim": 48}
    vision = {"embed_dim": 48, "width": 48, "head_width": 8, "layers": DEPTH, "image_size": 32, "patch_size": 8}
    whole = {}
    if kind == "v2":
        text |= {"mlp_type": "mlp", "position_embedding_type": "rotary", "type_vocab_size": 1, "pad_token_id": 1}
        text |= {"lora_adaptations": ["one", "two"], "default_lora_task": "two"}
    if kind == "projected":
        text |= {"proj_type": "mlp"}
        vision |= {"proj_type": "linear"}
        whole = {"add_projections": True, "projection_dim": 32}
    torch.manual_seed(0)
    config = JinaCLIPConfig(
        text_config=JinaCLIPTextConfig(**text), vision_config=JinaCLIPVisionConfig(**vision), **whole
    )
    model = JinaCLIPModel(config)
    for parameter in model.parameters():  # adapters and biases are zero at first: make them matter
        torch.nn.init.normal_(parameter, mean=0.02, std=0.15)
    return model.eval()


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids, mask = torch.randint(5, 99, (3, 7)), torch.ones(3, 7, dtype=torch.long)
    ids[0, 5:], mask[0, 5:] = 1, 0
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(2, 3, 32, 40)}


def by_hand(model: JinaCLIPModel, text_layers: int, image_layers: int) -> tuple[Tensor, Tensor]:
    """The earlier hidden states of the whole model, through pooling, final norm, head and projection."""
    given_inputs = inputs()
    states: dict[str, Tensor] = {}
    tower = model.text_model.backbone.encoder.layers[text_layers - 1]
    block = model.vision_model.blocks[image_layers - 1]
    hooks = [
        tower.register_forward_hook(lambda module, args, output: states.update(text=output)),
        block.register_forward_hook(lambda module, args, output: states.update(image=output)),
    ]
    with torch.no_grad():
        model(**given_inputs, output_hidden_states=True)  # which leaves padding in
        for hook in hooks:
            hook.remove()
        mask = given_inputs["attention_mask"][..., None].float()
        pooled = (states["text"] * mask).sum(dim=1) / mask.sum(dim=1)
        text = model.text_projection(model.text_model.proj(pooled))
        vision = model.vision_model
        image = model.visual_projection(vision.head(vision.norm(states["image"])[:, 0]))
    return F.normalize(text, dim=-1), F.normalize(image, dim=-1)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=5)
@given(text_layers=st.integers(1, DEPTH), image_layers=st.integers(1, DEPTH))
def test_vectors_are_the_earlier_layers_through_the_towers_own_end(
    kind: str, text_layers: int, image_layers: int
) -> None:
    model = make_model(kind)
    short = shortened(model, text_layers, image_layers)
    text, image = by_hand(model, text_layers, image_layers)
    with torch.no_grad():
        output = short(**inputs())
    assert torch.allclose(output.text_embeds, text, atol=1e-6)
    assert torch.allclose(output.image_embeds, image, atol=1e-6)
    with torch.no_grad():
        whole = model(**inputs())
    if text_layers < DEPTH:
        assert (whole.text_embeds - text).abs().max() > 1e-2
    if image_layers < DEPTH:
        assert (whole.image_embeds - image).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_saved_and_loaded_by_the_plain_classes(kind: str, tmp_path: Path) -> None:
    short = shortened(make_model(kind), 3, 1)
    short.save_pretrained(tmp_path)
    again = JinaCLIPModel.from_pretrained(tmp_path)
    assert (again.config.text_config.num_hidden_layers, again.config.vision_config.layers) == (3, 1)
    with torch.no_grad():
        before, after = short(**inputs()), again(**inputs())
    assert torch.equal(before.text_embeds, after.text_embeds)
    assert torch.equal(before.image_embeds, after.image_embeds)


def test_neither_model_changes_with_the_other() -> None:
    model = make_model("v1")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    short = shortened(model, 2, 2)
    with torch.no_grad():
        for parameter in short.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (model.config.text_config.num_hidden_layers, model.config.vision_config.layers) == (DEPTH, DEPTH)
    assert len(model.text_model.backbone.encoder.layers) == len(model.vision_model.blocks) == DEPTH
    shared = {item.data_ptr() for item in model.parameters()} & {item.data_ptr() for item in short.parameters()}
    assert shared == set()
    assert short.num_parameters() < model.num_parameters()


def test_type_mode_and_frozen_weights_stay() -> None:
    model = make_model("v1").to(torch.bfloat16).train()
    model.vision_model.requires_grad_(False)
    short = shortened(model, text_layers=1)
    assert short.dtype == torch.bfloat16
    assert short.training
    assert {parameter.requires_grad for parameter in short.vision_model.parameters()} == {False}
    assert len(short.vision_model.blocks) == DEPTH
    assert not shortened(model.eval(), image_layers=1).training


def test_a_merged_adapter_is_that_of_the_kept_layers() -> None:
    model = make_model("v2")
    short = shortened(model, 2, 2)
    with torch.no_grad():
        expected = short(**inputs())
        merged = short.merge_task_adapter()(**inputs())
    assert torch.allclose(merged.text_embeds, expected.text_embeds, atol=1e-5)
    assert model.config.text_config.lora_adaptations == ["one", "two"]


def test_encode_functions_and_the_published_layout(golden: Path, tmp_path: Path) -> None:
    model = JinaCLIPModel.from_pretrained(golden / "tiny_model")
    short = shortened(model, 1, 1)
    texts, images = ["a red bus", "two people"], [Image.linear_gradient("L").convert("RGB")]
    found = short.encode_text(texts), short.encode_image(images)
    with torch.no_grad():
        batch = model.processor(text=texts, images=images, padding=True, return_tensors="pt")
        output = short(**batch)
    assert np.allclose(found[0], output.text_embeds.numpy(), atol=1e-6)
    assert np.allclose(found[1], output.image_embeds.numpy(), atol=1e-6)
    assert np.abs(found[0] - model.encode_text(texts)).max() > 1e-3
    save_published(short, tmp_path / "published")
    again = JinaCLIPModel.from_pretrained(tmp_path / "published")
    assert again.config.text_config.num_hidden_layers == again.config.vision_config.layers == 1
    again.processor = model.processor
    assert np.allclose(again.encode_text(texts), found[0], atol=1e-6)


@pytest.mark.parametrize(
    ("numbers", "error", "words"),
    [
        ((None, None), ValueError, "both None: give how many of 4 text layers and 4 image layers to keep"),
        ((5, None), ValueError, "text_layers=5, but this tower has 4 layers; give a number from 1 to 4"),
        ((None, 0), ValueError, "image_layers=0, but this tower has 4 layers; give a number from 1 to 4"),
        ((-1, 2), ValueError, "text_layers=-1, but"),
        ((True, 2), TypeError, "text_layers=True must be a whole number from 1 to 4, or None"),
        ((2, 2.0), TypeError, r"image_layers=2\.0 must be a whole number"),
        (("2", 2), TypeError, "text_layers='2' must be a whole number"),
    ],
)
def test_nonsense_is_refused(numbers: tuple, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        shortened(make_model("v1"), *numbers)


def test_other_models_and_weights_elsewhere_are_refused() -> None:
    with pytest.raises(TypeError, match="model is a JinaCLIPTextModel and must be a JinaCLIPModel; of PEFT's wrapper"):
        shortened(make_model("v1").text_model, 1)
    with torch.device("meta"):
        model = JinaCLIPModel(make_model("v1").config)
    with pytest.raises(ValueError, match="only where the weights are in memory; load without device_map"):
        shortened(model, 1)


# --- beside the whole model's vectors ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=5)
@given(text=st.integers(1, DEPTH - 1), image=st.integers(1, DEPTH - 1), pooled_only=st.booleans())
def test_earlier_vectors_are_those_of_the_shorter_model(kind: str, text: int, image: int, pooled_only: bool) -> None:
    model = make_model(kind)
    with torch.no_grad():
        plain = model(**inputs(), pooled_only=pooled_only)
        with with_earlier_layers(model, text_layer=text, image_layer=image) as earlier:
            whole = model(**inputs(), pooled_only=pooled_only)
        expected = shortened(model, text, image)(**inputs())
    assert torch.equal(whole.text_embeds, plain.text_embeds)
    assert torch.equal(whole.image_embeds, plain.image_embeds)
    assert torch.allclose(earlier["text"], expected.text_embeds, atol=1e-6)
    assert torch.allclose(earlier["image"], expected.image_embeds, atol=1e-6)
    assert len(model.text_model.backbone.encoder.layers) == len(model.vision_model.blocks) == DEPTH


def gradients(model: JinaCLIPModel, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(3)
    sum((vector * torch.randn_like(vector)).sum() for vector in vectors.values()).backward()
    found = {name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None}
    model.zero_grad()
    return found


CHECKPOINTING = [None, {"use_reentrant": False}, {"use_reentrant": True}]


@pytest.mark.parametrize("checkpointing", CHECKPOINTING, ids=["kept", "checkpointed", "reentrant"])
@pytest.mark.parametrize("kind", KINDS)
def test_their_gradients_are_those_of_the_shorter_model(kind: str, checkpointing: dict | None) -> None:
    """Dropout is off, but the modules are in training mode, in which layers are computed again."""
    model = make_model(kind)
    short = shortened(model, 2, 3)
    for part in (model, short):
        part.train()
        part.vision_model.set_patch_dropout(0.0)
        for module in part.modules():
            module.attention_dropout = 0.0
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    output = short(**inputs())
    expected = gradients(short, {"text": output.text_embeds, "image": output.image_embeds})
    if checkpointing is not None:
        newer = getattr(model, "activation_checkpointing_enable", None)
        (newer or model.gradient_checkpointing_enable)(checkpointing)
        model.enable_input_require_grads()
    with with_earlier_layers(model, text_layer=2, image_layer=3) as earlier:
        model(**inputs())
    found = gradients(model, dict(earlier))
    assert expected.keys() == {name for name, value in found.items() if value.abs().max() > 0}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)


def test_adapters_inside_the_layers_do_not_matter() -> None:
    model = make_model("v1")
    model.add_adapter(LoraConfig(r=2, target_modules=["Wqkv", "q_proj", "w3"], task_type="FEATURE_EXTRACTION"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad(), with_earlier_layers(model.eval(), text_layer=1, image_layer=2) as earlier:
        model(**inputs())
    with torch.no_grad():
        expected = shortened(model, 1, 2)(**inputs())
    assert torch.allclose(earlier["text"], expected.text_embeds, atol=1e-6)
    assert torch.allclose(earlier["image"], expected.image_embeds, atol=1e-6)


def test_one_tower_alone_and_the_latest_pass() -> None:
    model = make_model("v1")
    given_inputs = inputs()
    pixels = given_inputs.pop("pixel_values")
    with torch.no_grad(), with_earlier_layers(model, image_layer=1) as earlier:
        model(**given_inputs)
        assert earlier == {}
        model(pixel_values=pixels)
        first = earlier["image"]
        model(pixel_values=pixels + 1)
        assert not torch.equal(first, earlier["image"])


def test_the_model_is_itself_again_after_an_error() -> None:
    model = make_model("v1")
    names = list(model.state_dict())
    with pytest.raises(ValueError, match="got neither"), with_earlier_layers(model, 1, 1):
        model()
    assert list(model.state_dict()) == names
    with with_earlier_layers(model, 1, 1), pytest.raises(ValueError, match="inside with_earlier_layers already"):
        with with_earlier_layers(model, 1):
            pass
    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    ("numbers", "error", "words"),
    [
        (
            (DEPTH, None),
            ValueError,
            "4 layers, and the last one is no earlier one; give a number from 1 to 3",
        ),
        ((None, 0), ValueError, "image_layer=0, but"),
        ((1.0, None), TypeError, r"text_layer=1\.0 must be a whole number from 1 to 3"),
    ],
)
def test_the_last_layer_is_no_earlier_one(numbers: tuple, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words), with_earlier_layers(make_model("v1"), *numbers):
        pass
