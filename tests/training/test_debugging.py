"""What helps to see what a run does: first pictures, one batch again and again, a profile, trackers."""

import json

import pytest
from calvin_folder import losses, tiny_run
from composing import completed, composed
from PIL import Image

from robovlms.commands.train import train
from robovlms.config.choices import TrackerName, WandbMode
from robovlms.config.training import TrackingConfig
from robovlms.errors import UserError
from robovlms.training.tracking import check_trackers, wandb_mode


def run(root, output_dir, *extra):
    train(completed(composed(*tiny_run(root, output_dir, *extra))))
    return output_dir


@pytest.mark.slow
def test_the_first_batch_is_drawn_as_the_model_sees_it(calvin_folder, tmp_path):
    folder = run(calvin_folder, tmp_path / "run", "schedule.total=2 step")
    with Image.open(folder / "first_batch.png") as picture:
        pixels = picture.convert("L").load()
        assert picture.width >= 2 * 4 * 32  # two views of four frames
        assert len({pixels[x, 4] for x in range(32)}) > 5
        assert pixels[picture.width - 1, picture.height - 1] == 255


@pytest.mark.slow
def test_overfitting_takes_the_same_batch_at_every_step_also_after_a_resume(calvin_folder, tmp_path):
    options = ["debug=overfit", "optimizer.lr=1e-9", "optimizer.weight_decay=0", "schedule.warmup=0 step"]
    folder = run(calvin_folder, tmp_path / "run", *options, "schedule.total=3 step")
    assert losses(folder) == pytest.approx([losses(folder)[0]] * 3, rel=1e-4)
    run(calvin_folder, folder, *options, "schedule.total=5 step", "trainer.resume=auto")
    assert losses(folder) == pytest.approx([losses(folder)[0]] * 5, rel=1e-4)
    with pytest.raises(UserError, match=r"debug\.overfit: checkpoint True, now False"):
        run(calvin_folder, folder, *options[1:], "schedule.total=6 step", "trainer.resume=auto")


@pytest.mark.slow
def test_a_profile_is_a_trace_of_operations(calvin_folder, tmp_path):
    folder = run(calvin_folder, tmp_path / "run", "debug=profile", "debug.profile_steps=1")
    events = json.loads((folder / "profile" / "trace.json").read_text())["traceEvents"]
    assert any("aten::" in str(event.get("name")) for event in events)
    assert "aten::" in (folder / "profile" / "operations.txt").read_text()


def wandb(mode):
    return TrackingConfig(trackers=[TrackerName.wandb], wandb_mode=mode)


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return monkeypatch


def test_wandb_without_a_login_is_refused_before_anything_is_read(nobody, tmp_path):
    with pytest.raises(UserError, match="wandb login"):
        check_trackers(wandb(WandbMode.online))
    check_trackers(wandb(WandbMode.offline))
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123\n")
    check_trackers(wandb(WandbMode.online))


def test_the_environment_says_how_wandb_runs(nobody):
    assert wandb_mode(wandb(WandbMode.online)) == "online"
    nobody.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(wandb(WandbMode.online)) == "disabled"
    nobody.setenv("WANDB_MODE", "on-line")
    with pytest.raises(UserError, match="WANDB_MODE=on-line does not exist"):
        check_trackers(wandb(WandbMode.offline))


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_the_same_wandb_run(calvin_folder, tmp_path):
    pytest.importorskip("wandb")
    folder = run(calvin_folder, tmp_path / "run", "tracking=wandb", "schedule.total=2 step")
    name = (folder / "wandb_id.txt").read_text().strip()
    run(calvin_folder, folder, "tracking=wandb", "trainer.resume=auto")
    assert {path.name.rpartition("-")[2] for path in (folder / "wandb").glob("offline-run-*")} == {name}
