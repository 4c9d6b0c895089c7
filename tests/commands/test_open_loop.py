from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from calvin_folder import tiny_run
from colour_folder import colour_run, make_colour_folder
from composing import completed, composed, plan_of
from mixed_data import make_arm_folder, mixture

from robovlms.commands.open_loop import RecordedEpisode, moved, open_loop
from robovlms.commands.train import train
from robovlms.config.choices import Execution, Split
from robovlms.config.closed_loop import MovedDataConfig, OpenLoopConfig
from robovlms.data.opening import open_sources
from robovlms.errors import UserError
from robovlms.evaluation.open_loop import Recording, Replayed, copied, entry_errors, previous, replay
from robovlms.policy.checkpoint import resolve_checkpoint
from robovlms.policy.engine import PolicyEngine

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a run that has learned something, and what it was trained on."""
    root = tmp_path_factory.mktemp("colours")
    make_colour_folder(root / "data", is_healthy=True)
    extra = ["window.window_size=4", "window.chunk_size=3", "schedule.total=30 step"]
    config = completed(composed(*colour_run(root / "data", root / "run", *extra)))
    train(config)
    return config


@pytest.fixture(scope="module")
def page(run):
    (path,) = open_loop(OpenLoopConfig(checkpoint=run.output_dir, episodes=2, execute_steps=2, pictures=3))
    return path


def test_a_page_is_one_file_with_episodes_pictures_and_curves(page, run):
    text = page.read_text()
    assert (page.parent.name, page.name) == ("open_loop", "step_000030.html")
    assert text.count("data:image/jpeg;base64,") == 2 * 3
    assert text.count('class="recorded" points') == text.count('class="predicted" points') == 2 * 3
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "“go to the light”" in text
    assert "12 steps, 1.2 s at 10 Hz" in text


def test_the_numbers_beside_a_page_are_those_of_its_curves(page, run):
    told = json.loads(page.with_suffix(".json").read_text())
    assert [entry["name"] for entry in told["entries"]["lerobot"]] == ["dx", "dy", "gripper"]
    assert told["effects"].keys() == {"val/language_effect", "val/picture_effect"}
    engine = PolicyEngine.from_checkpoint(resolve_checkpoint(Path(run.output_dir)))
    recordings = recorded(run, 0, 3)
    (first, second) = replay(engine, None, recordings, execution=Execution.chunk, execute_steps=2)
    errors = entry_errors([first, second], ["dx", "dy", "gripper"], [2])
    assert [error.policy for error in errors] == pytest.approx(
        [entry["policy"] for entry in told["entries"]["lerobot"]], rel=1e-4
    )


def recorded(run, *episodes):
    (windows,) = open_sources(plan_of(run), run.window, "validation")
    return [RecordedEpisode(windows.reader, windows.source, episode, 500) for episode in episodes]


def test_episodes_side_by_side_are_what_each_is_in_a_rollout_of_its_own(run):
    """Every step of every episode, history and chunks included, as one session that is stepped alone."""
    engine = PolicyEngine.from_checkpoint(resolve_checkpoint(Path(run.output_dir)))
    recordings = recorded(run, 0, 1, 2)
    recordings[1].actions = recordings[1].actions[:7]  # one ends earlier
    together = replay(engine, None, recordings, execution=Execution.chunk, execute_steps=2)
    for episode in together:
        session = engine.open(execution=Execution.chunk, execute_steps=2)
        steps = range(len(episode.recorded))
        alone = [engine.step([(session, episode.recording.observation(step))])[0] for step in steps]
        assert np.abs(np.stack(alone) - episode.predicted).max() < 1e-5


def test_what_a_policy_is_shown_is_what_was_recorded(run):
    (recording,) = recorded(run, 4)
    (windows,) = open_sources(plan_of(run), run.window, "validation")
    numbers = windows.reader.numbers(4, np.arange(12))
    frames = windows.reader.frames(4, np.arange(12))["side"]
    assert np.array_equal(recording.actions, numbers.actions)
    for step in (0, 1, 11, 5):
        seen = recording.observation(step)
        assert np.array_equal(seen.frames["side"], frames[step])
        assert np.array_equal(seen.proprio, numbers.proprio[step])


def test_blocks_of_steps_cover_an_episode_that_is_longer(run, monkeypatch):
    monkeypatch.setattr("robovlms.commands.open_loop.BLOCK", 5)
    (recording,) = recorded(run, 4)
    frames = recorded(run, 4)[0]._blocks.reader.frames(4, np.arange(12))["side"]
    assert all(np.array_equal(recording.observation(step).frames["side"], frames[step]) for step in range(12))


class Unseen(Recording):
    def observation(self, step):
        raise NotImplementedError


def test_errors_are_held_against_the_mean_and_the_last_action():
    recorded = np.array([[0.0, -1], [2, -1], [4, 1], [6, -1]], np.float32)
    predicted = np.array([[1.0, -1], [2, -1], [4, 1], [5, 1]], np.float32)
    episode = Replayed(recording=Unseen(), recorded=recorded, predicted=predicted, last=recorded[previous(4, 2)])
    arm, gripper = entry_errors([episode], ["x", "gripper"], [1])
    assert arm.policy == pytest.approx(0.5**0.5)
    assert arm.mean == pytest.approx(5**0.5)
    assert arm.last == pytest.approx(((0 + 4 + 4 + 16) / 4) ** 0.5)  # 0 0 2 2 instead of 0 2 4 6
    assert arm.explained == pytest.approx(0.9)
    assert (gripper.policy, gripper.mean, gripper.last) == (0.75, 0.75, 0.75)


def test_the_action_before_a_chunk_is_that_of_the_step_before_it_began():
    assert previous(7, 1).tolist() == [0, 0, 1, 2, 3, 4, 5]
    assert previous(7, 3).tolist() == [0, 0, 0, 2, 2, 2, 5]


def test_a_policy_that_repeats_the_last_action_is_told_from_one_that_follows():
    recorded = np.cumsum(np.ones((20, 2), np.float32), axis=0)
    last = recorded[previous(20, 4)]

    def share(predicted):
        return copied([Replayed(recording=Unseen(), recorded=recorded, predicted=predicted, last=last)], [0, 1])

    assert share(last) == 0
    assert share(recorded) > 1
    assert share(0.5 * (last + recorded)) == pytest.approx(1)
    still = Replayed(recording=Unseen(), recorded=last * 0, predicted=last, last=last)
    assert copied([still], [0, 1]) is None


def test_a_mixture_has_a_section_for_every_source(calvin_folder, tmp_path):
    make_arm_folder(tmp_path / "arm")
    train(completed(composed(*mixture(calvin_folder, tmp_path / "arm", tmp_path / "run", "schedule.total=2 step"))))
    (path,) = open_loop(OpenLoopConfig(checkpoint=str(tmp_path / "run"), episodes=1))
    told = json.loads(path.with_suffix(".json").read_text())["entries"]
    assert {name: len(entries) for name, entries in told.items()} == {"play": 7, "arm": 2}
    assert "<h2>arm</h2>" in path.read_text()
    (path,) = open_loop(OpenLoopConfig(checkpoint=str(tmp_path / "run"), episodes=1, source="arm"))
    assert json.loads(path.with_suffix(".json").read_text())["entries"].keys() == {"arm"}


@pytest.mark.plots
def test_a_run_ends_with_the_page_of_its_last_checkpoint_unless_told_not_to(calvin_folder, tmp_path):
    for episodes in (0, 1):
        out = tmp_path / str(episodes)
        few = ["schedule.total=2 step", f"trainer.open_loop_episodes={episodes}"]
        train(completed(composed(*tiny_run(calvin_folder, out, *few))))
        assert (out / "open_loop" / "step_000002.html").is_file() is bool(episodes)


def test_a_page_of_every_checkpoint_is_written_where_all_are_asked_for(calvin_folder, tmp_path):
    train(completed(composed(*tiny_run(calvin_folder, tmp_path / "run"))))
    pages = open_loop(
        OpenLoopConfig(checkpoint=str(tmp_path / "run"), checkpoints="all", episodes=1, split=Split.train)
    )
    assert [page.name for page in pages] == ["step_000002.html", "step_000004.html"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"checkpoints": "sometimes"}, "checkpoints=sometimes"),
        ({"watch": True}, "checkpoints=last is known at the end alone"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(changes, told):
    with pytest.raises(UserError, match=re.escape(told)):
        OpenLoopConfig(checkpoint="runs/x", **changes)


def test_data_that_moved_is_read_where_it_is(run, tmp_path):
    config = OpenLoopConfig(checkpoint=run.output_dir, episodes=1, data=MovedDataConfig(root=str(tmp_path / "none")))
    with pytest.raises(FileNotFoundError, match="none"):
        open_loop(config)
    assert moved(run.data, None) is run.data
    assert moved(run.data, "/new").root == "/new"


def test_sources_that_lie_below_a_folder_move_with_it(calvin_folder, tmp_path):
    data = completed(
        composed(*mixture(calvin_folder, tmp_path / "arm", tmp_path / "run", f"data.root={calvin_folder}"))
    ).data
    with pytest.raises(UserError, match="does not lie below"):
        moved(data, "/new")
    del data.sources["arm"]
    assert moved(data, "/new").sources["play"].root == "/new"


def test_more_of_a_chunk_than_there_is_is_refused(run):
    with pytest.raises(UserError, match=r"execute_steps=9 must lie in 1\.\.3"):
        open_loop(OpenLoopConfig(checkpoint=run.output_dir, execute_steps=9))


def test_a_run_without_validation_episodes_says_which_split_has_some(run, calvin_folder, tmp_path):
    extra = ["data.validation_fraction=0", "schedule.warmup=0 step", "schedule.total=1 step"]
    train(completed(composed(*colour_run(run.data.root, tmp_path / "run", *extra))))
    with pytest.raises(UserError, match="set split=train"):
        open_loop(OpenLoopConfig(checkpoint=str(tmp_path / "run")))
