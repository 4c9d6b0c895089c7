"""What robosuite's own description of an environment (`env_args`) says about actions.

Source: github.com/ARISE-Initiative/robosuite robosuite/controllers/config (units of 1.0: output_max); robomimic
docs/datasets/overview.md (env_args).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from robovlms.inspection.discovery.folder import Answer, ask, found, guess

POSE = ("dx", "dy", "dz", "drx", "dry", "drz")
FIXED = {"OSC_POSE": POSE, "IK_POSE": POSE, "OSC_POSITION": POSE[:3]}  # entries of controllers of a hand
SOURCE = "env_args or env_info of /data"
GRIPPER = {"gripper_closed": found(1, "robosuite: +1 closes"), "gripper_open": found(-1, "robosuite: -1 opens")}


@dataclass(frozen=True)
class Facts:
    """What `env_args` tells."""

    names: list[str] | None = None
    source: str = "the file names no entry"
    robot: str | None = None
    rate: Answer | None = None
    is_joint: bool = False
    contract: dict[str, Answer] = field(default_factory=dict)


def facts_of(env_args: dict[str, Any], width: int) -> Facts:
    """Return what the controller of an environment says of actions of so many entries."""
    options = env_args.get("env_kwargs")
    if not isinstance(options, dict):
        return Facts()
    hz, robots = options.get("control_freq"), options.get("robots")
    robots = [robots] if isinstance(robots, str) else robots if isinstance(robots, list) else []
    rate = found(hz, f"{SOURCE}: control_freq") if isinstance(hz, int | float) and hz > 0 else None
    robot = "+".join(map(str, robots)) or None
    controller = _controller(options.get("controller_configs"))
    kind = str(controller.get("type", ""))
    arm = _arm(kind, width, len(robots))
    if arm is None and kind in FIXED and _has_base(options.get("controller_configs")) and width > len(FIXED[kind]) + 1:
        names = [*FIXED[kind], "gripper", *(f"base_{i + 1}" for i in range(width - len(FIXED[kind]) - 1))]
        source = f"guess: {SOURCE}: controller {kind}, and behind the gripper what moves the base, as RoboCasa has it"
        return Facts(names, source, robot, rate, False, _motion(controller, False, kind) | GRIPPER)
    if arm is None:
        return Facts(robot=robot, rate=rate)
    arms = [""] if len(robots) < 2 else [f"robot{i}/" for i in range(len(robots))]
    grip = [] if width == len(arm) * len(arms) else ["gripper"]
    names = [f"{prefix}{name}" for prefix in arms for name in (*arm, *grip)]
    is_joint = kind.startswith("JOINT")
    contract = _motion(controller, is_joint, kind)
    if grip:
        contract |= GRIPPER
    return Facts(names, f"{SOURCE}: controller {kind}", robot, rate, is_joint, contract)


def _controller(configs: Any) -> dict[str, Any]:
    """Return the arm's controller: of robosuite 1.4, or of a part of the body as 1.5 has it."""
    if isinstance(configs, list):
        configs = configs[0] if configs else {}
    if isinstance(configs, dict) and isinstance(parts := configs.get("body_parts"), dict):
        configs = next((part for name, part in parts.items() if name in ("right", "arms", "left")), {})
        configs = next(iter(configs.values()), {}) if isinstance(configs, dict) and "type" not in configs else configs
    return configs if isinstance(configs, dict) else {}


def _has_base(configs: Any) -> bool:
    """Tell whether a robot of robosuite 1.5 drives, too."""
    configs = configs[0] if isinstance(configs, list) and configs else configs
    return isinstance(configs, dict) and isinstance(configs.get("body_parts"), dict) and "base" in configs["body_parts"]


def _arm(kind: str, width: int, num_robots: int) -> list[str] | None:
    """Name an arm's entries by its controller; None where the width is not of this controller."""
    each, rest = divmod(width, max(num_robots, 1))
    fixed = FIXED.get(kind)
    if rest or (fixed is None and not kind.startswith("JOINT")):
        return None
    if fixed is not None:
        return list(fixed) if each - len(fixed) in (0, 1) else None
    return [f"j{i + 1}" for i in range(each - 1)] if each > 1 else None


def _motion(controller: dict[str, Any], is_joint: bool, kind: str) -> dict[str, Answer]:
    """Return representation, frame and units."""
    is_delta = controller.get("control_delta", controller.get("input_type", "delta") == "delta")
    told = {"representation": found("delta" if is_delta else "absolute", f"{SOURCE}: control_delta")}
    if is_joint:
        return told | {"frame": found("joint", f"{SOURCE}: {kind}"), "rotation": found("none")}
    frame = controller.get("input_ref_frame")
    told["frame"] = (
        found(frame, f"{SOURCE}: input_ref_frame")
        if frame in ("base", "world")
        else guess("world", "robosuite's OSC moves along the world's axes where nothing else is said")
    )
    told["rotation"] = found("none" if kind == "OSC_POSITION" else "axis_angle", f"{SOURCE}: {kind}")
    largest = controller.get("output_max")
    sizes = largest if isinstance(largest, list) else [largest] * 6
    metres, radians = (sizes[0], sizes[3]) if len(sizes) >= 6 else (sizes[0] if sizes else None, None)
    told["position_unit"] = (
        found(metres, f"{SOURCE}: output_max")
        if is_delta and isinstance(metres, int | float) and metres > 0
        else ask("how many metres does an entry of 1.0 stand for?")
        if is_delta
        else guess(1, "poses are in metres")
    )
    if is_delta and isinstance(radians, int | float) and radians > 0:
        told["rotation_unit"] = found(radians, f"{SOURCE}: output_max")
    return told
