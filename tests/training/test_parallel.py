"""All ways to spread a step over processes give the same numbers, and their checkpoints fit one another."""

import shutil

import pytest
import torch
from calvin_folder import losses, make_calvin_folder, tiny_run, weights
from composing import completed, composed
from conversations import make_conversations
from launching import launch, started
from safetensors.torch import load_file

from robovlms.commands.train import train
from robovlms.policy.manifest import check_checkpoint
from robovlms.registry import PARALLEL
from robovlms.training.checkpoints.state import TrainingState

MODES = {1: ["ddp"], 2: ["ddp", "zero1", "fsdp2"], 4: ["ddp", "zero1", "fsdp2", "hsdp"]}
WAYS = [(count, mode) for count, modes in MODES.items() for mode in modes]
OPTIONS = {"hsdp": ["parallel.shard_size=2"]}
SMALL = ["device_batch_size=2", "trainer.max_validation_batches=null"]


def overrides(data, folder, mode, *extra):
    return tiny_run(data, folder, f"parallel={mode}", *OPTIONS.get(mode, ()), *SMALL, *extra)


def run_all(data, folder, plans):
    """Train plans of (processes, mode, name, overrides), one launch for each number of processes."""
    for count in sorted({count for count, *_ in plans}):
        runs = [overrides(data, folder / name, mode, *extra) for number, mode, name, extra in plans if number == count]
        if count == 1:
            for run in runs:
                train(completed(composed(*run)))
        else:
            launch(count, runs, folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_calvin_folder(tmp_path_factory.mktemp("calvin"))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Runs of four steps by every way, with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("runs")
    run_all(data, folder, [(count, mode, f"{mode}_{count}", []) for count, mode in WAYS])
    return folder


def test_groups_that_do_not_divide_the_processes_are_refused_with_those_that_do(data, tmp_path):
    run = overrides(data, tmp_path / "run", "fsdp2", "parallel=hsdp", "parallel.shard_size=3")
    with started(4, [run], tmp_path) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "parallel.shard_size=3 makes groups of 3" in output
    assert "choose one of [1, 2, 4]" in output
    assert not (tmp_path / "run").exists()


def test_the_ways_are_those_that_are_registered():
    assert sorted({mode for _, mode in WAYS}) == PARALLEL.names()


@pytest.mark.parametrize(("count", "mode"), WAYS)
def test_every_way_gives_the_losses_of_one_process(runs, count, mode):
    ours, one = runs / f"{mode}_{count}", runs / "ddp_1"
    for name in ("train/loss", "train/grad_norm", "val/loss", "val/action_error"):
        assert len(losses(one, name)) in (2, 4)
        assert losses(ours, name) == pytest.approx(losses(one, name), abs=1e-5)


@pytest.mark.parametrize(("count", "mode"), WAYS)
def test_checkpoints_of_every_way_are_whole_and_hold_the_same_weights_and_moments(runs, count, mode):
    newest = runs / f"{mode}_{count}" / "checkpoints" / "step_000004"
    check_checkpoint(newest)
    ours, one = weights(runs / f"{mode}_{count}"), weights(runs / "ddp_1")
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in one.items()}
    assert all(torch.allclose(value, one[name], atol=1e-4) for name, value in ours.items())
    state, other = (
        TrainingState.load(path / "training_state") for path in (newest, runs / "ddp_1/checkpoints/step_000004")
    )
    assert state.optimizer.shapes == other.optimizer.shapes
    assert all(
        torch.allclose(state.optimizer.read(key), other.optimizer.read(key), atol=1e-5)
        for key in state.optimizer.shapes
    )
    writers = {"ddp": 1, "hsdp": 2}.get(mode, count)
    assert len(list((newest / "training_state").glob("optimizer*"))) == writers


TOGETHER = {
    "adapters": ["backbone.lora.rank=4"],
    "frozen": ["backbone.freeze_vision=true", "backbone.freeze_text=true"],
    "dropout": ["head.dropout=0.3"],
    "average": ["ema=default"],
    "bf16": ["precision=bf16"],
    "bf16_autocast": ["precision=bf16_autocast"],
    "conversations": [],  # `make_conversations`
    "rounded": ["parallel.reduce_dtype=bf16"],
}


OF_DDP = {
    "static": ["parallel.static_graph=true"],
    "buckets": ["parallel.bucket_cap_mb=1", "parallel.gradient_as_bucket_view=false"],
    "plain": [],
    "rounded": ["parallel.reduce_dtype=bf16"],
}


