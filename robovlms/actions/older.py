"""What the data config of an older checkpoint implied about grippers, said as it is said today."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from robovlms.actions.contract import converted_contract
from robovlms.config.data import GRIPPER, ActionContract, AugmentationConfig, DataConfig, MixtureDataConfig

_OF_A_MIXTURE: dict[str, Any] = {"augmentation": AugmentationConfig(), "num_workers": 4}  # a source's are ignored


def imply_gripper(data: DataConfig) -> DataConfig:
    """Return a config whose policy has the entries that one of before `continuous_grippers` had.

    A policy's last entry was a binary gripper, whatever its data recorded: a mixture put it last, and where there was
    none one was added that no loss covered. Data without a gripper become a mixture of one source, which lacks it.
    """
    if isinstance(data, MixtureDataConfig):
        return replace(data, contract=_gripper_last(data.contract))
    if GRIPPER in data.contract.names:
        return data
    return MixtureDataConfig(
        name="mixture",
        contract=_gripper_last(converted_contract(data)),
        normalization=data.normalization,
        shift=data.shift,
        augmentation=data.augmentation,
        num_workers=data.num_workers,
        resize=data.resize,
        fit=data.fit,
        proprio_names=data.seen_names,
        sources={data.name: replace(data, **_OF_A_MIXTURE)},
    )


def _gripper_last(contract: ActionContract) -> ActionContract:
    return replace(contract, names=[*(name for name in contract.names if name != GRIPPER), GRIPPER])
