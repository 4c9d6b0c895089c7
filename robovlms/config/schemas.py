"""The schemas of all configs, by the place YAML files pull them in from."""

from __future__ import annotations

from robovlms.backbones.schemas.nano import NanoBackboneConfig
from robovlms.config.commands import (
    CollectDemosConfig,
    CompareConfig,
    ConvertBackboneConfig,
    ConvertDataConfig,
    EvaluateConfig,
    InspectConfig,
    MergeLoRAConfig,
)
from robovlms.config.data import (
    DataConfig,
    MixtureDataConfig,
)
from robovlms.config.policy import BackboneConfig, HeadConfig
from robovlms.config.run import TrainConfig
from robovlms.data.aloha.schema import AlohaDataConfig
from robovlms.data.calvin.schema import CalvinDataConfig
from robovlms.data.lerobot.schema import LeRobotDataConfig
from robovlms.data.libero.schema import LiberoDataConfig
from robovlms.data.rlds.schema import RLDSDataConfig
from robovlms.heads.schemas.diffusion import DiffusionHeadConfig
from robovlms.heads.schemas.fast import FastHeadConfig
from robovlms.heads.schemas.flow import FlowHeadConfig
from robovlms.heads.schemas.gpt import GPTHeadConfig
from robovlms.heads.schemas.lstm import LSTMHeadConfig
from robovlms.heads.schemas.mlp import MLPHeadConfig
from robovlms.heads.schemas.tokens import TokensHeadConfig

# The types of a run's parts, by the place they are stored under `schema/` for YAML files to pull in. An option that has
# fields of its own has an entry of its own; the others share their group's `base`.
SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "collect_demos": CollectDemosConfig,
    "convert_backbone": ConvertBackboneConfig,
    "convert_data": ConvertDataConfig,
    "compare": CompareConfig,
    "merge_lora": MergeLoRAConfig,
    "inspect_data": InspectConfig,
    "backbone/base": BackboneConfig,
    "backbone/nano": NanoBackboneConfig,
    "head/base": HeadConfig,
    "head/diffusion": DiffusionHeadConfig,
    "head/fast": FastHeadConfig,
    "head/flow": FlowHeadConfig,
    "head/tokens": TokensHeadConfig,
    "head/gpt": GPTHeadConfig,
    "head/lstm": LSTMHeadConfig,
    "head/mlp": MLPHeadConfig,
    "data/base": DataConfig,
    "data/calvin": CalvinDataConfig,
    "data/lerobot": LeRobotDataConfig,
    "data/aloha": AlohaDataConfig,
    "data/libero": LiberoDataConfig,
    "data/mixture": MixtureDataConfig,
    "data/rlds": RLDSDataConfig,
}
