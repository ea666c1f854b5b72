"""``merge``: from folders to a folder that every door loads; and what does not fit together, in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer

import hub_upload
from modeling_jina_clip import JinaCLIPImageProcessor, JinaCLIPModel, JinaCLIPProcessor
from tests.trainer_ext.merging.families import assert_equal_weights, weights_of
from tests.trainer_ext.tiny_run import make_model, make_processor
from trainer_ext import merge
from trainer_ext.__main__ import main
from trainer_ext.locks import held

TEXTS = ["one red bar", "two is after"]


def test_the_ends_are_the_models(family: Path, tmp_path: Path) -> None:
    assert_equal_weights(merge(family / "base", [family / "a"], tmp_path / "0", scale=0.0), family / "base")
    assert_equal_weights(merge(family / "base", [family / "a"], tmp_path / "1"), family / "a")
    assert_equal_weights(merge(family / "a", [family / "a"], tmp_path / "same", scale=0.3), family / "a")


def test_between_them(family: Path, tmp_path: Path) -> None:
    """Against the formula over whole models; the temperature's logarithm is a tensor like the others."""
    folder = merge(family / "base", [family / "a", family / "b"], tmp_path / "ab", [0.6, 0.4], scale=0.5)
    base, a, b = (weights_of(family / name) for name in ("base", "a", "b"))
    found = weights_of(folder)
    for name, start in base.items():
        expected = start + 0.5 * (0.6 * (a[name] - start) + 0.4 * (b[name] - start))
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6)
    scales = [weights["logit_scale"].item() for weights in (base, a, b)]
    assert found["logit_scale"].item() == pytest.approx(0.5 * scales[0] + 0.3 * scales[1] + 0.2 * scales[2])
    assert len({*scales}) == 3


def test_the_type_is_the_bases(family: Path, tmp_path: Path) -> None:
    half = weights_of(merge(family / "halved", [family / "a"], tmp_path / "h", scale=0.5))
    assert {tensor.dtype for tensor in half.values()} == {torch.bfloat16}
    whole = weights_of(merge(family / "a", [family / "halved"], tmp_path / "w", scale=0.5))
    assert {tensor.dtype for tensor in whole.values()} == {torch.float32}