@pytest.fixture(scope="module")
def together(data, tmp_path_factory):
    """Runs of two processes with each option that changes what is trained or how."""
    folder = tmp_path_factory.mktemp("together")
    options = TOGETHER | {"conversations": make_conversations(tmp_path_factory.mktemp("conversations"))}
    shorter = ["trainer.validate_every=null", "trainer.save_every=4 step"]
    modes = ("ddp", "zero1", "fsdp2")
    plans = [(2, mode, f"{mode}_{name}", [*extra, *shorter]) for name, extra in options.items() for mode in modes]
    plans += [(2, "ddp", f"ddp_{name}", [*extra, *shorter]) for name, extra in OF_DDP.items()]
    run_all(data, folder, plans)
    return folder


@pytest.mark.extended
@pytest.mark.parametrize("name", OF_DDP)
def test_options_of_ddp_change_no_loss_but_rounded_gradients_change_it_a_little(together, name):
    ours, plain = (losses(together / f"ddp_{which}") for which in (name, "plain"))
    assert ours == pytest.approx(plain, abs=1e-3 if name == "rounded" else 1e-5)
    assert (ours[-1] == plain[-1]) == (name != "rounded") or name == "buckets"


@pytest.mark.extended
@pytest.mark.parametrize("mode", ["zero1", "fsdp2"])
@pytest.mark.parametrize("name", TOGETHER)
def test_every_way_goes_with_whatever_is_trained(together, name, mode):
    ours, ddp = together / f"{mode}_{name}", together / f"ddp_{name}"
    allowed = 2e-3 if name.startswith(("bf16", "rounded")) else 1e-5
    for figure in ("train/loss", "train/grad_norm"):
        assert losses(ours, figure) == pytest.approx(losses(ddp, figure), abs=allowed)
    assert all(
        torch.allclose(value, weights(ddp)[key], atol=1e-3 if name.startswith(("bf16", "rounded")) else 1e-4)
        for key, value in weights(ours).items()
    )
    if name == "average":
        ema, expected = (load_file(path / "checkpoints/step_000004/ema.safetensors") for path in (ours, ddp))
        assert all(torch.allclose(value, expected[key], atol=1e-4) for key, value in ema.items())
        assert ema.keys() == expected.keys()
    assert all(value.dtype != torch.bfloat16 for value in weights(ours).values())


def resumed(data, runs, folder, pairs):
    """Resume at step 2 what one way has begun by another; return the runs' folders."""
    plans = []
    for (count, mode), (from_count, from_mode) in pairs:
        name = f"{from_mode}_{from_count}_to_{mode}_{count}"
        shutil.copytree(runs / f"{from_mode}_{from_count}", folder / name)
        shutil.rmtree(folder / name / "checkpoints" / "step_000004")
        plans.append((count, mode, name, ["trainer.resume=auto"]))
    run_all(data, folder, plans)
    return [folder / name for *_, name, _ in plans]


def test_two_steps_and_a_resume_by_the_same_way_equal_four_steps(data, runs, tmp_path):
    pairs = [(way, way) for way in WAYS]
    for ((count, mode), _), run in zip(pairs, resumed(data, runs, tmp_path, pairs), strict=True):
        whole, again = weights(runs / f"{mode}_{count}"), weights(run)
        allowed = 0 if count <= 2 else 1e-4  # gloo sums the gradients of four in an order that follows their buckets
        assert all(torch.allclose(value, again[name], rtol=0, atol=allowed) for name, value in whole.items()), run.name
        assert losses(run) == pytest.approx(losses(runs / f"{mode}_{count}"), abs=1e-6 if allowed else 0)


def check_resumes(data, runs, folder, pairs):
    one = weights(runs / "ddp_1")
    for run in resumed(data, runs, folder, pairs):
        assert losses(run) == pytest.approx(losses(runs / "ddp_1"), abs=1e-5), run.name
        assert all(torch.allclose(value, one[name], atol=1e-4) for name, value in weights(run).items()), run.name


def test_a_run_goes_on_by_another_way_and_number_of_processes(data, runs, tmp_path):
    check_resumes(data, runs, tmp_path, [(way, WAYS[(place + 3) % len(WAYS)]) for place, way in enumerate(WAYS)])


@pytest.mark.extended
def test_a_run_goes_on_by_any_way_from_any(data, runs, tmp_path):
    check_resumes(data, runs, tmp_path, [(way, start) for way in WAYS for start in WAYS if way != start])
