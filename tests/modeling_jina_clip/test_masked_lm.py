"""The masked-language-model head: its loss, its shared weights, its files, and pre-training with the stock Trainer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    pipeline,
)

from modeling_jina_clip import JinaCLIPTextConfig, JinaCLIPTextForMaskedLM, JinaCLIPTextModel

ROOT = Path(__file__).parents[2]
SIZES = {"embed_dim": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ROTARY = {"position_embedding_type": "rotary", "mlp_type": "mlp", "layer_norm_eps": 1e-5}


def fresh(**changes) -> JinaCLIPTextForMaskedLM:
    torch.manual_seed(0)
    return JinaCLIPTextForMaskedLM(JinaCLIPTextConfig(**{**SIZES, "vocab_size": 1000, **changes})).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three texts of 9, 5 and 3 tokens, six of them to be guessed."""
    torch.manual_seed(1)
    ids = torch.randint(5, 1000, (3, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [5], [3]])).long()
    labels = torch.full_like(ids, -100)
    for row, column in ((0, 1), (0, 2), (0, 8), (1, 0), (2, 2), (2, 1)):
        labels[row, column] = ids[row, column]
        ids[row, column] = 4
    return ids * mask, mask, labels


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [{}, ROTARY], ids=["alibi", "rotary"])
def test_loss_is_the_plain_cross_entropy_of_all_positions(kind: dict, training: bool) -> None:
    """Values and gradients: the fast path that skips positions without a label against the one that does not."""
    ids, mask, labels = batch()
    model = fresh(**kind, **NO_DROPOUT).train(training)
    plain = model(ids, mask).logits  # (3, 9, 1000)
    assert plain.shape == (3, 9, 1000)
    per_token = -plain.log_softmax(-1)[labels != -100].gather(1, labels[labels != -100][:, None])
    assert per_token.std() > 0.05
    expected = torch.autograd.grad(per_token.mean(), list(model.parameters()))
    output = model(ids, mask, labels=labels)
    torch.testing.assert_close(output.loss, per_token.mean(), rtol=0, atol=1e-6)
    torch.testing.assert_close(output.logits, plain[labels != -100] if training else plain, rtol=0, atol=1e-5)
    for gradient, (name, parameter) in zip(expected, model.named_parameters(), strict=True):
        found = torch.autograd.grad(output.loss, parameter, retain_graph=True)[0]
        torch.testing.assert_close(found, gradient, rtol=0, atol=1e-6, msg=name)
    assert model(ids, mask, labels=labels, num_items_in_batch=24).loss.item() == pytest.approx(
        6 / 24 * output.loss.item(), rel=1e-6
    )


def test_padded_texts_are_as_good_as_alone() -> None:
    ids, mask, labels = batch()
    model = fresh(**NO_DROPOUT).train()
    together = model(ids, mask, labels=labels)
    alone = [model(i[None, : m.sum()], labels=w[None, : m.sum()]) for i, m, w in zip(ids, mask, labels, strict=True)]
    torch.testing.assert_close(together.logits, torch.cat([one.logits for one in alone]), rtol=0, atol=1e-5)
    # States of every layer are wanted: this path does not leave padding out of the linear layers.
    padded = model(ids, mask, labels=labels, output_hidden_states=True)
    assert len(padded.hidden_states) == 3
    torch.testing.assert_close(together.loss, padded.loss, rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_to_guess_is_no_loss_and_no_nan(training: bool) -> None:
    ids, mask, labels = batch()
    model = fresh().train(training)
    output = model(ids, mask, labels=torch.full_like(labels, -100))
    assert output.loss.item() == 0
    assert output.logits.shape == ((0, 1000) if training else (3, 9, 1000))
    output.loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("kind", [{}, ROTARY], ids=["alibi", "rotary"])
def test_word_embeddings_are_shared_saved_once_and_read_back(tmp_path: Path, kind: dict) -> None:
    model = fresh(**kind)
    shared = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is shared
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "cls.predictions.decoder.bias" in names
    assert "cls.predictions.decoder.weight" not in names
    again, info = JinaCLIPTextForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    ids, mask, _ = batch()
    assert torch.equal(again(ids, mask).logits, model(ids, mask).logits)
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path)) is JinaCLIPTextForMaskedLM
    tower = AutoModel.from_pretrained(tmp_path)  # the head is left behind, nothing else
    assert type(tower) is JinaCLIPTextModel
    assert torch.equal(tower(ids, mask).last_hidden_state, model.text_model(ids, mask).last_hidden_state)
    tower.save_pretrained(tmp_path / "tower")
    with pytest.raises(ValueError, match=r"missing keys: cls.predictions.decoder.bias, cls.predictions.transform"):
        JinaCLIPTextForMaskedLM.from_pretrained(tmp_path / "tower")


