"""OpenVLA's mixtures of Open X-Embodiment: each data set's options and published layout, weights, the docs' table."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing import completed, composed, open_windows, plan_of
from omegaconf import OmegaConf
from oxe_layouts import LAYOUTS, STEPS, TOLD, make_oxe_folder

from robovlms.actions.checks import Severity, numeric_findings
from robovlms.actions.contract import GRIPPER, position_entries, rotation_entries
from robovlms.actions.plan import Source
from robovlms.config.choices import RLDSTransform, Rotation
from robovlms.config.data import ActionContract, DataConfig
from robovlms.config.run import TrainConfig
from robovlms.data.rlds.reader import RldsReader
from robovlms.data.rlds.schema import RLDSDataConfig
from robovlms.data.windows import WindowDataset

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "data_rlds.md"
MIXTURES = ("rtx", "oxe_magic_soup", "oxe_magic_soup_plus")
SEVEN = ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]

# OpenVLA prismatic/vla/datasets/rlds/oxe/mixtures.py, typed a second time: rtx, oxe_magic_soup, oxe_magic_soup_plus.
WEIGHTS: dict[str, tuple[float | None, float | None, float | None]] = {
    "bridge": (1, 1, 1),
    "fractal": (0.54087122203, 0.54087122203, 0.54087122203),
    "kuka": (0.8341046294, 0.8341046294, 0.8341046294),
    "taco_play": (2, 2, 2),
    "jaco_play": (2, 1, 1),
    "berkeley_cable_routing": (3, 1, 1),
    "roboturk": (1, 2, 2),
    "viola": (2, 2, 2),
    "berkeley_autolab_ur5": (1, 2, 2),
    "toto": (1, 1, 1),
    "language_table": (None, 0.1, 0.1),
    "stanford_hydra": (None, 2, 2),
    "austin_buds": (None, 1, 1),
    "nyu_franka_play": (None, 3, 3),
    "furniture_bench": (None, 0.1, 0.1),
    "ucsd_kitchen": (None, 2, 2),
    "austin_sailor": (None, 1, 1),
    "austin_sirius": (None, 1, 1),
    "dlr_edan_shared_control": (None, 1, 1),
    "iamlab_cmu_pickup_insert": (None, 1, 1),
    "utaustin_mutex": (None, 1, 1),
    "berkeley_fanuc_manipulation": (None, 2, 2),
    "cmu_stretch": (None, 1, 1),
    "bc_z": (None, None, 0.2),
    "fmb": (None, None, 1),
    "dobbe": (None, None, 0.2),
    "droid": (None, None, 0.06),
}
OPENVLA = {"bridge": "bridge_orig", "fmb": "fmb_dataset"}  # names of statistics that are not those of the folders


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBOVLMS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("oxe")


@pytest.fixture(scope="module")
def plus(root) -> TrainConfig:
    """The largest mixture, with windows of two frames and chunks of two actions, and its data sets in their folders."""
    options = ("view=side_wrist", f"data.root={root}", "window.window_size=2", "window.chunk_size=2")
    config = completed(composed("data=oxe_magic_soup_plus", *options))
    for name, part in config.data.sources.items():
        make_oxe_folder(Path(part.root), name, Path(part.root).name)
    return config


def yaml_of(name: str) -> str:
    return (ROOT / "configs" / "data" / f"{name}.yaml").read_text()


def with_proprio(name: str, part: RLDSDataConfig) -> RLDSDataConfig:
    """Let the policy see what the comment in the YAML says; unchanged where nothing is said."""
    found = re.search(r"proprio_key: null  # (\S+) with proprio_names=\[([^]]*)\]", yaml_of(name))
    return part if found is None else replace(part, proprio_key=found[1], proprio_names=found[2].split(","))


# ---- every data set


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_data_set_is_read_from_its_published_layout(plus, name):
    part = with_proprio(name, plus.data.sources[name])
    reader = RldsReader(part, "train", views=part.view_names)
    dataset = WindowDataset(reader, Source.of(part), window_size=2, chunk_size=2)
    sample = dataset[0]
    assert sample.instruction == TOLD
    assert {view: frames.shape for view, frames in sample.frames.items()} == dict.fromkeys(part.views, (2, 4, 6, 3))
    assert (sample.proprio is None) == (part.proprio_key is None)
    if sample.proprio is not None:
        assert sample.proprio.shape == (2, len(part.proprio_names))
    assert len(reader.episodes) == 1
    assert reader.episodes[0].length == (STEPS - 2 if name == "bridge" else STEPS)


def test_only_roboturk_and_cable_routing_have_no_proprioception_whose_meaning_is_known():
    silent = [name for name in WEIGHTS if "with proprio_names=" not in yaml_of(name)]
    assert silent == ["berkeley_cable_routing", "roboturk"]


def test_all_together_are_a_mixture_of_seven_entries_that_teaches_what_each_of_them_means(plus):
    dataset = open_windows(plus, "train")
    starts = np.cumsum([0, *dataset.sizes[:-1]])
    assert list(plus.data.sources) == list(WEIGHTS)
    for name, start in zip(plus.data.sources, starts.tolist(), strict=True):
        sample, taught = dataset[start], LAYOUTS[name].taught
        np.testing.assert_allclose(sample.actions[0], taught, atol=1e-6, err_msg=name)
    not_taught = {name: [] for name in WEIGHTS}
    for name, start in zip(WEIGHTS, starts.tolist(), strict=True):
        not_taught[name] = [
            entry for entry, taught in zip(SEVEN, dataset[start].action_dims, strict=True) if not taught
        ]
    turns = ["droll", "dpitch", "dyaw"]
    assert {name: entries for name, entries in not_taught.items() if entries} == {
        "jaco_play": turns,
        "austin_buds": turns,
        "cmu_stretch": turns,
        "berkeley_cable_routing": ["gripper"],
        "language_table": ["dz", *turns, "gripper"],
    }


@pytest.mark.parametrize(
    ("name", "view", "is_turned"),
    [
        ("berkeley_autolab_ur5", "wrist", True),
        ("berkeley_autolab_ur5", "side", False),
        ("stanford_hydra", "side", True),
        ("utaustin_mutex", "wrist", True),
        ("berkeley_fanuc_manipulation", "side", True),
        ("fmb", "side", True),
        ("viola", "wrist", False),
        ("droid", "side", False),
    ],
)
def test_pictures_that_were_published_blue_first_come_out_red_first(plus, name, view, is_turned):
    reader = RldsReader(plus.data.sources[name], "train", views=[view])
    pixel = reader.frames(0, np.array([0]))[view][0, 0, 0]
    np.testing.assert_allclose(pixel, [0, 0, 200] if is_turned else [200, 0, 0], atol=3)


def test_a_policy_acts_as_one_data_set_in_its_own_words(plus):
    def words(name: str) -> tuple[str, str, float | None, list[str]]:
        contract = plan_of(plus).find(name).contract
        return str(contract.representation), str(contract.rotation), contract.position_unit, contract.names

    assert words("viola") == ("delta", "axis_angle", 0.05, ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"])
    assert words("toto") == ("absolute", "euler", 1.0, ["x", "y", "z", "roll", "pitch", "yaw", "gripper"])
    assert words("ucsd_kitchen")[2] == 0.001
    assert words("berkeley_cable_routing")[2] is None
    assert words("iamlab_cmu_pickup_insert")[:2] == ("absolute", "euler")


# ---- what OpenVLA published of the real files


def in_our_words(values: list[float], contract: ActionContract) -> list[float]:
    """Put a row of OpenVLA's seven entries in the order of a contract, the gripper -1 or +1."""
    turns = rotation_entries(contract.names, contract.rotation)
    row = np.zeros(len(contract.names))
    places = position_entries(contract.names) or range(min(2, len(contract.names)))
    row[list(places)] = values[: len(list(places))]
    if len(turns) == 3:
        row[turns] = values[3:6]
    row[-1] = 2 * values[6] - 1
    return row.tolist()


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name not in ("language_table", "droid")])
def test_the_numbers_of_the_real_files_can_mean_what_the_contract_says(plus, shared_data, name):
    published = json.loads((shared_data / "norm_stats" / "openvla_style" / "config.json").read_text())["norm_stats"]
    part = plan_of(plus).find(name)
    folder = Path(part.config.root).name
    statistics = published[OPENVLA.get(name, folder)]["action"]
    rows = np.array([in_our_words(statistics[key], part.contract) for key in ("q01", "mean", "q99")])
    findings = numeric_findings(rows, part.contract, part.contract.names)
    assert [str(finding) for finding in findings if finding.severity is Severity.error] == []


