"""A mixture's outputs: whose entry stands where, and what is said of parts that are not there."""

from __future__ import annotations

import re

import pytest

from robovlms.choices import Frame, NormalizationMode, Representation, Rotation
from robovlms.config import ActionContract, DataConfig, MixtureDataConfig, NormalizationConfig
from robovlms.parts import check_roots, parts_of

SEVEN = ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
NORMALIZATION = NormalizationConfig(mode=NormalizationMode.identity)


def contract(names: list[str], rotation: Rotation = Rotation.euler, **changes) -> ActionContract:
    options = {"representation": Representation.delta, "frame": Frame.base, "position_unit": 1.0, "control_hz": 5.0}
    return ActionContract(names=names, rotation=rotation, **{**options, **changes})


def part(names: list[str], root: str = "", **changes) -> DataConfig:
    meaning = contract(names, **changes)
    return DataConfig(name="made_up", root=root, views={}, contract=meaning, normalization=NORMALIZATION)


def mixture(parts: dict[str, DataConfig], names: list[str] = SEVEN, **changes) -> MixtureDataConfig:
    options = {"contract": contract(names), "normalization": NORMALIZATION, "agree": False, **changes}
    return MixtureDataConfig(name="mixture", parts=parts, **options)


POSES = part(["x", "y", "z", "roll", "pitch", "yaw", "gripper"], representation=Representation.absolute)
TURNS = part(["dx", "dy", "dz", "drx", "dry", "drz", "gripper"], rotation=Rotation.axis_angle)
PLANAR = part(["dx", "dy"], rotation=Rotation.none)


def test_parts_that_keep_their_own_meaning_share_the_entries_of_an_axis():
    parts = parts_of(mixture({"poses": POSES, "turns": TURNS, "planar": PLANAR}))
    assert [each.entries for each in parts] == [list(range(7)), list(range(7)), [0, 1, 6]]
    assert parts[0].contract.representation is Representation.absolute
    assert parts[1].contract.names == ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]


def test_an_entry_that_the_mixture_names_itself_is_that_one():
    names = [*SEVEN[:-1], "x", "y", "z", "gripper"]
    (poses,) = parts_of(mixture({"poses": POSES}, names))
    assert poses.entries == [6, 7, 8, 3, 4, 5, 9]


def test_two_entries_of_a_part_never_share_one():
    with pytest.raises(ValueError, match=r"data.parts.odd.contract.names has 'x', which data.contract.names"):
        parts_of(mixture({"odd": part(["dx", "x", "gripper"], rotation=Rotation.none)}))


def test_parts_that_must_agree_do_not_share_by_axis():
    with pytest.raises(ValueError, match=r"data.parts.turns.contract.names has 'drx', which data.contract.names"):
        parts_of(mixture({"turns": TURNS}, agree=True))


def test_parts_that_are_not_there_are_named_all_at_once(tmp_path):
    for folder in ("kuka", "bridge_dataset"):
        (tmp_path / folder).mkdir()
    names = {"kuka": "kuka", "bridge": "bridge_orig", "toto": "toto"}
    parts = {name: part(SEVEN, root=str(tmp_path / folder)) for name, folder in names.items()}
    with pytest.raises(FileNotFoundError) as error:
        check_roots(mixture(parts, root=str(tmp_path)))
    assert str(error.value).splitlines() == [
        f"2 of 3 data sets are not there (data.root={tmp_path}):",
        f"  bridge: {tmp_path}/bridge_orig Did you mean 'bridge_dataset'?",
        f"  toto: {tmp_path}/toto",
        "Say where they lie, with data.root=<the folder that holds them> or data.parts.<name>.root=..., or do without: "
        "'~data.parts.bridge' '~data.parts.toto'",
    ]
    del parts["toto"], parts["bridge"]
    check_roots(mixture(parts, root=str(tmp_path)))


def test_a_single_data_set_is_its_readers_to_miss():
    check_roots(part(SEVEN, root="/nowhere"))
    with pytest.raises(FileNotFoundError, match=re.escape("1 of 1 data sets are not there (data.root=)")):
        check_roots(mixture({"bridge": part(SEVEN, root="/bridge_orig")}))
