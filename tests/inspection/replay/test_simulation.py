"""Recorded actions are played again in the simulator: what they solve, and what is said where they do not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from line_simulator import GO, Line

from robovlms.actions.checks import Severity
from robovlms.actions.plan import DataPlan
from robovlms.commands.collect_demos import collect_demos
from robovlms.config.choices import NormalizationMode
from robovlms.config.closed_loop import CollectConfig, SimConfig
from robovlms.config.data import NormalizationConfig
from robovlms.config.schemas import schema_of
from robovlms.data.base import EpisodeInfo
from robovlms.data.opening import native_reader
from robovlms.data.windows import WindowDataset
from robovlms.errors import UserError
from robovlms.inspection.index_page import write_index
from robovlms.inspection.replay.simulation import replay_in
from robovlms.inspection.replay.starts import find_task
from robovlms.inspection.report import inspect_dataset
from robovlms.inspection.text import format_report
from robovlms.registry import SIMULATORS
from robovlms.sims.base import Task

SIM = SimConfig(name="line", episodes=4, max_steps=50)


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """Six demonstrations of "go" and two of its contrast, with much noise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIMULATORS._classes, "line", Line)
        patch.setattr(Line, "tasks", lambda self: [GO])
        root = tmp_path_factory.mktemp("collected") / "demos"
        config = CollectConfig(demos_per_task=6, noise=0.3, max_start_steps=2, seed=1, num_workers=1)
        return collect_demos(config, SIM, root)


def windows(root: Path, **changes) -> WindowDataset:
    options = {
        "name": "lerobot", "root": str(root), "views": {"side": "observation.images.side"}, "contract": Line.contract,
        "normalization": NormalizationConfig(mode=NormalizationMode.min_max), "validation_fraction": 0.0,
        "proprio_key": "observation.state", "proprio_names": ["x"],
    }  # fmt: skip
    config = schema_of("data", "lerobot")(**options | changes)
    plan = DataPlan.of(config, ["side"])
    return WindowDataset(native_reader(config, "train", ["side"]), plan.sources[0], window_size=1, chunk_size=1)


def copied(collected: Path, folder: Path) -> Path:
    root = folder / "copy"
    for file in collected.rglob("*"):
        if file.is_file():
            target = root / file.relative_to(collected)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return root


def spoil(root: Path, change) -> None:
    """Rewrite the recorded actions."""
    for path in root.rglob("data/**/*.parquet"):
        table = pq.read_table(path)
        actions = change(np.stack(table["action"].to_numpy()))
        column = pa.array(list(actions.astype(np.float32)), table.schema.field("action").type)
        place = table.schema.get_field_index("action")
        pq.write_table(table.set_column(place, table.schema.field("action"), column), path)


def test_what_was_executed_solves_every_task_again_and_the_states_are_those_of_the_recording(collected):
    sim = Line(SIM)
    report, findings = replay_in(sim, windows(collected))
    (task,) = report.tasks
    assert (task.task, task.episodes, task.recorded, task.solved) == ("go", 4, 4, 4)
    assert task.without_noise is not None
    assert report.states[0].drift == 0
    assert findings == []


def test_actions_of_another_sign_solve_nothing_and_are_called_so(collected, tmp_path):
    root = copied(collected, tmp_path)
    spoil(root, lambda actions: actions * np.float32([-1, 1]))
    report, findings = replay_in(Line(SIM), windows(root))
    assert report.tasks[0].solved == 0
    assert "do not solve again what was solved in the recording: go 0 of 4" in findings[0].what


def test_only_as_many_episodes_as_asked_for_are_played_evenly_spread(collected):
    sim = Line(SimConfig(name="line", episodes=2, max_steps=50))
    report, _ = replay_in(sim, windows(collected))
    assert report.tasks[0].episodes == 2


def test_chosen_episodes_begin_where_they_began_in_the_whole_folder(collected):
    report, _ = replay_in(Line(SIM), windows(collected, episodes="4-5"))
    assert (report.tasks[0].episodes, report.tasks[0].solved, report.states[0].drift) == (2, 2, 0)


def test_a_folder_that_does_not_say_where_episodes_began_is_refused_and_says_what_to_do(collected, tmp_path):
    root = copied(collected, tmp_path)
    (root / "meta/robovlms_starts.json").unlink()
    with pytest.raises(UserError, match=r"6 episodes: their folder does not say where they began.*collect again"):
        replay_in(Line(SIM), windows(root))


def test_a_damaged_file_of_starts_is_named(collected, tmp_path):
    root = copied(collected, tmp_path)
    (root / "meta/robovlms_starts.json").write_text("[1]")
    with pytest.raises(UserError, match=r"robovlms_starts.json is damaged"):
        replay_in(Line(SIM), windows(root))


def test_episodes_of_another_simulator_are_refused(collected, tmp_path):
    root = copied(collected, tmp_path)
    path = root / "meta/robovlms_starts.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sim": "plane"}))
    with pytest.raises(UserError, match=r"they were collected in sim=plane"):
        replay_in(Line(SIM), windows(root))


def test_actions_that_mean_something_else_are_refused(collected):
    contract = Line.contract
    other = type(contract)(**vars(contract) | {"position_unit": 0.5})
    with pytest.raises(UserError, match=r"position_unit: policy 0.5, sim=line 1.0"):
        replay_in(Line(SIM), windows(collected, contract=other))


def test_a_task_is_found_by_its_files_name_then_by_its_instruction_where_that_is_the_only_one():
    tasks = [Task(name=f"suite/SCENE{i}_lift", instruction="lift") for i in range(2)]
    tasks += [Task(name="suite/push", instruction="push it")]
    assert find_task(tasks, EpisodeInfo(1, "lift", "SCENE1_lift_demo")) is tasks[1]
    assert find_task(tasks, EpisodeInfo(1, "Push it ", "other_demo")) is tasks[2]
    assert find_task(tasks, EpisodeInfo(1, "lift", "other_demo")) is None


def test_what_the_normalisation_cuts_off_is_told_apart_from_wrong_actions(collected):
    """The hand goes 0.25 in a step, and bounds of 0.02 leave a tenth of it."""
    bounds = NormalizationConfig(mode=NormalizationMode.bounds, low=-0.02, high=0.02)
    report, findings = replay_in(Line(SIM), windows(collected, normalization=bounds))
    (task,) = report.tasks
    assert task.uncut == 4
    assert task.solved < 4
    (finding,) = findings
    assert finding.severity is Severity.warning
    assert (
        f"without the normalisation, which cuts off what is needed: go 4 instead of {task.solved} of 4" in finding.what
    )


def test_the_text_and_the_page_have_a_table_of_it(collected, tmp_path):
    dataset = windows(collected)
    options = {"name": "line", "split": "train", "max_frames": 10_000, "outlier_iqr": 3.0}
    report = inspect_dataset(dataset, simulator=Line(SIM), **options)
    lines = format_report(report).splitlines()
    assert "Recorded actions, through the policy's words and back, played again in sim=line:" in lines
    assert ["go", "4", "4", "4"] in [line.split()[:4] for line in lines]
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"")
    page = write_index(report, tmp_path / "index.html", pages=[], sheet=sheet).read_text()
    assert "played again in sim=line" in page
    assert (
        "In the simulator"
        not in write_index(
            inspect_dataset(dataset, **options), tmp_path / "index.html", pages=[], sheet=sheet
        ).read_text()
    )
