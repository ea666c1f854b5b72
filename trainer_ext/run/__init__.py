"""One run: from a recipe to a finished folder. Read ``train``, from top to bottom.

``start`` makes the model and the arguments, ``tokenizer`` trains a tokenizer if the recipe asks for one, ``folder``
keeps the run's files, ``failures`` explains what ended a run, ``signals`` what a stopped run leaves. The function
``train`` is in the module ``train``, which has its name here; import it from ``trainer_ext``.
"""

from trainer_ext.run.folder import RunFolder
from trainer_ext.run.start import initial_model, training_arguments
from trainer_ext.run.train import TrainedRun

__all__ = ["RunFolder", "TrainedRun", "initial_model", "training_arguments"]
