from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from composing import completed, composed
from PIL import Image
from recordings import MemoryReader, make_contract, make_dataset

from robovlms.cli.app import help_page
from robovlms.commands.inspect_data import inspect_data, write_inspection
from robovlms.config.choices import Rotation
from robovlms.config.commands import InspectConfig
from robovlms.config.data import ConvertConfig
from robovlms.inspection.episode import load_replay
from robovlms.inspection.episode_page import write_episode
from robovlms.inspection.report import Histogram, inspect_dataset
from robovlms.inspection.text import format_report

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"'&\u2028"


class Page(HTMLParser):
    """Collects what a page consists of."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "script" and data.strip():
            self.scripts.append(data)

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


def broken_reader() -> MemoryReader:
    """Return 8 episodes of 25 frames in which one thing of every kind is wrong."""
    reader = MemoryReader([25] * 8, ["lift the cup"] * 5 + ["open the drawer"] * 3)
    for actions in reader.actions:
        actions[:, 3] = 0
        actions[:, -1] *= -1
    reader.actions[2][11, 1] = np.nan
    reader.actions[4][7, 0] = 0.2
    reader.pictures["side"][5][10:18] = reader.pictures["side"][5][10]
    return reader


def report(reader, max_frames=1000, **changes):
    dataset = make_dataset(reader, **changes)
    return inspect_dataset(dataset, name="memory", split="train", max_frames=max_frames, outlier_iqr=3.0)


def test_everything_that_is_wrong_is_found_and_named():
    found = report(broken_reader())
    assert [(str(f.severity), f.what.split(" in ")[0].split(" (")[0]) for f in found.findings] == [
        ("error", "dy: NaN or infinite"),
        ("warning", "never changes: droll"),
        ("warning", "the gripper starts closed and opens later"),
        ("warning", "view 'side' shows the same picture again"),
    ]
    assert found.findings[0].where == "memory: episode 2, frames 11-11"
    assert found.findings[3].where == "memory: episode 5, frames 10-17"
    (outlier,) = found.outliers
    assert (outlier.entry, outlier.source) == ("dx", "memory: episode 4, frames 7-7")
    assert outlier.value == pytest.approx(0.2)


def test_the_report_counts_what_can_be_counted_by_hand():
    found = report(MemoryReader([5, 3, 2], ["a", "b", "a"]), window_size=2, chunk_size=3)
    assert (found.num_episodes, found.num_frames, found.num_windows) == (3, 10, 4 + 2 + 1)
    assert found.seconds == 1.0
    assert found.instructions == {"a": 2, "b": 1}
    # The last windows of an episode miss 2, 1, 0, ... of their 4 actions: 2 + 1, 2 + 1 and 2 of 28.
    assert found.masked_share == pytest.approx(8 / 28)
    assert [(v.name, v.sizes, v.frames, v.repeated_share) for v in found.views] == [
        ("side", ["40 x 48"], 10, 0.0),
        ("wrist", ["32 x 32"], 10, 0.0),
    ]
    assert [(grip.name, grip.starts_open_share, grip.changes) for grip in found.grippers] == [("gripper", 1.0, 1.0)]


def test_the_share_of_masked_actions_is_what_the_windows_say():
    dataset = make_dataset(MemoryReader([5, 9, 4]), window_size=3, chunk_size=4)
    masks = np.concatenate([dataset[i].action_mask for i in range(len(dataset))])
    assert report(MemoryReader([5, 9, 4]), window_size=3, chunk_size=4).masked_share == pytest.approx((~masks).mean())


def test_statistics_are_those_of_the_rows_and_a_sample_says_so():
    reader = MemoryReader([10] * 10)
    everything = np.concatenate(reader.actions)
    found = report(reader)
    assert found.scanned == "all 100 frames"
    assert found.tables[0].statistics.mean == pytest.approx(everything.mean(axis=0), abs=1e-6)
    assert sum(found.tables[0].histograms[0].counts) == 100
    sampled = report(reader, max_frames=30)
    assert sampled.scanned == "a sample of 30 of 100 frames (3 of 10 episodes, evenly spread)"
    assert sampled.scanned in format_report(sampled)


@pytest.mark.parametrize(
    "values", [[], [1.0], [1, np.nextafter(np.float32(1), np.float32(2))], [1e-45, 0], [-3e38, 3e38], [7, 7, 7]]
)
def test_a_histogram_counts_every_value_whatever_their_range(values):
    assert sum(Histogram.of(np.array(values, np.float32)).counts) == len(values)


def test_converted_actions_have_a_table_of_their_own():
    converted = report(MemoryReader([20] * 3), contract=make_contract(), convert=ConvertConfig(position_unit=0.01))
    assert [table.title for table in converted.tables] == ["Actions as recorded", "Target actions, converted"]
    recorded, supervised = (table.statistics.max[0] for table in converted.tables)
    assert supervised == pytest.approx(100 * recorded, rel=1e-5)


def test_data_without_a_gripper_say_so():
    reader = MemoryReader([20] * 3)
    reader.actions = [actions[:, :3] for actions in reader.actions]
    contract = make_contract(names=["dx", "dy", "dz"], rotation=Rotation.none)
    assert report(reader, contract=contract).grippers == []
    replay = load_replay(make_dataset(reader, contract=contract), 0, 100)
    assert (replay.names, replay.actions.shape[1]) == (["dx", "dy", "dz"], 3)


def test_a_replay_holds_the_actions_and_masks_of_the_windows():
    reader = MemoryReader([9, 6])
    dataset = make_dataset(reader, window_size=3, chunk_size=4)
    replay = load_replay(dataset, 1, 100)
    assert replay.num_steps == 6
    assert replay.actions == pytest.approx(reader.actions[1])
    assert replay.masks == ["111111", "111110", "111100", "111000"]
    assert [mask == "".join("01"[int(real)] for real in dataset[number].action_mask)
            for mask, number in zip(replay.masks, dataset.windows(1), strict=True)] == [True] * 4  # fmt: skip


def test_a_page_holds_every_frame_of_every_view_once(tmp_path):
    dataset = make_dataset(MemoryReader([9, 6]))
    page = write_episode(load_replay(dataset, 0, 100), tmp_path / "page.html", title="memory")
    assert page.read_text().count("data:image/jpeg;base64,") == 9 * 2
    parsed = Page(page)
    assert {view: len(pictures) for view, pictures in parsed.data["pictures"].items()} == {"side": 9, "wrist": 9}
    assert (parsed.data["window"], parsed.data["chunk"], parsed.data["steps"]) == (3, 4, 9)
    assert parsed.tags.count("svg") == 7
    assert parsed.tags.count("polyline") == 7
    assert {"button", "input", "polyline"} <= set(parsed.tags)


def test_a_long_episode_shows_every_third_picture_and_all_steps(tmp_path):
    replay = load_replay(make_dataset(MemoryReader([25])), 0, 10)
    assert (replay.stride, len(replay.pictures["side"]), replay.num_steps) == (3, 9, 25)


def test_a_picture_that_cannot_be_read_leaves_a_gap_and_a_note(tmp_path):
    reader = MemoryReader([9, 6])
    reader.unreadable = {(0, 4)}
    page = write_episode(load_replay(make_dataset(reader), 0, 100), tmp_path / "page.html", title="memory")
    assert Page(page).data["pictures"]["side"][4] is None
    assert "1 pictures cannot be read: picture 4 of episode 0 is damaged" in page.read_text()


@pytest.mark.parametrize(
    ("episode", "message"), [(2, "there are 0 to 1 in"), (-1, "there are"), (1, "is shorter than")]
)
def test_an_episode_that_training_never_sees_is_refused(episode, message):
    with pytest.raises(ValueError, match=f"episode={episode}.*{message}"):
        load_replay(make_dataset(MemoryReader([9, 2])), episode, 100)


def make_config(tmp_path: Path, *overrides: str) -> InspectConfig:
    values = ["data.root=/nowhere", f"output_dir={tmp_path}", *overrides]
    return completed(composed(*values, config_name="inspect_data"), schema=InspectConfig)


def test_the_folder_holds_all_files_and_foreign_texts_stay_texts(tmp_path):
    reader = MemoryReader([9, 6], [EVIL, "lift\x00\x1b[31m\nthe cup"])
    config = make_config(tmp_path, "sheet_frames=4")
    found, index = write_inspection(make_dataset(reader), ["side", "wrist"], tmp_path, name=EVIL, config=config)
    assert {path.name for path in tmp_path.iterdir()} == {
        "index.html", "report.json", "contact_sheet.png", "episode_0.html",
    }  # fmt: skip
    for path in (index, tmp_path / "episode_0.html"):
        page = Page(path)
        assert page.tags.count("script") == (2 if path.name != "index.html" else 0)
        assert not [name for name, _ in page.attributes if name.startswith("on")]
        sources = [value for name, value in page.attributes if name in ("src", "href")]
        sources = [value for value in sources if not value.startswith("data:image/png;base64,")]
        assert all(value in ("index.html", "episode_0.html", "report.json", "contact_sheet.png") for value in sources)
        assert "Content-Security-Policy" in [value for _, value in page.attributes]
        assert "http" not in re.sub(r"http-equiv", "", path.read_text())
    assert json.loads((tmp_path / "report.json").read_text())["instructions"][EVIL] == 1
    assert "\x1b" not in format_report(found)
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.width > 4 * 112
        assert sheet.height > 4 * 112


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("view.views=[sid]", "'sid', which the data config does not map. Did you mean 'side'?"),
        ("max_frames_scanned=0", "max_frames_scanned=0 must be at least 1"),
        ("outlier_iqr=-1.0", "outlier_iqr=-1.0 must be above 0"),
        ("window.chunk_size=0", "must be at least 1"),
    ],
)
def test_values_that_make_no_sense_are_refused(override, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_config(tmp_path, override)


def test_the_help_page_shows_what_can_be_chosen():
    page = help_page("inspect_data")
    assert re.search(r"  data +[^*]*bridge [^*]*calvin\*", page)
    assert all(len(line) <= 120 for line in page.splitlines())


def test_calvin_is_looked_at_from_the_config(calvin_folder, tmp_path):
    config = make_config(tmp_path / "out", f"data.root={calvin_folder}", "window=w4_c10", "split=validation")
    ((found, index),) = inspect_data(config)
    assert (found.num_episodes, found.num_frames, index) == (2, 48, tmp_path / "out" / "index.html")
    assert "reach target 0" in format_report(found)


def test_real_calvin_frames_give_one_warning(shared_data, tmp_path):
    config = make_config(tmp_path, f"data.root={shared_data / 'calvin_mini'}", "max_frames_scanned=150")
    ((found, _),) = inspect_data(config)
    assert found.scanned.startswith("a sample of ")
    assert [finding.what for finding in found.findings] == ["never changes: droll (0), dpitch (0), dyaw (0)"]
    assert Page(tmp_path / "episode_0.html").data["masks"][0] == "1" * 25


def test_a_wrong_gripper_is_found_in_a_real_lerobot_folder(shared_data, tmp_path):
    root = shared_data / "lerobot_v21_franka_sim_internvla" / "sim_pick_place"
    config = make_config(
        tmp_path, "data=lerobot", "view=side", f"data.root={root}", "data.skip_bad=true", "window=w1_c10",
        "data.views.side=video.ego_view", "data.contract.frame=base", "data.contract.position_unit=1",
        "data.contract.control_hz=30", "data.contract.gripper_closed=1", "data.contract.gripper_open=0",
        "data.action_key=action.delta_eef_position+action.delta_eef_rotation+action.gripper_close",
        "max_frames_scanned=60", "max_page_frames=20",
    )  # fmt: skip
    ((found, _),) = inspect_data(config)
    assert found.num_errors == 1
    assert "(recorded are -1 to -1)" in found.findings[0].what


def test_every_part_of_a_mixture_is_opened_before_one_is_scanned(calvin_folder, tmp_path):
    def config(second: Path) -> InspectConfig:
        options = ["data=mixture", "window=w4_c10", "data.contract={frame:world,position_unit:0.02,control_hz:30}"]
        options += ["data.contract.rotation=euler_increment", "data.contract.rotation_unit=0.05", "view=side"]
        for name, root in (("near", calvin_folder), ("far", second)):
            options += [f"+data@data.sources.{name}=calvin", f"data.sources.{name}.root={root}"]
        return completed(composed(*options, f"output_dir={tmp_path}", config_name="inspect_data"), schema=InspectConfig)

    with pytest.raises(FileNotFoundError, match=r"far: .*nowhere"):
        inspect_data(config(tmp_path / "nowhere"))
    assert list(tmp_path.iterdir()) == []
    reports = [(format_report(found).split(":")[0], index) for found, index in inspect_data(config(calvin_folder))]
    assert reports == [
        ("near, train", tmp_path / "near" / "index.html"),
        ("far, train", tmp_path / "far" / "index.html"),
    ]
