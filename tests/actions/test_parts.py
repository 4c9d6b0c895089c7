"""A mixture's outputs: whose entry stands where, and what is said of parts that are not there."""

from __future__ import annotations

import re

import pytest

from robovlms.actions.plan import DataPlan
from robovlms.config.choices import NormalizationMode, ReferenceFrame, Representation, Rotation
from robovlms.config.data import ActionContract, DataConfig, MixtureDataConfig, NormalizationConfig
from robovlms.errors import UserError

SEVEN = ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
NORMALIZATION = NormalizationConfig(mode=NormalizationMode.identity)


def contract(names: list[str], rotation: Rotation = Rotation.euler, **changes) -> ActionContract:
    options = {
        "representation": Representation.delta,
        "frame": ReferenceFrame.base,
        "position_unit": 1.0,
        "control_hz": 5.0,
    }
    return ActionContract(names=names, rotation=rotation, **{**options, **changes})


def source(names: list[str], root: str = "", **changes) -> DataConfig:
    meaning = contract(names, **changes)
    return DataConfig(name="made_up", root=root, views={"side": "image"}, contract=meaning, normalization=NORMALIZATION)


def mixture(sources: dict[str, DataConfig], names: list[str] = SEVEN, **changes) -> MixtureDataConfig:
    options = {"contract": contract(names), "normalization": NORMALIZATION, "agree": False, **changes}
    return MixtureDataConfig(name="mixture", sources=sources, **options)


def plan(data: DataConfig) -> DataPlan:
    return DataPlan.of(data, ["side"])


POSES = source(["x", "y", "z", "roll", "pitch", "yaw", "gripper"], representation=Representation.absolute)
TURNS = source(["dx", "dy", "dz", "drx", "dry", "drz", "gripper"], rotation=Rotation.axis_angle)
PLANAR = source(["dx", "dy"], rotation=Rotation.none)


def test_parts_that_keep_their_own_meaning_share_the_entries_of_an_axis():
    sources = plan(mixture({"poses": POSES, "turns": TURNS, "planar": PLANAR})).sources
    assert [each.action_dims for each in sources] == [list(range(7)), list(range(7)), [0, 1]]
    assert sources[0].contract.representation is Representation.absolute
    assert sources[1].contract.names == ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]


def test_an_entry_that_the_mixture_names_itself_is_that_one():
    names = [*SEVEN[:-1], "x", "y", "z", "gripper"]
    (poses,) = plan(mixture({"poses": POSES}, names)).sources
    assert poses.action_dims == [6, 7, 8, 3, 4, 5, 9]


def test_two_entries_of_a_part_never_share_one():
    with pytest.raises(ValueError, match=r"data.sources.odd.contract.names has 'x', which data.contract.names"):
        plan(mixture({"odd": source(["dx", "x", "gripper"], rotation=Rotation.none)}))


def test_parts_that_must_agree_do_not_share_by_axis():
    with pytest.raises(ValueError, match=r"data.sources.turns.contract.names has 'drx', which data.contract.names"):
        plan(mixture({"turns": TURNS}, agree=True))


def test_parts_that_are_not_there_are_named_all_at_once(tmp_path):
    for folder in ("kuka", "bridge_dataset"):
        (tmp_path / folder).mkdir()
    names = {"kuka": "kuka", "bridge": "bridge_orig", "toto": "toto"}
    sources = {name: source(SEVEN, root=str(tmp_path / folder)) for name, folder in names.items()}
    with pytest.raises(FileNotFoundError) as error:
        plan(mixture(sources, root=str(tmp_path))).check_roots()
    assert str(error.value).splitlines() == [
        f"2 of 3 data sets are not there (data.root={tmp_path}):",
        f"  bridge: {tmp_path}/bridge_orig Did you mean 'bridge_dataset'?",
        f"  toto: {tmp_path}/toto",
        "Say where they are, with data.root=<the folder that holds them> or data.sources.<name>.root=..., or omit: "
        "'~data.sources.bridge' '~data.sources.toto'",
    ]
    del sources["toto"], sources["bridge"]
    plan(mixture(sources, root=str(tmp_path))).check_roots()


def test_a_single_data_set_is_its_readers_to_miss():
    plan(source(SEVEN, root="/nowhere")).check_roots()
    with pytest.raises(FileNotFoundError, match=re.escape("1 of 1 data sets are not there (data.root=)")):
        plan(mixture({"bridge": source(SEVEN, root="/bridge_orig")})).check_roots()


def test_a_source_is_found_by_its_name_and_the_only_one_without():
    whole = plan(mixture({"poses": POSES, "turns": TURNS}))
    assert whole.find("turns") is whole.sources[1]
    assert plan(POSES).find(None).name == "made_up"
    with pytest.raises(UserError, match=r"evaluation\.source=None: .* Choose one of poses, turns\."):
        whole.find(None)
    with pytest.raises(UserError, match=r"evaluation\.source=turn: .* Did you mean 'turns'\?"):
        whole.find("turn")
    with pytest.raises(UserError, match=r"evaluation\.source=foo: the policy was trained on one data set, made_up"):
        plan(POSES).find("foo")


def test_a_source_has_the_views_of_the_policy_that_it_maps():
    assert DataPlan.of(POSES, ["wrist", "side"]).sources[0].views == ["side"]
    with pytest.raises(UserError, match=r"made_up has none of view\.views=\['wrist'\]"):
        DataPlan.of(POSES, ["wrist"])


def test_the_only_source_whose_actions_an_environment_takes_needs_no_name():
    sources = plan(mixture({"poses": POSES, "turns": TURNS, "planar": PLANAR}))
    for name in ("poses", "turns", "planar"):
        assert sources.find(None, sources.find(name).contract).name == name
    twice = plan(mixture({"turns": TURNS, "again": TURNS}))
    for several, taken in [(twice, twice.find("turns").contract), (sources, contract(SEVEN)), (sources, None)]:
        with pytest.raises(UserError, match="Choose one of"):
            several.find(None, taken)
