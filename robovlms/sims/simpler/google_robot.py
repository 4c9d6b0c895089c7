"""SimplerEnv's Google-robot tasks: visual matching, variant aggregation, and two more cameras.

Source: github.com/simpler-env/SimplerEnv scripts/rt1_*.sh, and tools/calc_metrics_evaluation_videos.py for what a
published mean is over; objects of `move near`: ManiSkill2_real2sim envs/custom_scenes/move_near_in_scene.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, TypeAlias

from robovlms.config.choices import ReferenceFrame, Representation, Rotation
from robovlms.config.data import ActionContract
from robovlms.sims.base import Task
from robovlms.sims.simpler.schema import Protocol
from robovlms.sims.simpler.suite import Scene, Setting, Start, Suite, grid

Variants: TypeAlias = Mapping[str, tuple[str, Mapping[str, Any]]]
"""By name: the stage, and what the environment is built with."""
Places: TypeAlias = tuple[tuple[float, float], ...]

COLOURS = {  # of the arm, to match the light of the photographs: variant, and SimplerEnv's version of the URDF
    "arm as modelled": None,
    "arm of tabletop 1": "recolor_tabletop_visual_matching_1",
    "arm of tabletop 2": "recolor_tabletop_visual_matching_2",
    "arm of cabinet": "recolor_cabinet_visual_matching_1",
}

TABLE = "google_pick_coke_can_1_v4"
TABLETOP: Variants = {
    "base": (TABLE, {}),
    "background 1": (f"{TABLE}_alt_background", {}),
    "background 2": (f"{TABLE}_alt_background_2", {}),
    "darker": (TABLE, {"slightly_darker_lighting": True}),
    "brighter": (TABLE, {"slightly_brighter_lighting": True}),
    "table 1": ("Baked_sc1_staging_objaverse_cabinet1_h870", {}),
    "table 2": ("Baked_sc1_staging_objaverse_cabinet2_h870", {}),
}
APARTMENT = "frl_apartment_stage_simple"
CABINET: Variants = {
    "base": (APARTMENT, {}),
    "background 1": ("modern_bedroom_no_roof", {}),
    "background 2": ("modern_office_no_roof", {}),
    "darker": (APARTMENT, {"light_mode": "darker"}),
    "brighter": (APARTMENT, {"light_mode": "brighter"}),
    "table 1": (APARTMENT, {"station_name": "mk_station2"}),
    "table 2": (APARTMENT, {"station_name": "mk_station3"}),
}
RAY_TRACED = {"shader_dir": "rt"}  # before the cabinet, where policies read depth off shadows
MATCHED_CABINET = {"station_name": "mk_station_recolor", "light_mode": "simple", "disable_bad_material": True}

CANS = {  # tasks, and what lays the can so
    "google_robot_pick_horizontal_coke_can": {"lr_switch": True},
    "google_robot_pick_vertical_coke_can": {"laid_vertically": True},
    "google_robot_pick_standing_coke_can": {"upright": True},
}
CAN_PLACES: Places = tuple(grid((-0.35, -0.12, 5), (-0.02, 0.42, 5)))

MOVE_NEAR = "google_robot_move_near"
TRIPLES = [
    ("blue plastic bottle", "pepsi can", "orange"),
    ("7up can", "apple", "sponge"),
    ("coke can", "redbull can", "apple"),
    ("sponge", "blue plastic bottle", "7up can"),
    ("orange", "pepsi can", "redbull can"),
]
LAYOUTS = 2  # of a triple on the table
PAIRS = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]  # which of a triple is moved near which

DRAWERS = [f"{verb} {drawer} drawer" for verb in ("open", "close") for drawer in ("top", "middle", "bottom")]
PLACE_APPLE = "google_robot_place_apple_in_closed_top_drawer"
APPLE_PLACES: Places = tuple(grid((-0.08, -0.02, 3), (-0.02, 0.08, 3)))
POSES = {  # of the robot before the cabinet, by photograph: x, y (m) and yaw (rad)
    "a0": (0.644, -0.179, -0.03), "a1": (0.765, -0.182, -0.02), "a2": (0.889, -0.203, -0.06),
    "b0": (0.652, 0.009, 0.0), "b1": (0.752, 0.009, 0.0), "b2": (0.851, 0.035, 0.0),
    "c0": (0.665, 0.224, 0.0), "c1": (0.765, 0.222, -0.025), "c2": (0.865, 0.222, -0.025),
}  # fmt: skip


def _tasks() -> Iterator[Task]:
    for name in CANS:
        yield Task(name=name, instruction="pick coke can", paraphrases=("grasp the coke can", "lift the can of coke"))
    yield Task(name=MOVE_NEAR, instruction="move one object near another")  # which, its episodes say
    for told in DRAWERS:
        verb, other = ("open", "close") if told.startswith("open") else ("close", "open")
        yield Task(name=_task_name(told), instruction=told, opposite=_task_name(told.replace(verb, other)))
    yield Task(name=PLACE_APPLE, instruction="open top drawer, then place apple into top drawer")


def _task_name(told: str) -> str:
    return f"google_robot_{told.replace(' ', '_')}"


def _settings() -> Iterator[Setting]:
    for task, laid in CANS.items():
        yield from _pick(task, laid)
    yield from _move_near()
    for told in DRAWERS:
        yield from _drawer(told)
    yield from _place_apple()


def _pick(task: str, laid: Mapping[str, Any]) -> Iterator[Setting]:
    env, cluttered = "GraspSingleOpenedCokeCanInScene-v0", "GraspSingleOpenedCokeCanDistractorInScene-v0"
    starts = tuple(Start(robot_xy=(0.35, 0.20), objects=place) for place in CAN_PLACES)
    common = {"task": task, "column": "pick coke can", "max_steps": 80, "instructions": ("pick coke can",)}
    distractors = {"distractors": (TABLE, {}), "more distractors": (TABLE, {"distractor_config": "more"})}
    scenes = [*_scenes(env, TABLETOP, laid), *_scenes(cluttered, distractors, laid)]
    matched = _before(starts, "google_coke_can_real_eval_1.png")
    yield from _each(_coloured(env, TABLE, laid), protocol=Protocol.visual_matching, starts=matched, **common)
    yield from _each(scenes, protocol=Protocol.variant_aggregation, starts=starts, **common)
    cameras = _cameras("GraspSingleOpenedCokeCanAltGoogleCamera", laid)
    yield from _each(cameras, protocol=Protocol.camera_orientations, starts=starts, **common)


def _move_near() -> Iterator[Setting]:
    pairs = [(triple[one], triple[other]) for triple, _, (one, other) in product(TRIPLES, range(LAYOUTS), PAIRS)]
    starts = tuple(Start(robot_xy=(0.35, 0.21), robot_yaw=-0.09, objects=number) for number in range(len(pairs)))
    told = tuple(f"move {one} near {other}" for one, other in pairs)
    common = {"task": MOVE_NEAR, "column": "move near", "max_steps": 80, "instructions": told}
    scenes = _scenes("MoveNearGoogleInScene-v0", {**TABLETOP, "no distractors": (TABLE, {"no_distractor": True})})
    photographed = _coloured("MoveNearGoogleBakedTexInScene-v0", TABLE)
    matched = _before(starts, "google_move_near_real_eval_1.png")
    yield from _each(photographed, protocol=Protocol.visual_matching, starts=matched, **common)
    yield from _each(scenes, protocol=Protocol.variant_aggregation, starts=starts, **common)
    cameras = _cameras("MoveNearAltGoogleCamera")
    yield from _each(cameras, protocol=Protocol.camera_orientations, starts=starts, **common)


def _drawer(told: str) -> Iterator[Setting]:
    env = f"{told.title().replace(' ', '')}CustomInScene-v0"
    common = {"task": _task_name(told), "column": "open or close drawer", "max_steps": 113, "instructions": (told,)}
    matched = tuple(start for photograph in POSES for start in _at_pose(photograph))
    starts = tuple(Start(robot_xy=place) for place in grid((0.65, 0.85, 3), (-0.2, 0.2, 3)))
    photographed = _coloured(env, "dummy_drawer", RAY_TRACED | MATCHED_CABINET)
    yield from _each(photographed, protocol=Protocol.visual_matching, starts=matched, **common)
    yield from _each(_scenes(env, CABINET, RAY_TRACED), protocol=Protocol.variant_aggregation, starts=starts, **common)


def _place_apple() -> Iterator[Setting]:
    env = "PlaceIntoClosedTopDrawerCustomInScene-v0"
    common = {"task": PLACE_APPLE, "column": "place apple in drawer", "max_steps": 200}
    common["instructions"] = ("open top drawer",)  # and later another
    matched = tuple(start for photograph in ("a0", "b0", "c0") for start in _at_pose(photograph, APPLE_PLACES))
    starts = tuple(
        Start(robot_xy=robot, objects=place)
        for robot, place in product(grid((0.65, 0.65, 1), (-0.2, 0.2, 3)), APPLE_PLACES)
    )
    photographed = _coloured(env, "dummy_drawer", RAY_TRACED | MATCHED_CABINET | {"model_ids": "baked_apple_v2"})
    scenes = _scenes(env, CABINET, RAY_TRACED | {"model_ids": "apple"})
    yield from _each(photographed, protocol=Protocol.visual_matching, starts=matched, **common)
    yield from _each(scenes, protocol=Protocol.variant_aggregation, starts=starts, **common)


def _each(scenes: Iterable[Scene], **common: Any) -> Iterator[Setting]:
    return (Setting(scene=scene, **common) for scene in scenes)


def _scenes(env: str, variants: Variants, build: Mapping[str, Any] = {}) -> list[Scene]:
    return [
        Scene(variant=name, env=env, stage=stage, build={**build, **more}) for name, (stage, more) in variants.items()
    ]


def _coloured(env: str, stage: str, build: Mapping[str, Any] = {}) -> list[Scene]:
    return _scenes(env, {name: (stage, {"urdf_version": urdf}) for name, urdf in COLOURS.items()}, build)


def _cameras(env: str, build: Mapping[str, Any] = {}) -> list[Scene]:
    return [
        scene
        for name, number in (("camera 1", ""), ("camera 2", "2"))
        for scene in _scenes(f"{env}{number}InScene-v0", {name: (TABLE, {})}, build)
    ]


def _before(starts: Iterable[Start], photograph: str) -> tuple[Start, ...]:
    return tuple(replace(start, photograph=photograph) for start in starts)


def _at_pose(pose: str, objects: Places = ((0.0, 0.0),)) -> Iterator[Start]:
    x, y, yaw = POSES[pose]
    for place in objects:
        yield Start(robot_xy=(x, y), robot_yaw=yaw, objects=place, photograph=f"open_drawer_{pose}.png")


SUITE = Suite(
    contract=ActionContract(
        names=["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"],
        representation=Representation.delta,
        frame=ReferenceFrame.base,
        rotation=Rotation.euler,
        position_unit=1.0,
        control_hz=3.0,
    ),
    control_mode=(
        "arm_pd_ee_delta_pose_align_interpolate_by_planner_gripper_pd_joint_target_delta_pos_interpolate_by_planner"
    ),
    camera="overhead_camera",
    sim_hz=513,
    tasks={task.name: task for task in _tasks()},
    settings=tuple(_settings()),
)
