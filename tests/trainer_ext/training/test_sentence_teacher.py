"""A teacher of texts from sentence-transformers: its own vectors, prompts and limits, in whole runs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel

from tests.trainer_ext.losses.test_joint_options import IMAGES, PAIRS, QUIET, TRIPLETS, state_of
from tests.trainer_ext.own_process import in_two_processes, train_rank
from tests.trainer_ext.tiny_run import RunFactory, assert_same_weights, entries_of, make_tokenizer, trained
from tests.trainer_ext.training.test_teacher import by
from trainer_ext.recipe.problems import RecipeError
from trainer_ext.recipe.recipe import load_recipe
from trainer_ext.recipe.stages import TeacherSpec
from trainer_ext.run.start import model_fingerprint
from trainer_ext.training.teacher import SentenceTeacher, teacher_of

OF_TEXTS = ", sides: [text]"
PROMPTS = {"query": "is ", "document": "the "}


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with mean pooling, dropout that must not count, and instructions of its own."""
    folder = tmp_path_factory.mktemp("sentences")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        BertModel(BertConfig(vocab_size=64, hidden_dropout_prob=0.5, **sizes)).save_pretrained(folder / "bert")
    make_tokenizer().save_pretrained(folder / "bert")
    SentenceTransformer(modules=[Transformer(str(folder / "bert")), Pooling(16)], prompts=PROMPTS, device="cpu").save(
        str(folder / "model")
    )
    return folder / "model"


def batch_and_texts(trainer) -> tuple[dict, dict[str, list[str]]]:
    """A batch, and its texts as the student's tokens have them."""
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    tokenizer = trainer.processing_class.tokenizer
    columns = {name: batch["text"][name]["input_ids"] for name in ("query", "positive", "negatives")}
    return batch, {name: tokenizer.batch_decode(ids, skip_special_tokens=True) for name, ids in columns.items()}


def test_its_vectors_are_those_of_encode(make_trainer: RunFactory, tmp_path: Path, sentences: Path) -> None:
    """Queries and documents by its own prompts; no random number is drawn, and no gradient reaches it."""
    trainer = make_trainer(tmp_path, *QUIET, IMAGES % "", TRIPLETS % "", by(sentences, "margins", OF_TEXTS))
    batch, texts = batch_and_texts(trainer)
    state = torch.get_rng_state()
    vectors = trainer.teacher(batch["teacher"], trainer.args)
    assert torch.equal(state, torch.get_rng_state())
    assert vectors.keys() == {"query", "positive", "negatives"}
    assert "image_text" not in batch["teacher"]
    stored = SentenceTransformer(str(sentences), device="cpu")
    for name, found in vectors.items():
        prompt = PROMPTS["query" if name == "query" else "document"]
        expected = torch.from_numpy(stored.encode(texts[name], prompt=prompt))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert not found.requires_grad
        assert not found.is_inference()
    assert all(not parameter.requires_grad for parameter in trainer.teacher.model.parameters())


def test_the_prompts_of_the_source_come_before_its_own(
    make_trainer: RunFactory, tmp_path: Path, sentences: Path
) -> None:
    prompts = "sources.triplets.prompts={query: 'number '}"
    trainer = make_trainer(tmp_path, *QUIET, IMAGES % "", TRIPLETS % "", prompts, by(sentences, "margins", OF_TEXTS))
    batch, texts = batch_and_texts(trainer)
    assert all(text.startswith("number ") for text in texts["query"])
    vectors = trainer.teacher(batch["teacher"], trainer.args)
    stored = SentenceTransformer(str(sentences), device="cpu")
    torch.testing.assert_close(vectors["query"], torch.from_numpy(stored.encode(texts["query"])), rtol=1e-5, atol=1e-6)
    documents = torch.from_numpy(stored.encode(texts["positive"], prompt="the "))
    torch.testing.assert_close(vectors["positive"], documents, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["scores", "vectors", "margins"])
