"""Spoil recordings in the ways that recordings are wrong, play them again in their simulator, and write what is solved.

    CALVIN_ROOT=... python benchmarks/simulator_mutations.py recordings /path/to/calvin

Meta-World's and LIBERO's scripted experts record into the first folder, unless they did before; the second is a
recording of CALVIN's. The table is that of docs/data_inspect.md: how many of the episodes are solved again, and whether
a finding says what is wrong.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("benchmarks", "tests"))

from composing import completed, composed
from libero_recording import record_libero
from tables import replace_table

from robovlms.actions.plan import DataPlan
from robovlms.commands.collect_demos import collect_demos
from robovlms.config.closed_loop import CollectConfig, SimConfig
from robovlms.config.data import DataConfig
from robovlms.data.base import Numbers, Reader
from robovlms.data.opening import native_reader
from robovlms.data.windows import WindowDataset
from robovlms.inspection.replay.proof import prove_replay
from robovlms.inspection.replay.simulation import replay_in
from robovlms.inspection.scan import choose_stretches, scan_numbers
from robovlms.registry import SIMULATORS
from robovlms.sims.base import Simulator

PAGE = Path(__file__).parents[1] / "docs" / "data_inspect.md"
EPISODES = 3  # of every task
METAWORLD = ["drawer-close", "faucet-open", "button-press", "window-open", "door-open", "drawer-open"]
CALVIN = ["open_drawer", "close_drawer", "move_slider_left", "move_slider_right", "turn_on_led", "push_red_block_left"]
LIBERO = ["libero_goal/turn_on_the_stove", "libero_goal/put_the_cream_cheese_in_the_bowl"]
Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Mutation:
    """Something wrong with recorded actions, and the words that it must be called by."""

    label: str
    change: Change  # of the rows of an episode
    wanted: str  # pattern


def _times(*factors: float) -> Change:
    return lambda rows: rows * np.array(factors, dtype=rows.dtype)


TURN = np.eye(7)
TURN[:2, :2] = [[0, 1], [-1, 0]]
SWAP = np.eye(7)[[1, 0, 2, 3, 4, 5, 6]]
MUTATIONS = [
    Mutation("as recorded", _times(1, 1, 1, 1, 1, 1, 1), ""),
    Mutation("sign of dx", _times(-1, 1, 1, 1, 1, 1, 1), "dx looks inverted"),
    Mutation("sign of dy", _times(1, -1, 1, 1, 1, 1, 1), "dy looks inverted"),
    Mutation("sign of dz", _times(1, 1, -1, 1, 1, 1, 1), "dz looks inverted"),
    Mutation("unit: x 50", _times(50, 50, 50, 1, 1, 1, 1), "factor|half as far"),
    Mutation("unit: / 50", _times(0.02, 0.02, 0.02, 1, 1, 1, 1), "factor|far"),
    Mutation("order: dx and dy swapped", lambda rows: rows @ SWAP, "swapped"),
    Mutation("frame: 90 degrees about z", lambda rows: rows @ TURN, "rotated by 90 degrees about z: frame"),
    Mutation("rate: every action twice", lambda rows: np.repeat(rows, 2, axis=0)[: len(rows)], "off by 2"),
    Mutation("rate: every second action", lambda rows: rows[::2], "off by 2"),
    Mutation("gripper inverted", _times(1, 1, 1, 1, 1, 1, -1), r"(gripper looks|left and right look) inverted"),
]


class SpoiltReader(Reader):
    """Another reader's episodes, with other actions; states and where they began are as recorded."""

    def __init__(self, reader: Reader, change: Change) -> None:
        self._reader, self._change, self.episodes = reader, change, reader.episodes

    def frames(self, episode, steps):
        """Return the pictures."""
        return self._reader.frames(episode, steps)

    def numbers(self, episode, steps):
        """Return rows of the spoilt actions; where there are fewer, the last one stays."""
        length = self.episodes[episode].length
        whole = self._reader.numbers(episode, np.arange(length))
        actions = self._change(whole.actions).astype(np.float32)
        actions = np.concatenate([actions, np.repeat(actions[-1:], length - len(actions), axis=0)])
        return Numbers(actions[steps], None if whole.proprio is None else whole.proprio[steps])

    def number(self, episode):
        """Return the folder's own number."""
        return self._reader.number(episode)

    def simulator_state(self, episode):
        """Return where it began."""
        return self._reader.simulator_state(episode)

    def location(self, episode, first, last):
        """Name the frames."""
        return self._reader.location(episode, first, last)

    def summary(self):
        """Describe the folder."""
        return self._reader.summary()

    def fingerprint(self):
        """Return a text that changes with the data."""
        return self._reader.fingerprint()


