"""An exponential moving average (EMA) of the weights, by ``torch.optim.swa_utils``.

After each step every averaged weight moves towards the trained one, ``decay * average + (1 - decay) * weight``; the
first step copies it. Training does not read the average; it is a second result of the run.
"""

from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modeling_jina_clip import JinaCLIPModel

AVERAGE_FILE = "ema.safetensors"


class WeightAverage(TrainerCallback):
    """Holds the averaged weights of a model during training; they need as much memory as the weights themselves.

    Args:
        model: on its device, before the first step.
        decay: close to 1; the average looks back over about ``1 / (1 - decay)`` steps.
    """

    def __init__(self, model: JinaCLIPModel, decay: float) -> None:
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.averaged.requires_grad_(False).eval()

    @property
    def model(self) -> JinaCLIPModel:
        """The model with the averaged weights."""
        return cast(JinaCLIPModel, self.averaged.module)

    def on_step_end(  # type: ignore[override]  # the trainer gives the model by name
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: JinaCLIPModel, **kwargs: Any
    ) -> None:
        """Take the step's weights into the average."""
        self.averaged.update_parameters(model)

    def save(self, folder: Path) -> None:
        """Add the average, bit for bit, to a checkpoint."""
        state = {name: value.detach().cpu().contiguous() for name, value in self.averaged.state_dict().items()}
        save_file(state, folder / AVERAGE_FILE)

    def load(self, folder: Path) -> None:
        """Continue with the average of a checkpoint.

        Raises:
            ValueError: the checkpoint has none.
        """
        path = folder / AVERAGE_FILE
        if not path.is_file():
            raise ValueError(f"{folder} has no {AVERAGE_FILE}: the run was started without ema_decay; leave it out")
        self.averaged.load_state_dict(load_file(path))
