"""Memory that runs out is explained once, with what was in use and what to change."""

import pytest
import torch
from composing import completed, composed

from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.training.memory import memory_explained


def config_of(*overrides: str) -> TrainConfig:
    return completed(composed("experiment=calvin_perform", *overrides))


@pytest.mark.parametrize(
    ("num_processes", "overrides", "said"),
    [
        (1, ["device_batch_size=4"], "Set device_batch_size=2: the global batch stays batch_size=128."),
        (8, ["batch_size=192", "device_batch_size=3", "parallel=fsdp2"], "Set device_batch_size=1"),
        (8, ["device_batch_size=1"], "Set parallel=fsdp2"),
        (8, ["device_batch_size=1", "parallel=zero1"], "Set parallel=fsdp2"),
        (8, ["device_batch_size=1", "parallel=fsdp2"], "Use more processes"),
        (1, ["device_batch_size=1"], "Use more processes with parallel=fsdp2"),
    ],
)
def test_what_was_in_use_is_said_and_the_cheapest_change(num_processes, overrides, said):
    with (
        pytest.raises(
            UserError, match=r"device_batch_size=\d, parallel=\w+ on \d processes, .* \d+\.\d GB were in use"
        ) as error,
        memory_explained(config_of(*overrides), num_processes, torch.device("cpu")),
    ):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert said in str(error.value)


def test_what_was_planned_is_said_beside_what_was_in_use():
    with (
        pytest.raises(UserError, match=r"GB were in use by this process, 55\.7 GB were planned"),
        memory_explained(config_of(), 1, torch.device("cpu"), 55.7),
    ):
        torch.empty(1 << 60, dtype=torch.uint8)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shape"), memory_explained(config_of(), 1, torch.device("cpu")):
        torch.zeros(2, 3) @ torch.zeros(2, 3)