def test_absolute_poses_are_those_that_never_come_near_zero(plus, shared_data):
    published = json.loads((shared_data / "norm_stats" / "openvla_style" / "config.json").read_text())["norm_stats"]
    absolute = {name for name, part in plus.data.sources.items() if part.contract.representation == "absolute"}
    far = {name for name, found in published.items() if found["action"]["q01"][0] > 0}
    assert {Path(plus.data.sources[name].root).name for name in absolute} == far


# ---- the mixtures


def weights_in(mixture: str) -> dict[str, float]:
    """Read the weights of a mixture from its file and those that it begins with: to compose them all takes seconds."""
    file = OmegaConf.load(ROOT / "configs" / "data" / f"{mixture}.yaml")
    weights = weights_in(file.defaults[0]) if file.defaults[0] in (*MIXTURES, "oxe") else {}
    return weights | {name: part.weight for name, part in file.sources.items() if "weight" in part}


@pytest.mark.parametrize("number", range(len(MIXTURES)))
def test_a_mixture_has_openvlas_data_sets_and_weights(number):
    wanted = {name: weights[number] for name, weights in WEIGHTS.items() if weights[number] is not None}
    assert weights_in(MIXTURES[number]) == wanted


def test_shares_are_weights_times_sizes_as_openvlas_are(plus):
    assert {name: part.weight for name, part in plus.data.sources.items()} == weights_in("oxe_magic_soup_plus")
    assert plus.data.weigh_by_size


