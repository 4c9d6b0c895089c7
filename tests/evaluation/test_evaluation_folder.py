"""The folder of an evaluation: begun anew last, and without touching what is not its own."""

import json

import pytest

from robovlms.errors import UserError
from robovlms.evaluation.folder import evaluation_folder


def write(folder, journal='{"conditions": {}}\n{"task": "reach"}\n', results="{}"):
    (folder / "videos").mkdir(parents=True)
    (folder / "videos" / "a.mp4").write_text("video")
    (folder / "episodes.jsonl").write_text(journal)
    (folder / "results.json").write_text(results)


def evaluate(folder, journal, error):
    """Begin anew, write a journal, and fail."""
    with evaluation_folder(folder, overwrite=True):
        (folder / "episodes.jsonl").write_text(journal)
        raise error


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_overwriting_replaces_results_and_leaves_the_rest(tmp_path):
    write(tmp_path)
    (tmp_path / "thesis.tex").write_text("chapter one")
    with evaluation_folder(tmp_path, overwrite=True):
        assert contents(tmp_path / "videos") == {}
        (tmp_path / "results.json").write_text("new")
    assert contents(tmp_path) == {"thesis.tex": "chapter one", "results.json": "new"}


def test_an_evaluation_that_fails_before_its_first_episode_puts_the_old_results_back(tmp_path):
    write(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(RuntimeError):
        evaluate(tmp_path, '{"conditions": {}}\n', RuntimeError("no simulator"))
    assert contents(tmp_path) == before


def test_finished_episodes_of_an_interrupted_evaluation_are_kept_and_continued(tmp_path):
    write(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, '{"conditions": {}}\n{"task": "push"}\n', KeyboardInterrupt())
    with evaluation_folder(tmp_path, overwrite=False):
        assert "push" in (tmp_path / "episodes.jsonl").read_text()
    assert not (tmp_path / ".replaced").exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", ["my thesis", json.dumps({"scores": [1]})])
def test_a_folder_that_only_has_a_file_of_the_same_name_is_left_alone(tmp_path, overwrite, content):
    (tmp_path / "results.json").write_text(content)
    with (
        pytest.raises(UserError, match=r"is not the folder of an evaluation, but holds results\.json"),
        evaluation_folder(tmp_path, overwrite=overwrite),
    ):
        pass
    assert contents(tmp_path) == {"results.json": content}
