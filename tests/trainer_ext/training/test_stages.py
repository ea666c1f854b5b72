"""Boundaries, and what the callback asks for at them."""

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from tests.trainer_ext.tiny_run import RECIPE, make_model
from trainer_ext.losses.joint import JointObjective
from trainer_ext.recipe.schema import ImagesSide
from trainer_ext.recipe.stages import LoraSpec, Stage
from trainer_ext.training.model_parts import unreached_parameters
from trainer_ext.training.stages import StageCallback, Trained, finished_stage, image_size_problems, trained_in

STAGES = [Stage.model_validate(stage) for stage in RECIPE["stages"]]  # 3, 2 and 3 steps


@pytest.fixture
def arguments(tmp_path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True)


def test_a_stage_is_finished_at_its_last_step_only() -> None:
    assert [finished_stage(STAGES, steps) for steps in range(9)] == [None, None, None, 0, None, 1, None, None, 2]


def test_sizes_that_the_patches_do_not_divide() -> None:
    """The trained size passes whatever it is (jina-clip-v2 has 512 px and patches of 14), and so does one not used."""
    config = make_model().config
    config.vision_config.patch_size, config.vision_config.image_size = 14, 512
    sizes = [512, 504, 224, 230, 13, None]
    stages = [STAGES[0].model_copy(update={"image_size": size}) for size in sizes]
    stages.append(STAGES[0].model_copy(update={"image_size": 230, "image_text": None}))
    problems = dict(image_size_problems(stages, config))
    assert list(problems) == ["stages.3.image_size", "stages.4.image_size"]
    assert problems["stages.3.image_size"].startswith("230 px cannot be cut into the model's patches of 14 px. ")
    assert "such as 224 or 238, or 512" in problems["stages.3.image_size"]


@pytest.mark.parametrize(("steps", "at_end"), [(2, False), (3, True), (5, True), (7, False), (8, True)])
@pytest.mark.parametrize("save", [False, True])
def test_evaluation_at_each_end_and_a_log_before_each_checkpoint(
    arguments: TrainingArguments, steps: int, at_end: bool, save: bool
) -> None:
    control = TrainerControl(should_save=save)
    StageCallback(STAGES, 0.1, JointObjective()).on_step_end(
        arguments, TrainerState(global_step=steps), control, model=make_model()
    )
    assert control.should_evaluate == at_end
    assert control.should_log == (at_end or save)
    assert control.should_save == save


def test_patch_dropout_follows_the_step_and_returns_to_the_models_own(arguments: TrainingArguments) -> None:
    model, control = make_model(patch_dropout=0.4), TrainerControl()
    callback = StageCallback(STAGES, 0.4, JointObjective())
    seen = []
    for step in range(8):
        state = TrainerState(global_step=step)
        callback.on_step_begin(arguments, state, control, model=model)
        seen.append(model.vision_model.patch_dropout)
        callback.on_step_end(arguments, TrainerState(global_step=step + 1), control, model=model)
    assert seen == [0.25] * 3 + [0.4] * 2 + [0.0] * 3
    assert model.config.vision_config.patch_dropout == 0.4


def test_stage_without_images_leaves_their_side_untouched(arguments: TrainingArguments) -> None:
    model = make_model()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    text_only = [STAGES[0].model_copy(update={"image_text": None}), *STAGES[1:]]
    callback = StageCallback(text_only, 0.1, JointObjective())
    callback.on_pre_optimizer_step(arguments, TrainerState(global_step=3), TrainerControl(), model=model)
    assert all(parameter.grad is not None for parameter in model.parameters())
    callback.on_pre_optimizer_step(arguments, TrainerState(global_step=2), TrainerControl(), model=model)
    idle = [*unreached_parameters(model, {"query": {"input_ids": None}}), model.logit_scale]
    assert len(idle) > 10
    assert all(parameter.grad is None for parameter in idle)
    assert all(parameter.grad is not None for parameter in model.text_model.parameters())


def test_a_stage_of_pictures_alone_leaves_texts_and_temperature_untouched(arguments: TrainingArguments) -> None:
    model = make_model()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    pairs = ImagesSide(sources=["paired"], batch_size=4)
    stages = [STAGES[0].model_copy(update={"image_text": None, "text": None, "images": pairs})]
    callback = StageCallback(stages, 0.1, JointObjective())
    callback.on_pre_optimizer_step(arguments, TrainerState(global_step=0), TrainerControl(), model=model)
    idle = unreached_parameters(model, {"picture": {"pixel_values": None}})
    assert {*idle} == {*model.text_model.parameters(), *model.text_projection.parameters()}
    assert all(parameter.grad is None for parameter in (*idle, model.logit_scale))
    assert all(parameter.grad is not None for parameter in model.vision_model.parameters())
    assert trained_in(stages[0]).moved == {"vision", "vision_projection"}


@pytest.mark.parametrize(("value", "clamped"), [(-1.0, 0.0), (2.5, 2.5), (9.0, 4.6051702)])
def test_temperature_is_clamped_after_each_update(arguments: TrainingArguments, value: float, clamped: float) -> None:
    model = make_model()
    model.logit_scale.data.fill_(value)
    StageCallback(STAGES, 0.1, JointObjective()).on_optimizer_step(
        arguments, TrainerState(), TrainerControl(), model=model
    )
    assert model.logit_scale.item() == pytest.approx(clamped)


ALL = {"text", "vision", "text_projection", "vision_projection", "temperature"}
TEXT = {"text", "text_projection"}


@pytest.mark.parametrize(
    ("changes", "lora", "parts", "moved", "objective"),
    [
        ({}, None, ALL, ALL, set()),
        ({"image_text": None}, None, ALL, TEXT, set()),
        ({"image_text": {"temperature": 0.1}}, None, ALL, ALL - {"temperature"}, set()),
        ({"image_text": {"loss": "siglip"}}, None, ALL, ALL, {"image_text_bias"}),
        ({"text": {"temperature": "trained"}}, None, ALL, ALL, {"text_logit_scale"}),
        ({"trainable": ["text"]}, None, TEXT, TEXT, set()),
        ({}, LoraSpec(towers=["vision"]), {"vision", "temperature"}, {"vision", "temperature"}, set()),
        ({"image_text": None}, LoraSpec(), {"text", "vision", "temperature"}, {"text"}, set()),
    ],
)
def test_what_a_stage_trains(changes, lora, parts, moved, objective) -> None:
    stage = RECIPE["stages"][0]
    merged = {name: {**stage[name], **value} if isinstance(value, dict) else value for name, value in changes.items()}
    trained = trained_in(Stage.model_validate({**stage, **merged}), lora)
    assert trained == Trained(frozenset(parts), frozenset(moved), frozenset(objective))


def test_parameters_of_the_objective_rest_where_a_stage_does_not_use_them(arguments: TrainingArguments) -> None:
    sigmoid = STAGES[0].image_text.model_copy(update={"loss": "siglip"})
    stages = [STAGES[0].model_copy(update={"image_text": sigmoid}), *STAGES[1:]]
    objective = JointObjective(stages=stages)
    callback = StageCallback(stages, 0.1, objective)
    for step, rests in ((2, False), (3, True)):
        objective.image_text_bias.grad = torch.tensor(1.0)
        callback.on_pre_optimizer_step(arguments, TrainerState(global_step=step), TrainerControl(), model=make_model())
        assert (objective.image_text_bias.grad is None) == rests
