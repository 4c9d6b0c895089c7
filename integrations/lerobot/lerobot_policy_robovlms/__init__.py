"""Checkpoints of robovlms as policies of lerobot, which finds this package by its name."""

from lerobot_policy_robovlms.configuration_robovlms import RobovlmsConfig
from lerobot_policy_robovlms.modeling_robovlms import RobovlmsPolicy
from lerobot_policy_robovlms.processor_robovlms import make_robovlms_pre_post_processors

__all__ = ["RobovlmsConfig", "RobovlmsPolicy", "make_robovlms_pre_post_processors"]
