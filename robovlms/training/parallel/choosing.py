"""The way that a run's config and its number of processes mean."""

from __future__ import annotations

from accelerate import Accelerator

from robovlms.config.run import TrainConfig
from robovlms.registry import PARALLEL
from robovlms.training.parallel.base import Parallelism


def make_parallelism(config: TrainConfig, accelerator: Accelerator) -> Parallelism:
    """Return the option `parallel=`; one process alone holds everything, whatever was chosen.

    Raises:
        UserError: the processes do not divide as the option wants.
    """
    found: type[Parallelism] = PARALLEL.get(config.parallel.name)
    return (found if accelerator.num_processes > 1 else Parallelism)(config, accelerator)