def test_a_data_set_can_be_left_out_weighed_otherwise_or_lie_elsewhere(tmp_path):
    options = ("~data.sources.bridge", "data.sources.fractal.weight=7", "data.sources.fractal.root=/other/fractal")
    parts = completed(composed("data=oxe", "view=side", f"data.root={tmp_path}", *options)).data.sources
    assert {name: (part.root, part.weight) for name, part in parts.items()} == {"fractal": ("/other/fractal", 7)}


def test_what_is_missing_of_a_mixture_is_said_before_anything_is_read(tmp_path):
    (tmp_path / "bridge_dataset").mkdir()
    config = completed(composed("data=oxe", "view=side", f"data.root={tmp_path}"))
    said = r"2 of 2 data sets .*\n.*Did you mean 'bridge_dataset'\?\n.*fractal2022"
    with pytest.raises(FileNotFoundError, match=said):
        open_windows(config, "train")


def test_a_data_set_is_an_option_of_its_own(plus):
    folder = plus.data.sources["droid"].root
    config = completed(composed("data=droid", "view=side", f"data.root={folder}", "window=w1_c1"))
    assert config.data.weight == 1.0
    assert len(open_windows(config, "validation")) == STEPS


# ---- the table in the docs


def describe_action(data: DataConfig) -> str:
    contract = data.contract
    words = [f"{contract.representation}, {contract.frame}"]
    if contract.rotation is not Rotation.none:
        words.append(str(contract.rotation))
    if None in (contract.position_unit, contract.rotation_unit):
        words.append("units not known")
    else:
        units = [contract.position_unit] + [contract.rotation_unit] * (contract.rotation is not Rotation.none)
        words.append(" ".join(f"{unit:.3g} {what}" for unit, what in zip(units, ("m", "rad"), strict=False)))
    return ", ".join(words)


def describe_gripper(data: Any) -> str:
    if data.contract.names[-1] != GRIPPER:
        return "none"
    how = {RLDSTransform.gripper_motions: "motions, ", RLDSTransform.gripper_clip: "clipped, "}
    return f"{how.get(data.transform, '')}{data.contract.gripper_closed:g} / {data.contract.gripper_open:g}"


def make_table(config: TrainConfig) -> str:
    lines = [
        "| `data=`, folder | `rtx` | `..._soup` | `..._plus` | views | action | gripper, closed / open | Hz | source |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, part in config.data.sources.items():
        source = re.search(r"^# Source: ([^;]*);", yaml_of(name), re.MULTILINE)
        assert source is not None, name
        folder = Path(part.root).name
        cells = [
            f"`{name}`" + ("" if folder == name else f" {folder}"),
            *("" if weight is None else f"{weight:.4g}" for weight in WEIGHTS[name]),
            ", ".join(f"{view}: {key}" for view, key in part.views.items()),
            describe_action(part),
            describe_gripper(part),
            f"{part.contract.control_hz:g}",
            source[1],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_the_table_of_the_docs_is_that_of_the_options(plus):
    table = make_table(plus)
    written = re.search(r"<!-- table of \S+ -->\n(.*)\n<!-- end of the table -->", PAGE.read_text(), re.DOTALL)
    assert written is not None
    assert written[1] == table, f"write this into {PAGE}:\n{table}"
