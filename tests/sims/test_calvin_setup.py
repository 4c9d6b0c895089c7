"""What a user without CALVIN, or with half of it, is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from composing import completed, composed

from robovlms.errors import UserError
from robovlms.sims.calvin.chains import task_names
from robovlms.sims.calvin.environment import compose
from robovlms.sims.calvin.installation import OF_ENV, find_installation
from robovlms.sims.calvin.schema import CalvinSimConfig
from robovlms.sims.calvin.tasks import ORACLE, TRAINING, VALIDATION, read_criteria, read_tasks

FILES = [str(ORACLE), str(VALIDATION), str(TRAINING)]


def config(**options) -> CalvinSimConfig:
    return CalvinSimConfig(name="calvin", **{"episodes": 1, **options})


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch):
    monkeypatch.delenv("CALVIN_ROOT", raising=False)
    monkeypatch.delenv("CALVIN_ENV_ROOT", raising=False)
    for name in ("pybullet", "pybullet_utils", "gym", "cv2", "git", "quaternion"):
        if name not in sys.modules:
            monkeypatch.setitem(sys.modules, name, sys)  # installed, as far as this test is concerned


def make(folder: Path, files: list[str]) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_all_that_is_missing_is_told_at_once(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pybullet", None)
    with pytest.raises(ImportError) as raised:
        find_installation(config())
    message = str(raised.value)
    assert "sim.root is not set: run `git clone --recurse-submodules https://github.com/mees/calvin`" in message
    assert "set sim.root or CALVIN_ROOT" in message
    assert "sim.env_root is not set: run `git clone https://github.com/mees/calvin_env`" in message
    assert 'Python finds no pybullet: run `pip install -e ".[calvin]"`' in message


def test_a_checkout_that_lacks_files_is_named_with_them_and_with_who_named_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CALVIN_ENV_ROOT", str(tmp_path))
    root = make(tmp_path / "calvin", FILES[1:])
    with pytest.raises(ImportError) as raised:
        find_installation(config(root=str(root)))
    assert f"sim.root={root} has no {FILES[0]}: run `git clone" in str(raised.value)
    assert f"CALVIN_ENV_ROOT={tmp_path} has no {', '.join(OF_ENV)}" in str(raised.value)


def test_the_submodule_of_the_checkout_is_found_and_an_empty_one_is_not(tmp_path, monkeypatch) -> None:
    root = make(tmp_path, FILES)
    monkeypatch.setenv("CALVIN_ROOT", str(root))
    (root / "calvin_env").mkdir()
    with pytest.raises(ImportError, match=r"sim\.env_root is not set"):
        find_installation(config())
    make(root / "calvin_env", list(OF_ENV))
    assert find_installation(config()) == (root, root / "calvin_env")


def test_the_option_beats_the_environment_variable(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CALVIN_ROOT", "/nowhere")
    root, env = make(tmp_path / "a", FILES), make(tmp_path / "b", list(OF_ENV))
    assert find_installation(config(root=str(root), env_root=str(env))) == (root, env)


def test_chains_beyond_the_official_ones_are_refused_and_starts_of_a_task_are_not() -> None:
    with pytest.raises(UserError, match=r"sim\.seed=990 and sim\.episodes=20 .* up to number 1009: there are 1000"):
        completed(composed("sim=calvin", "sim.seed=990", "sim.episodes=20", "data.root=/nowhere"))
    completed(
        composed("sim=calvin", "sim.seed=990", "sim.episodes=20", "sim.tasks=[open_drawer]", "data.root=/nowhere")
    )


def test_a_data_set_without_calvin_s_configuration_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"sim\.dataset=.* has no \.hydra/merged_config\.yaml"):
        compose(config(dataset=str(tmp_path)), tmp_path)
    make(tmp_path, ["validation/.hydra/merged_config.yaml"])
    merged = tmp_path / "validation/.hydra/merged_config.yaml"
    for text, fault in [
        ("", "has no env, robot, scene, cameras.static, cameras.gripper"),
        ("env: {}\nrobot: {}\nscene: {}\ncameras: {static: {}}", "has no cameras.gripper"),
        ("- a", "cannot be read"),
        ("a: [", "cannot be read"),
        ("env: ${gone}\n", "cannot be read"),
        (
            "env: {}\nrobot: {a: [_target_: os.system]}\nscene: {}\ncameras: {static: {}, gripper: {}}",
            "would run os.system",
        ),
    ]:
        merged.write_text(text)
        with pytest.raises(UserError, match=fault):
            compose(config(dataset=str(tmp_path)), tmp_path)


def listing(**changed: str) -> str:
    """Return YAML with a sentence for every task."""
    return "\n".join(f"{name}: {changed.get(name, [name])}" for name in task_names())


def test_instructions_are_the_validation_sentence_and_paraphrases_the_training_ones(tmp_path) -> None:
    make(tmp_path, FILES)
    (tmp_path / VALIDATION).write_text(f'unknown_task: ["dance"]\n{listing(open_drawer="[pull the handle]")}\n')
    (tmp_path / TRAINING).write_text(listing(open_drawer="[open it, open the drawer]"))
    tasks = read_tasks(tmp_path)
    assert tuple(tasks) == task_names()
    assert tasks["open_drawer"].instruction == "pull the handle"
    assert tasks["open_drawer"].paraphrases == ("open it", "open the drawer")
    assert all(tasks[task.opposite].opposite == task.name for task in tasks.values() if task.opposite)


@pytest.mark.parametrize(
    "text", ["", "a: [", "- 1", "open_drawer: [x]", listing(open_drawer="[]"), listing(open_drawer="x")]
)
def test_a_damaged_list_of_the_checkout_is_named(tmp_path, text) -> None:
    make(tmp_path, FILES)
    (tmp_path / VALIDATION).write_text(listing())
    (tmp_path / TRAINING).write_text(text)
    with pytest.raises(UserError, match=r"sim\.root: .*new_playtable\.yaml .*clone"):
        read_tasks(tmp_path)
    (tmp_path / ORACLE).write_text(text)
    with pytest.raises(UserError, match=r"sim\.root: .*new_playtable_tasks\.yaml .*clone"):
        read_criteria(tmp_path)