def test_resizing_the_vocabulary_keeps_the_sharing() -> None:
    model = fresh()
    model.resize_token_embeddings(1010)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model(torch.tensor([[1, 2]])).logits.shape == (1, 2, 1010)
    assert len(model.get_output_embeddings().bias) == model.config.vocab_size == 1010


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False.*use tie_word_embeddings=True"),
        ({**ROTARY, "lora_adaptations": ["sts"]}, r"lora_adaptations=\['sts'\].*use lora_adaptations=None"),
    ],
)
def test_what_cannot_share_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fresh(**change)


def head_weights(norm: str = "LayerNorm", bias: str = "bias") -> dict[str, torch.Tensor]:
    """A head as BERT's and flash-attention's code name it."""
    shapes = {"transform.dense.weight": (64, 64), "transform.dense.bias": (64,), bias: (1000,)}
    shapes |= {f"transform.{norm}.weight": (64,), f"transform.{norm}.bias": (64,)}
    torch.manual_seed(2)
    return {f"cls.predictions.{name}": torch.randn(shape) for name, shape in shapes.items()}


@torch.no_grad()
@pytest.mark.parametrize(("norm", "bias"), [("LayerNorm", "bias"), ("layer_norm", "decoder.bias")])
def test_public_masked_language_models_come_with_their_head(golden: Path, norm: str, bias: str) -> None:
    weights = load_file(golden / "jina_bert_v2_style.safetensors")
    weights = {"bert." + name: tensor for name, tensor in weights.items()} | head_weights(norm, bias)
    words = weights["bert.embeddings.word_embeddings.weight"]
    model = fresh()
    assert model.initialize(weights | {"cls.predictions.decoder.weight": words}).fresh == []
    states = torch.randn(4, 64)
    dense = F.linear(states, *(weights[f"cls.predictions.transform.dense.{part}"] for part in ("weight", "bias")))
    scale, shift = (weights[f"cls.predictions.transform.{norm}.{part}"] for part in ("weight", "bias"))
    expected = F.layer_norm(F.gelu(dense), (64,), scale, shift, 1e-12) @ words.T + weights[f"cls.predictions.{bias}"]
    torch.testing.assert_close(model.cls(states), expected)
    with pytest.raises(ValueError, match=r"word_embeddings.weight' and differ"):
        model.initialize(weights | {"cls.predictions.decoder.weight": words + 1})
    del weights["cls.predictions.transform.dense.bias"]
    with pytest.raises(ValueError, match=r"without a tensor there: cls.predictions.transform.dense.bias"):
        model.initialize(weights)


def test_a_bare_tower_leaves_the_head_fresh_and_says_so(golden: Path) -> None:
    report = fresh().initialize(golden / "jina_bert_v2_style.safetensors")
    assert sorted(report.fresh) == sorted(head_weights(bias="decoder.bias"))