def recorded_metaworld(folder: Path) -> tuple[DataConfig, SimConfig]:
    """Collect with the noise of `collect=default`."""
    root = folder / "metaworld"
    options = [f"sim.tasks=[{','.join(METAWORLD)}]", "sim.image_size=16", f"sim.episodes={EPISODES}"]
    config = completed(
        composed(
            "sim=metaworld", "data=metaworld", *options, f"data.root={root}", "data.validation_fraction=0",
            "data.proprio_key=observation.state", "data.proprio_names=[x,y,z,opening]",
        )
    )  # fmt: skip
    collect_demos(CollectConfig(demos_per_task=EPISODES, max_start_steps=3, num_workers=2), config.sim, root)
    return config.data, config.sim


def recorded_libero(folder: Path) -> tuple[DataConfig, SimConfig]:
    """Record from the first initial states."""
    root = folder / "libero"
    options = ["sim.suites=[libero_goal]", f"sim.tasks=[{','.join(LIBERO)}]", "sim.image_size=16", "sim.shadows=false"]
    config = completed(
        composed(
            "sim=libero", "data=libero", *options, f"sim.episodes={EPISODES}", f"data.root={root}",
            "data.validation_fraction=0", "data.normalization.mode=min_max",
            "data.proprio_key=obs/ee_states+obs/gripper_states", "data.proprio_names=[x,y,z,rx,ry,rz,left,right]",
            "data.proprio_rotation=axis_angle",
        )
    )  # fmt: skip
    if not root.is_dir():
        root.mkdir(parents=True)
        simulator = SIMULATORS.get("libero")(config.sim)
        record_libero(simulator, root, range(EPISODES))
        simulator.close()
    return config.data, config.sim


def recorded_calvin(folder: Path) -> tuple[DataConfig, SimConfig]:
    """Take what is recorded, all of it, with bounds that cut nothing off."""
    names = "[x,y,z,roll,pitch,yaw,opening,q1,q2,q3,q4,q5,q6,q7,gripper]"
    config = completed(
        composed(
            "sim=calvin", "data=calvin", f"sim.tasks=[{','.join(CALVIN)}]", f"sim.episodes={EPISODES}",
            f"sim.dataset={folder}", f"data.root={folder}", "data.normalization.low=-1", "data.normalization.high=1",
            "data.proprio_key=robot_obs", f"data.proprio_names={names}", "data.proprio_rotation=euler",
        )
    )  # fmt: skip
    return config.data, config.sim


def tried(data: DataConfig, simulator: Simulator, mutation: Mutation) -> tuple[str, str]:
    """Return how many episodes are solved with a mutation, and what names it."""
    plan = DataPlan.of(data, ["side"])
    reader = SpoiltReader(native_reader(data, "train", ["side"]), mutation.change)
    dataset = WindowDataset(reader, plan.sources[0], window_size=1, chunk_size=1)
    report, findings = replay_in(simulator, dataset)
    _, proven = prove_replay(dataset, scan_numbers(reader, choose_stretches(reader.episodes, 10**6)))
    told = [finding.what for finding in [*proven, *findings]]
    solved, played = (sum(getattr(task, key) for task in report.tasks) for key in ("solved", "episodes"))
    named = next((what for what in told if mutation.wanted and re.search(mutation.wanted, what)), "")
    print(simulator.config.name, mutation.label, solved, played, told, flush=True)
    return f"{solved} of {played}", "yes" if named else ""


def main() -> None:
    """Try all and replace the table."""
    folder, calvin = map(Path, sys.argv[1:])
    kinds = {
        "Meta-World": partial(recorded_metaworld, folder),
        "CALVIN": partial(recorded_calvin, calvin),
        "LIBERO": partial(recorded_libero, folder),
    }
    columns = {}
    for name, record in kinds.items():
        data, sim = record()
        simulator = SIMULATORS.get(sim.name)(sim)
        columns[name] = [tried(data, simulator, mutation) for mutation in MUTATIONS]
        simulator.close()
    lines = ["| | " + " | ".join(f"{name}: solved again | named" for name in kinds) + " |"]
    lines.append("|---" * (2 * len(kinds) + 1) + "|")
    for i, mutation in enumerate(MUTATIONS):
        cells = [cell for column in columns.values() for cell in column[i]]
        lines.append(f"| {mutation.label} | " + " | ".join(cells) + " |")
    print("\n".join(lines))
    replace_table(PAGE, "benchmarks/simulator_mutations.py", lines)


if __name__ == "__main__":
    main()
