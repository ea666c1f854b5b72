"""Parameters that belong to the losses, in a file of their own beside the model's."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

# Where a folder keeps the parameters of the objective, which do not belong to the model.
OBJECTIVE_FILE = "objective.safetensors"


class StoredParameters(nn.Module):
    """A module whose parameters, if it has some, are kept in ``objective.safetensors`` of a folder."""

    def save(self, folder: str | Path) -> None:
        """Write ``objective.safetensors`` into ``folder``, if there are parameters."""
        state = self.state_dict()
        if state:
            save_file(state, Path(folder) / OBJECTIVE_FILE)

    def load(self, folder: str | Path, strict: bool = True) -> None:
        """Read what ``save`` wrote.

        Args:
            folder: a checkpoint of the same run; with ``strict=False`` any model folder, of which the parameters that
                this objective has are taken.

        Raises:
            ValueError: strict, and the folder has other parameters.
        """
        path, own = Path(folder) / OBJECTIVE_FILE, self.state_dict()
        stored = load_file(path) if path.is_file() else {}
        if strict and stored.keys() != own.keys():
            raise ValueError(
                f"{path} holds the parameters {sorted(stored)} of the objective, but this recipe trains {sorted(own)}: "
                "resume with the losses and temperatures that the checkpoint was trained with"
            )
        self.load_state_dict({name: stored.get(name, value) for name, value in own.items()})
