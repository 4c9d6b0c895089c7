"""SimplerEnv's four WidowX tasks, in the scenes of BridgeData V2.

Source: github.com/simpler-env/SimplerEnv scripts/octo_bridge.sh; ManiSkill2_real2sim
envs/custom_scenes/put_on_in_scene.py.
"""

from __future__ import annotations

from robovlms.config.choices import ReferenceFrame, Representation, Rotation
from robovlms.config.data import ActionContract
from robovlms.sims.base import Task
from robovlms.sims.simpler.schema import Protocol
from robovlms.sims.simpler.suite import Scene, Setting, Start, Suite

ARRANGEMENTS = 24  # of every task's two objects
SPOON, CARROT = "widowx_spoon_on_towel", "widowx_carrot_on_plate"
CUBE, EGGPLANT = "widowx_stack_cube", "widowx_put_eggplant_in_basket"

TASKS = [
    Task(
        name=SPOON,
        instruction="put the spoon on the towel",
        paraphrases=("place the spoon onto the towel", "lay the spoon down on the towel"),
    ),
    Task(
        name=CARROT,
        instruction="put carrot on plate",
        paraphrases=("place the carrot on the plate", "move the carrot onto the plate"),
    ),
    Task(
        name=CUBE,
        instruction="stack the green block on the yellow block",
        paraphrases=("put the green block on top of the yellow block", "place the green cube on the yellow cube"),
    ),
    Task(
        name=EGGPLANT,
        instruction="put eggplant into yellow basket",
        paraphrases=("place the eggplant in the yellow basket", "move the eggplant into the yellow basket"),
    ),
]

TABLE = "bridge_table_1_v1"
SCENES = {
    SPOON: Scene(env="PutSpoonOnTableClothInScene-v0", stage=TABLE, robot="widowx"),
    CARROT: Scene(env="PutCarrotOnPlateInScene-v0", stage=TABLE, robot="widowx"),
    CUBE: Scene(env="StackGreenCubeOnYellowCubeBakedTexInScene-v0", stage=TABLE, robot="widowx"),
    EGGPLANT: Scene(env="PutEggplantInBasketScene-v0", stage="bridge_table_1_v2", robot="widowx_sink_camera_setup"),
}


def _setting(task: Task) -> Setting:
    in_sink = task.name == EGGPLANT
    place, photograph = ((0.127, 0.06), "bridge_sink.png") if in_sink else ((0.147, 0.028), "bridge_real_eval_1.png")
    return Setting(
        task=task.name,
        protocol=Protocol.visual_matching,
        scene=SCENES[task.name],
        max_steps=120 if in_sink else 60,
        starts=tuple(Start(robot_xy=place, objects=number, photograph=photograph) for number in range(ARRANGEMENTS)),
        instructions=(task.instruction,),
    )


SUITE = Suite(
    contract=ActionContract(
        names=["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"],
        representation=Representation.delta,
        frame=ReferenceFrame.base,
        rotation=Rotation.euler_increment,  # what Bridge records; SimplerEnv takes them for the angles of one turn
        position_unit=1.0,
        control_hz=5.0,
    ),
    control_mode="arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos",
    camera="3rd_view_camera",
    sim_hz=500,
    tasks={task.name: task for task in TASKS},
    settings=tuple(_setting(task) for task in TASKS),
)