def test_sharded_weights_are_read(family: Path, tmp_path: Path) -> None:
    JinaCLIPModel.from_pretrained(family / "a").save_pretrained(tmp_path / "cut", max_shard_size="20KB")
    make_processor().save_pretrained(tmp_path / "cut")
    assert len([*(tmp_path / "cut").glob("model-*.safetensors")]) > 1
    assert_equal_weights(merge(family / "base", [tmp_path / "cut"], tmp_path / "m"), family / "a")
    shard = sorted((tmp_path / "cut").glob("model-*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(ValueError, match=r"names files that are not in .*cut; copy the folder again"):
        merge(family / "base", [tmp_path / "cut"], tmp_path / "n")


def test_every_door_loads_the_folder(family: Path, tmp_path: Path) -> None:
    folder = merge(family / "base", [family / "a"], tmp_path / "m", scale=0.5)
    expected = JinaCLIPModel.from_pretrained(folder).encode_text(TEXTS)
    found = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu").encode(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    built = hub_upload.build(folder, tmp_path / "hub")
    np.testing.assert_allclose(JinaCLIPModel.from_pretrained(built).encode_text(TEXTS), expected, atol=1e-6)


def test_the_lineage_names_the_parents(family: Path, tmp_path: Path) -> None:
    folder = merge(family / "base", [family / "a", family / "b"], tmp_path / "m", [0.6, 0.4], 0.5)
    record = json.loads((folder / "merge.json").read_text())
    assert record["base"]["folder"] == str(family / "base")
    assert [model["weight"] for model in record["models"]] == [0.6, 0.4]
    assert record["scale"] == 0.5
    base, a = weights_of(family / "base"), weights_of(family / "a")
    length = sum(tensor.square().sum() for tensor in base.values()).sqrt()
    gap = sum((a[name] - base[name]).square().sum() for name in base).sqrt()
    assert record["models"][0]["distance"] == pytest.approx(float(gap / length), rel=1e-5)


def test_the_command(family: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [str(family / name) for name in ("base", "a", "b")]
    words += ["--weights", "0.6", "0.4", "--scale", "0.5", "--output_dir", str(tmp_path / "m")]
    assert main(["merge", *words]) == 0
    printed = capfd.readouterr().out
    assert "weight 0.6" in printed
    assert "scale 0.5; the merged model is " in printed
    again = merge(family / "base", [family / "a", family / "b"], tmp_path / "n", [0.6, 0.4], 0.5)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert main(["merge", *words]) == 2
    assert "is there already; give a new folder" in capfd.readouterr().err


def test_models_without_a_common_start_are_warned_of(family: Path, tmp_path: Path) -> None:
    stranger = make_model()
    torch.manual_seed(1)
    for parameter in stranger.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    stranger.save_pretrained(tmp_path / "s")
    make_processor().save_pretrained(tmp_path / "s")
    said: list[str] = []
    merge(family / "base", [tmp_path / "s"], tmp_path / "m", say=said.append)
    assert any("as models without a common start are" in line for line in said)
    said.clear()
    merge(family / "base", [family / "a"], tmp_path / "n", say=said.append)
    assert said == []


# --- what is refused -----------------------------------------------------------------------------------------------


def other_tokenizer(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text().replace('"bar":', '"pub":')
    (folder / "tokenizer.json").write_text(text)


def change_json(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return work


def rewrite(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        weights = weights_of(folder)
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return work


def other_pictures(folder: Path) -> None:
    JinaCLIPProcessor(
        JinaCLIPImageProcessor(size=16, mean=(0.5, 0.5, 0.5)), make_processor().tokenizer
    ).save_pretrained(folder)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "tokenizer": (other_tokenizer, "the tokenizers differ: 'bar' is token "),
    "longest text": (
        change_json("tokenizer_config.json", lambda c: c.update(model_max_length=8)),
        "the tokenizers differ: model_max_length is 32 and 8",
    ),
    "pictures": (other_pictures, "the image processors differ: mean is "),
    "configuration": (
        change_json("config.json", lambda c: c["text_config"].update(layer_norm_eps=1e-5)),
        "text_config.layer_norm_eps is 1e-12 in the first and 1e-05 in the second",
    ),
    "padding": (
        change_json("config.json", lambda c: c["text_config"].update(pad_token_id=1)),
        "text_config.pad_token_id is 0 in the first and 1 in the second",
    ),
    "width of vectors": (change_json("config.json", lambda c: c.update(truncate_dim=8)), "truncate_dim is None in"),
    "a tensor too few": (rewrite(lambda w: w.pop("logit_scale")), "1 tensors of the first are not in the second"),
    "a tensor too many": (rewrite(lambda w: w.update(more=torch.ones(1))), "1 tensors of the second are not in the fi"),
    "shape": (
        rewrite(lambda w: w.update({"vision_model.cls_token": torch.ones(1, 1, 8)})),
        "vision_model.cls_token has shape (1, 1, 16) in the first and (1, 1, 8) in the second",
    ),
    "not finite": (
        rewrite(lambda w: w["logit_scale"].fill_(torch.nan)),
        "logit_scale of the merged model is not finite: ",
    ),
    "whole numbers": (
        rewrite(lambda w: w.update({name: (10 * value).to(torch.int8) for name, value in w.items()})),
        "is of type int8, so it is quantised",
    ),
    "eight bits": (
        rewrite(lambda w: w.update({name: value.to(torch.float8_e4m3fn) for name, value in w.items()})),
        "is of type float8_e4m3fn, so it is quantised",
    ),
    "damaged": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"no"),
        "model.safetensors is damaged or not safetensors",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "has no config.json, so it is no model's"),
    "another model": (
        change_json("config.json", lambda c: c.update(model_type="clip")),
        "its config.json is of model_type 'clip', not 'jina_clip'",
    ),
    "nothing there": (shutil.rmtree, "there is no such folder"),
}


@pytest.mark.parametrize(("spoil", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_one_line(
    family: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(family / "a", tmp_path / "a")
    spoil(tmp_path / "a")
    assert main(["merge", str(family / "base"), str(tmp_path / "a"), "--output_dir", str(tmp_path / "m")]) == 2
    [line] = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("error: ")
    assert message in line
    assert str(tmp_path / "a") in line
    assert {path.name for path in tmp_path.iterdir()} <= {"a"}


def test_a_model_counts_once(family: Path, tmp_path: Path) -> None:
    """Given twice, by whatever name, its weight would be another one than was written."""
    (tmp_path / "link").symlink_to(family / "a")
    for again in (family / "a", f"{family}/b/../a", tmp_path / "link"):
        with pytest.raises(ValueError, match=r"is the same folder as .*a: give each model once"):
            merge(family / "base", [family / "a", again], tmp_path / "m")
    said: list[str] = []
    merge(family / "base", [family / "base", family / "a"], tmp_path / "n", say=said.append)
    assert [line.partition(" is ")[2][:12] for line in said] == ["BASE itself:"]


@pytest.mark.parametrize("models", [[], "outputs/tuned", Path("outputs/tuned")])
def test_models_are_a_list(family: Path, tmp_path: Path, models: object) -> None:
    with pytest.raises(ValueError, match="give a list of one folder or more"):
        merge(family / "base", models, tmp_path / "m")


def test_dropout_is_no_difference(family: Path, tmp_path: Path) -> None:
    shutil.copytree(family / "a", tmp_path / "a")
    change_json("config.json", lambda c: c["text_config"].update(hidden_dropout_prob=0.0))(tmp_path / "a")
    change_json("config.json", lambda c: c["vision_config"].update(patch_dropout=0.5))(tmp_path / "a")
    assert_equal_weights(merge(family / "base", [tmp_path / "a"], tmp_path / "m"), family / "a")


@pytest.mark.parametrize("key", ["pad_token_id", "bos_token_id", "eos_token_id"])
def test_special_tokens_that_no_tower_reads_are_no_difference(family: Path, tmp_path: Path, key: str) -> None:
    """The trainer of transformers 5.5 copies them from the tokenizer to the top of the configuration."""
    shutil.copytree(family / "a", tmp_path / "a")
    change_json("config.json", lambda c: c.update({key: 3}))(tmp_path / "a")
    assert_equal_weights(merge(family / "base", [tmp_path / "a"], tmp_path / "m"), family / "a")


def test_a_folder_in_use_is_left_alone(family: Path, tmp_path: Path) -> None:
    with held(tmp_path / "m", ["train"], print), pytest.raises(ValueError, match=r"m is in use by process"):
        merge(family / "base", [family / "a"], tmp_path / "m")
    assert not (tmp_path / "m").exists()
