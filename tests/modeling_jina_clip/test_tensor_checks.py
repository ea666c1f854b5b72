"""Wrong shapes and forms of what the model is called with, and the two ways to ask for tuples."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from modeling_jina_clip import JinaCLIPModel, JinaCLIPTextConfig, JinaCLIPTextForMaskedLM
from modeling_jina_clip.modeling_jina_clip import JinaCLIPOutput

IDS, PIXELS = torch.tensor([[2, 5, 7, 3], [2, 9, 3, 0]]), torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


@pytest.fixture(scope="module")
def model(golden: Path) -> JinaCLIPModel:
    return JinaCLIPModel.from_pretrained(golden / "tiny_model")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m: m.get_text_features(m.processor.tokenizer(["a"], return_tensors="pt")),
            TypeError,
            r"input_ids must be a tensor, got BatchEncoding; unpack it: model\(\*\*tokenizer\(",
        ),
        (
            lambda m: m.get_image_features(m.processor.image_processor(Image.new("RGB", (8, 8)), return_tensors="pt")),
            TypeError,
            r"pixel_values must be a tensor, got BatchFeature; unpack it: model\(\*\*image_processor\(",
        ),
        (lambda m: m(m.processor(text=["a"], return_tensors="pt")), TypeError, "input_ids must be a tensor, got Batch"),
        (lambda m: m.get_text_features([[2, 5, 3]]), TypeError, "input_ids must be a tensor, got list"),
        (lambda m: m(IDS[0]), ValueError, r"input_ids of shape \(4,\) must be \(batch, length\); a single text is"),
        (lambda m: m(IDS[None]), ValueError, r"input_ids of shape \(1, 2, 4\) must be \(batch, length\)$"),
        (
            lambda m: m.get_text_features(IDS, torch.ones(2, 5)),
            ValueError,
            r"attention_mask of shape \(2, 5\) must have the shape of input_ids, \(2, 4\); pass the tokenizer's",
        ),
        (lambda m: m.get_text_features(IDS, torch.ones(1, 4)), ValueError, r"attention_mask of shape \(1, 4\)"),
        (lambda m: m.get_text_features(IDS, torch.ones(2, 1, 4, 4)), ValueError, r"attention_mask of shape \(2, 1, 4"),
        (
            lambda m: m.get_image_features(PIXELS[0]),
            ValueError,
            r"pixel_values of shape \(3, 32, 32\) must be \(batch, 3, height, width\), as image processors make them",
        ),
        (lambda m: m(pixel_values=PIXELS[:, :1]), ValueError, r"pixel_values of shape \(2, 1, 32, 32\) must be"),
        (lambda m: m(pixel_values=PIXELS.movedim(1, -1)), ValueError, r"pixel_values of shape \(2, 32, 32, 3\) must"),
    ],
)
def test_wrong_forms_are_refused(model: JinaCLIPModel, call: Callable, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(model)


@torch.no_grad()
def test_features_are_tensors_whatever_form_is_asked_for(golden: Path, model: JinaCLIPModel) -> None:
    texts, images = model.get_text_features(IDS), model.get_image_features(PIXELS)
    for value in (True, False):
        assert torch.equal(model.get_text_features(IDS, return_dict=value), texts)
        assert torch.equal(model.get_image_features(PIXELS, return_dict=value), images)
    inputs = model.processor(text=["a cat"], images=[Image.new("RGB", (8, 8))], return_tensors="pt")
    one = model.get_image_features(pixel_values=inputs["pixel_values"])
    torch.testing.assert_close(model(**inputs).vision_model_output.pooler_output, one, rtol=0, atol=1e-5)

    tuples = JinaCLIPModel.from_pretrained(golden / "tiny_model", return_dict=False)
    tuples.config.text_config.return_dict = tuples.config.vision_config.return_dict = False
    assert torch.equal(tuples.get_text_features(IDS), texts)
    assert torch.equal(tuples.get_image_features(PIXELS), images)
    assert isinstance(tuples(IDS, PIXELS), tuple)
    output = tuples(IDS, PIXELS, return_dict=True)
    assert isinstance(output, JinaCLIPOutput)
    torch.testing.assert_close(output.text_model_output.pooler_output, texts, rtol=0, atol=1e-5)
    assert len(tuples.encode_text(["a cat"])) == 1


@torch.no_grad()
def test_the_masked_language_model_gives_tuples_too() -> None:
    sizes = {"embed_dim": 8, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 50}
    model = JinaCLIPTextForMaskedLM(JinaCLIPTextConfig(**sizes)).eval()
    logits = model(IDS).logits
    assert torch.equal(model(IDS, return_dict=False)[0], logits)
    model.config.return_dict = False
    assert torch.equal(model(IDS)[0], logits)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["pt", "np", None])
def test_a_processor_of_nothing(model: JinaCLIPModel, kind: str | None) -> None:
    for options in ({}, {"padding": True}):
        both = model.processor(text=[], images=[], return_tensors=kind, **options)
        assert both.keys() == {"input_ids", "attention_mask", "pixel_values"}
        texts = model.processor(text=(), return_tensors=kind, return_token_type_ids=True, return_attention_mask=False)
        assert texts.keys() == {"input_ids", "token_type_ids"}
        assert [len(value) for value in (*both.values(), *texts.values())] == [0] * 5
        assert both["pixel_values"].shape == (0, 3, 32, 32)
        if kind:
            assert both["input_ids"].shape == both["attention_mask"].shape == (0, 0)
            assert str(both["input_ids"].dtype).endswith("int64")
    if kind == "pt":
        output = model(**both)
        assert output.text_embeds.shape == output.image_embeds.shape == (0, 64)
