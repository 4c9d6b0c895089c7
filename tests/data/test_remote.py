"""Data sets on the Hub: what is downloaded, which commit a run is of, and what its answers mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calvin_folder import losses, make_calvin_folder, tiny_run
from composing import completed, composed
from hub_server import Hub
from huggingface_hub import constants
from lerobot_folder import CAMERA, NAMES, write_v2, write_v3
from miniatures import make_miniature

from robovlms.commands.edit_data import edit_data
from robovlms.commands.inspect_data import find_out
from robovlms.commands.train import train
from robovlms.config.data import DataConfig
from robovlms.data.editing.schema import EditDataConfig
from robovlms.data.remote import fetch, pin
from robovlms.errors import UserError
from robovlms.policy.checkpoint import CONFIG, checkpoints, load_config
from robovlms.registry import DATASETS

NAME = "lab/cups"
ROOT = f"hf://{NAME}"


def publish(hub: Hub, folder: Path, below: str = "", branch: str = "main") -> str:
    """Make a folder the content of the data set's repository, and return the commit."""
    files = {
        below + str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
    return hub.commit(f"datasets/{NAME}", files, branch)


def downloaded(hub: Hub) -> list[str]:
    """Return the files that were asked for since the last call."""
    asked = [line.partition("/resolve/")[2] for line in hub.asked if line.startswith("GET /datasets/")]
    hub.asked.clear()
    return sorted(line.partition("/")[2] for line in asked)


def lerobot(root: str = ROOT, **changes) -> DataConfig:
    config = completed(composed("data=lerobot", "view=side")).data
    contract = replace(config.contract, names=NAMES, control_hz=10.0)
    return replace(config, root=root, contract=contract, **{"views": {"side": CAMERA}, **changes})


@pytest.mark.parametrize("name", DATASETS.names())
def test_every_format_is_read_from_the_hub_as_from_a_folder(hub, tmp_path, name):
    pytest.importorskip("h5py", reason='pip install "robovlms[libero]"')
    here = make_miniature(completed(composed(f"data={name}", "view=side")).data, tmp_path / "made", steps=6)
    publish(hub, tmp_path / "made", below="some folder/v1/")
    there = fetch(pin(replace(here, root=f"hf://datasets/{NAME}@main/some folder/v1")), list(here.views))
    ours, theirs = (DATASETS.get(name)(config, "train", views=list(here.views)) for config in (there, here))
    assert ours.episodes == theirs.episodes
    steps = np.arange(5)
    np.testing.assert_array_equal(ours.numbers(0, steps).actions, theirs.numbers(0, steps).actions)
    for view, frames in theirs.frames(0, steps).items():
        np.testing.assert_array_equal(ours.frames(0, steps)[view], frames)


def test_videos_that_are_not_looked_at_and_episodes_that_are_not_chosen_stay_on_the_hub(hub, tmp_path):
    publish(hub, write_v2(tmp_path / "made", lengths=(8, 7, 6), videos=(8, 7, 6)))
    fetch(lerobot(episodes="0,2"), ["side"])
    name = "chunk-000/{}/episode_00000{}.mp4"
    assert [path for path in downloaded(hub) if not path.startswith("meta/")] == [
        "data/chunk-000/episode_000000.parquet",
        "data/chunk-000/episode_000002.parquet",
        *(f"videos/{name.format(CAMERA, i)}" for i in (0, 2)),
    ]
    fetch(lerobot(), [])
    assert downloaded(hub) == ["data/chunk-000/episode_000001.parquet"]
    fetch(lerobot(), ["side"])
    assert downloaded(hub) == [f"videos/{name.format(CAMERA, 1)}"]


def test_files_that_hold_several_episodes_are_downloaded_for_any_of_them(hub, tmp_path):
    publish(hub, write_v3(tmp_path / "made", files=(0, 0, 1), video=True))
    there = fetch(lerobot(episodes="1"), ["side"])
    assert [path for path in downloaded(hub) if not path.startswith("meta/")] == [
        "data/chunk-000/file-000.parquet",
        f"videos/{CAMERA}/chunk-000/file-000.mp4",
    ]
    reader = DATASETS.get("lerobot")(there, "train", views=["side"])
    assert [reader.number(i) for i in range(len(reader.episodes))] == [1]


def test_a_run_is_of_the_commit_that_it_began_with(hub, tmp_path):
    first = publish(hub, write_v2(tmp_path / "a"))
    before = pin(lerobot())
    assert before.root == f"{ROOT}@{first}"
    second = publish(hub, write_v2(tmp_path / "b", lengths=(8, 8)))
    assert pin(lerobot()).root == f"{ROOT}@{second}"
    assert pin(lerobot(), before).root == f"{ROOT}@{first}"
    assert pin(lerobot(f"{ROOT}@{first}"), before).root == f"{ROOT}@{first}"
    assert pin(lerobot("hf://lab/others@" + second), before).root.startswith("hf://lab/others@")
    assert pin(lerobot("/a/copy"), before).root == "/a/copy"
    for root in (f"{ROOT}@main", f"{ROOT}@{second}"):
        with pytest.raises(
            UserError, match=rf"is commit {second}, but the run that is resumed was trained on .*{first}"
        ):
            pin(lerobot(root), before)


def test_a_list_of_episodes_is_recorded_by_its_numbers(tmp_path):
    (tmp_path / "keep.json").write_text("[4, 0, 1]")
    pinned = pin(lerobot("/x", episodes=f"{tmp_path / 'keep.json'},7-,-9"))
    assert pinned.episodes == "0-1,4,7-,-9"
    assert pin(pinned) == pinned
    (tmp_path / "bad.json").write_text("[]")
    assert pin(lerobot("/x", episodes=f"-{tmp_path / 'bad.json'}")).episodes is None


def test_sources_of_a_mixture_are_pinned_and_fetched_each(hub, tmp_path):
    commit = publish(hub, make_calvin_folder(tmp_path / "made"), below="task_D_D/")
    lines = ["data=mixture", f"data.root={ROOT}", "+data@data.sources.play=calvin"]
    mixture = completed(composed(*lines, "data.sources.play.root=${data.root}/task_D_D", "view=side")).data
    pinned = pin(mixture)
    assert pinned.sources["play"].root == f"{ROOT}@{commit}/task_D_D"
    assert Path(fetch(pinned, ["side"]).sources["play"].root, "training").is_dir()
    with pytest.raises(FileNotFoundError, match=r"data\.sources\.play\.episodes: /no\.json does not exist"):
        pin(replace(mixture, sources={"play": replace(mixture.sources["play"], episodes="/no.json")}))


@pytest.mark.parametrize(
    "root", ["hf://cups", "hf://lab/cups@a b", "hf://lab/cups@v1@v2", "hf:lab/cups", f"{ROOT}/../x"]
)
def test_what_is_no_address_is_refused_with_the_form(root):
    with pytest.raises(UserError, match=r"data\.root=hf:.* is no address .* hf://<owner>/<name>"):
        pin(lerobot(root))


def test_what_the_hub_answers_is_said_in_one_line_with_what_to_do(hub, tmp_path, monkeypatch):
    publish(hub, write_v2(tmp_path / "made"))
    with pytest.raises(UserError, match=r"hf://lab/gone: the Hub has no such repository, or a private one"):
        pin(lerobot("hf://lab/gone"))
    with pytest.raises(UserError, match=r"has no revision v9"):
        pin(lerobot(f"{ROOT}@v9"))
    with pytest.raises(UserError, match=r"has no folder 'nothing/here' with files that are read"):
        fetch(pin(lerobot(f"{ROOT}/nothing/here")), ["side"])
    hub.gated.add(f"datasets/{NAME}")
    with pytest.raises(UserError, match=r"is gated: ask for access on its page of the Hub, and log in"):
        pin(lerobot())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE=1 is set.*hf download lab/cups --repo-type dataset"):
        pin(lerobot())


def test_what_was_downloaded_whole_needs_no_network_and_what_was_not_is_refused(hub, tmp_path, monkeypatch):
    commit = publish(hub, write_v2(tmp_path / "made", videos=(8, 8, 8)))
    there = fetch(pin(lerobot(episodes="0")), ["side"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = pin(lerobot(episodes="0"))
    assert again.root == f"{ROOT}@{commit}"
    assert fetch(again, ["side"]) == there
    with pytest.raises(UserError, match="is not in the cache, or not all of it"):
        fetch(pin(lerobot()), ["side"])


def test_a_data_set_of_the_hub_is_edited_into_a_folder(hub, tmp_path):
    publish(hub, write_v2(tmp_path / "made"))
    (line,) = edit_data(EditDataConfig(root=ROOT, output_dir=str(tmp_path / "new"), drop="1"))
    assert "2 episodes, 16 frames" in line


@pytest.mark.slow
def test_a_run_records_its_commit_and_resumes_with_it(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = publish(hub, make_calvin_folder(tmp_path / "made"))
    base = [
        *tiny_run(Path("unused"), tmp_path / "run"),
        "schedule.total=2 step",
        f"data.root={ROOT}",
        "data.episodes='-0'",
    ]
    train(completed(composed(*base)))
    saved = load_config(checkpoints(tmp_path / "run")[-1] / CONFIG)
    assert (saved.data.root, saved.data.episodes) == (f"{ROOT}@{first}", "-0")
    second = hub.commit(f"datasets/{NAME}", {"README.md": b"emptied"})
    more = [*base, "trainer.resume=auto", "schedule.total=4 step"]
    with pytest.raises(UserError, match=f"is commit {second}"):
        train(completed(composed(*more, f"data.root={ROOT}@main")))
    with pytest.raises(UserError, match=r"data\.episodes: checkpoint -0, now -1"):
        train(completed(composed(*more, "data.episodes='-1'")))
    train(completed(composed(*more)))
    assert len(losses(tmp_path / "run")) == 4


def test_what_a_data_set_of_the_hub_holds_is_found_out_and_its_config_names_the_hub(hub, tmp_path):
    write_v3(tmp_path / "demos", video=True)
    publish(hub, tmp_path / "demos")
    found = find_out(ROOT, tmp_path / "robot.yaml")
    written = (tmp_path / "robot.yaml").read_text()
    assert f"\nroot: {ROOT}\n" in written
    assert found.text == written
    assert str(constants.HF_HUB_CACHE) not in found.said + written