@pytest.mark.parametrize("kind", [{}, ROTARY], ids=["alibi", "rotary"])
def test_its_own_folder_initialises_both_the_tower_and_the_next_one(tmp_path: Path, kind: dict) -> None:
    source = fresh(**kind)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    source.save_pretrained(tmp_path)
    target = fresh(**kind)
    assert target.initialize(tmp_path).fresh == []
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_the_stock_trainer_learns_masked_words(golden: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(golden / "tiny_model", trust_remote_code=False)
    texts = ["the cat sat on a mat", "a dog ran", "the cat ran", "a dog sat on the mat"] * 8
    rows = Dataset.from_dict({"text": texts}).map(lambda row: tokenizer(row["text"]), remove_columns="text")
    model = fresh(**NO_DROPOUT)
    arguments = TrainingArguments(
        tmp_path / "run",
        max_steps=30,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)
    trainer = Trainer(model, arguments, collator, rows, rows.select(range(4)), processing_class=tokenizer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(6.9, abs=0.4)  # ln(1000): the sum over both micro-batches is divided once
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]
    assert trainer.evaluate()["eval_loss"] < losses[0]
    trainer.save_model(tmp_path / "saved")
    assert trainer.model.get_output_embeddings().weight is trainer.model.get_input_embeddings().weight
    guess = pipeline(
        "fill-mask", model=JinaCLIPTextForMaskedLM.from_pretrained(tmp_path / "saved"), tokenizer=tokenizer
    )
    assert len(guess("the [MASK] sat on a mat", top_k=3)) == 3


METRICS = """
import json, sys
import torch
from transformers import Trainer, TrainingArguments
from modeling_jina_clip import JinaCLIPTextConfig, JinaCLIPTextForMaskedLM

def batch(rows):
    length = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    labels = torch.where((ids % 3 == 0) & (ids > 0), ids, -100)
    return {"input_ids": ids.masked_fill(labels > 0, 4), "attention_mask": (ids > 0).long(), "labels": labels}

def guessed(prediction):
    logits, labels = prediction.predictions, prediction.label_ids
    assert logits.shape[:-1] == labels.shape and logits.shape[-1] == 200, (logits.shape, labels.shape)
    wanted = labels != -100
    rest = logits[wanted] - logits[wanted].max(-1, keepdims=True)
    right = torch.tensor(rest).log_softmax(-1).gather(1, torch.tensor(labels[wanted])[:, None])
    return {"texts": len(labels), "tokens": int(wanted.sum()), "perplexity": right.mean().neg().exp().item()}

torch.manual_seed(0)
sizes = {"embed_dim": 64, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
model = JinaCLIPTextForMaskedLM(JinaCLIPTextConfig(vocab_size=200, **sizes))
rows = [torch.randint(5, 200, (3 + 5 * i % 11,)).tolist() for i in range(13)]  # lengths and counts that do not divide
options = TrainingArguments(sys.argv[1], per_device_eval_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True)
trainer = Trainer(model, options, batch, eval_dataset=rows, compute_metrics=guessed)
found = trainer.evaluate()
assert trainer.predict(rows).predictions.shape[0] == 13
if trainer.is_world_process_zero():
    print("RESULT", json.dumps({**found, "hidden": sum(token % 3 == 0 for row in rows for token in row)}))
"""


def evaluated(folder: Path, *launcher: str) -> dict[str, float]:
    script = folder / "metrics.py"
    script.write_text(METRICS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(script), str(folder / "run")]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(next(line for line in result.stdout.splitlines() if line.startswith("RESULT"))[7:])


@pytest.mark.slow
def test_the_stock_trainer_evaluates_with_metrics(tmp_path: Path) -> None:
    found = evaluated(tmp_path)
    assert (found["eval_texts"], found["eval_tokens"]) == (13, found["hidden"])
    assert 100 < found["eval_perplexity"] < 400  # near the 200 of chance


@pytest.mark.slow
def test_two_processes_evaluate_to_the_same_metrics(tmp_path: Path) -> None:
    alone = evaluated(tmp_path)
    together = evaluated(tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    assert together["eval_tokens"] == alone["eval_tokens"] > 20
    assert together["eval_perplexity"] == pytest.approx(alone["eval_perplexity"], rel=1e-5)


def test_a_saved_folder_loads_where_this_package_is_installed(tmp_path: Path) -> None:
    """The head is for training and is not served: of the code, only the configuration lies in its folder."""
    model = fresh()
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.py")] == ["configuration_jina_clip.py"]
    assert list(json.loads((tmp_path / "config.json").read_text())["auto_map"]) == ["AutoConfig"]
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(again) is JinaCLIPTextForMaskedLM
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    ids, labels = torch.tensor([[2, 5, 7]]), torch.tensor([[-100, 9, -100]])
    expected = model(ids, labels=labels).loss.item()
    assert again(ids, labels=labels).loss.item() == pytest.approx(expected, abs=1e-5)


def test_a_file_with_a_foreign_tensor_is_refused(tmp_path: Path) -> None:
    model = fresh()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"cls.seq_relationship.bias": torch.zeros(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 unexpected keys: cls.seq_relationship.bias"):
        JinaCLIPTextForMaskedLM.from_pretrained(tmp_path)