def test_every_kind_trains_and_the_gradient_cache_changes_nothing(
    make_trainer: RunFactory, tmp_path: Path, sentences: Path, kind: str
) -> None:
    own = [*QUIET, IMAGES % "", TRIPLETS % "", by(sentences, kind, OF_TEXTS)]
    plain = trained(make_trainer(tmp_path / "plain", *own, dropout=0.0))
    assert all(entry["teacher_text"] > 0 and "teacher_image_text" not in entry for entry in entries_of(plain))
    cached = trained(make_trainer(tmp_path / "cached", *own, "gradient_cache_chunk_size=1", dropout=0.0))
    for name, value in state_of(plain).items():
        torch.testing.assert_close(value, state_of(cached)[name], rtol=0.0, atol=2e-5)
    again = trained(make_trainer(tmp_path / "plain", *own, dropout=0.0), tmp_path / "plain" / "checkpoint-2")
    assert_same_weights(plain.model, again.model)


@pytest.mark.slow
def test_two_processes_equal_one(make_trainer: RunFactory, tmp_path: Path, sentences: Path) -> None:
    own = [*QUIET, IMAGES % "", PAIRS % "", by(sentences, "scores", OF_TEXTS)]
    assert in_two_processes(train_rank, make_trainer.recipe, tmp_path / "two", own, 0.0) == [0, 0]
    steps = [entry for entry in torch.load(tmp_path / "two" / "log-0.pt") if "loss" in entry]
    one = trained(make_trainer(tmp_path / "one", *own, dropout=0.0))
    for left, right in zip(steps, entries_of(one), strict=True):
        assert left["teacher_text"] == pytest.approx(right["teacher_text"], rel=1e-4, abs=1e-6)


def test_it_embeds_no_pictures(tiny_recipe: Path, sentences: Path) -> None:
    with pytest.raises(RecipeError, match=r"teacher\.sides: is .* for texts alone\. Give sides: \[text\]"):
        load_recipe(tiny_recipe, [by(sentences)])


def test_a_width_without_a_cosine_is_told(make_trainer: RunFactory, tmp_path: Path, sentences: Path) -> None:
    wide = Path(shutil.copytree(sentences, tmp_path / "wide"))
    model = SentenceTransformer(str(wide), device="cpu")
    model.truncate_dim = 8
    model.save(str(wide))
    trainer = make_trainer(tmp_path / "run", *QUIET, IMAGES % "", PAIRS % "", by(wide, "vectors", OF_TEXTS))
    with pytest.raises(ValueError, match=r"its vectors have 8 dimensions and the model's 16.* use kind: scores"):
        trainer.train()


def test_code_of_its_own_never_runs(tiny_recipe: Path, sentences: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(sentences, tmp_path / "own"))
    modules = json.loads((own / "modules.json").read_text())
    modules[0]["type"] = "mine.Transformer"
    (own / "modules.json").write_text(json.dumps(modules))
    ran = tmp_path / "ran"
    (own / "mine.py").write_text(f"open({str(ran)!r}, 'w')\nclass Transformer: pass\n")
    recipe = load_recipe(tiny_recipe, [by(own, more=OF_TEXTS)])
    with pytest.raises(ValueError, match=r"cannot be loaded: modules.json asks for the class 'mine.Transformer'"):
        teacher_of(recipe)
    assert not ran.exists()
    (own / "modules.json").write_text("[]")
    with pytest.raises(ValueError, match="cannot be loaded"):
        SentenceTeacher(TeacherSpec(model=str(own), kind="scores", sides=["text"]), str(own))


def test_a_teacher_with_another_part_is_another_one(sentences: Path, tmp_path: Path) -> None:
    """Parts of it lie in folders of their own; a resumed run compares all of them."""
    copy = Path(shutil.copytree(sentences, tmp_path / "copy"))
    assert model_fingerprint(copy) == model_fingerprint(sentences)
    [pooling] = copy.glob("1_*/config.json")
    content = json.loads(pooling.read_text())
    pooling.write_text(json.dumps(yaml.safe_load(json.dumps(content).replace("mean", "max"))))
    assert model_fingerprint(copy) != model_fingerprint(sentences)
