"""All ways to spread a step over processes give the same numbers, and their checkpoints fit one another."""

import pytest
import torch
from calvin_folder import losses, make_calvin_folder, tiny_run, weights
from composing import completed, composed
from conversations import make_conversations
from launching import launch, started
from safetensors.torch import load_file

from robovlms.commands.train import train
from robovlms.config.choices import ActingWeights
from robovlms.config.closed_loop import EngineConfig
from robovlms.policy.checkpoint import EMA, checkpoints
from robovlms.policy.engine import PolicyEngine
from robovlms.policy.manifest import check_checkpoint
from robovlms.registry import PARALLEL
from robovlms.training.checkpoints.state import TrainingState

pytestmark = pytest.mark.slow

ONE = (1, "ddp")
WAYS = [ONE, (2, "ddp"), (2, "zero1"), (2, "fsdp2"), (4, "hsdp")]
ALL_WAYS = [*WAYS, (4, "ddp"), (4, "zero1"), (4, "fsdp2")]
SLOW = [pytest.param(*way, marks=pytest.mark.extended) for way in ALL_WAYS if way not in WAYS]
OPTIONS = {"hsdp": ["parallel.shard_size=2"]}
SMALL = ["device_batch_size=2", "trainer.max_validation_batches=null", "ema=default", "ema.decay=0.6"]
ON = ["trainer.validate_every=null", "trainer.save_every=4 step"]  # what a resumed run still does


def named(way):
    return f"{way[1]}_{way[0]}"


def overrides(data, folder, mode, *extra):
    return tiny_run(data, folder, f"parallel={mode}", *OPTIONS.get(mode, ()), *SMALL, *extra)


def run_all(data, folder, plans):
    """Train plans of (processes, mode, name, overrides), one launch for each number of processes in a row."""
    while plans:
        count = plans[0][0]
        alike = next((place for place, plan in enumerate(plans) if plan[0] != count), len(plans))
        runs = [overrides(data, folder / name, mode, *extra) for _, mode, name, extra in plans[:alike]]
        if count == 1:
            for run in runs:
                train(completed(composed(*run)))
        else:
            launch(count, runs, folder)
        plans = plans[alike:]


def started_anew(folder, way):
    return (*way, named(way), [])


def resumed(folder, way, start):
    """Plan what goes on at step 2 of what another way has begun, in a folder of its own."""
    from_there = f"trainer.resume={folder / named(start) / 'checkpoints' / 'step_000002'}"
    return (*way, f"{named(start)}_to_{named(way)}", [from_there, *ON])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_calvin_folder(tmp_path_factory.mktemp("calvin"))


RESUMED = [(way, way) for way in WAYS] + [
    ((2, "fsdp2"), ONE), ((2, "zero1"), (2, "fsdp2")), ((4, "hsdp"), (2, "zero1")), (ONE, (4, "hsdp")),
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Runs of four steps, with checkpoints of steps 2 and 4, and what goes on at step 2: each launch does both."""
    folder = tmp_path_factory.mktemp("runs")
    plans = []
    for count in (1, 2, 4):
        plans += [started_anew(folder, way) for way in WAYS if way[0] == count]
        plans += [resumed(folder, *pair) for pair in RESUMED if pair[0][0] == count >= pair[1][0]]
    plans += [resumed(folder, *pair) for pair in RESUMED if pair[0][0] < pair[1][0]]
    run_all(data, folder, plans)
    return folder


@pytest.fixture(scope="module")
def more_runs(data, runs):
    """Runs by the ways that `runs` leaves out."""
    ways = [way for way in ALL_WAYS if way not in WAYS]
    run_all(data, runs, [started_anew(runs, way) for way in ways] + [resumed(runs, way, way) for way in ways])
    return runs


@pytest.fixture(scope="module")
def all_runs(data, more_runs):
    """Runs that go on by any way from any."""
    pairs = [(way, start) for way in ALL_WAYS for start in ALL_WAYS if way != start and (way, start) not in RESUMED]
    run_all(data, more_runs, [resumed(more_runs, *pair) for pair in sorted(pairs)])
    return more_runs


def averages(run):
    return load_file(checkpoints(run)[-1] / EMA)


def assert_close(ours, theirs, atol):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.shape == theirs[name].shape
        assert torch.allclose(value, theirs[name], rtol=0, atol=atol), name


@pytest.mark.extended
def test_groups_that_do_not_divide_the_processes_are_refused_with_those_that_do(data, tmp_path):
    run = overrides(data, tmp_path / "run", "fsdp2", "parallel=hsdp", "parallel.shard_size=3")
    with started(2, [run], tmp_path) as processes:
        assert processes.statuses() == [2] * 2
    assert "parallel.shard_size=3 makes groups of 3" in processes.output()
    assert "choose one of [1, 2]" in processes.output()
    assert not (tmp_path / "run").exists()


def test_the_ways_are_those_that_are_registered():
    assert sorted({mode for _, mode in WAYS}) == PARALLEL.names()


@pytest.fixture
def way_and_runs(request, count, mode):
    """Return the folder of all runs that a way's test may ask for."""
    return request.getfixturevalue("runs" if (count, mode) in WAYS else "more_runs")


@pytest.mark.parametrize(("count", "mode"), [*WAYS, *SLOW])
def test_every_way_gives_the_losses_of_one_process_those_of_its_average_too(way_and_runs, count, mode):
    ours, one = way_and_runs / f"{mode}_{count}", way_and_runs / "ddp_1"
    for name in ("train/loss", "train/grad_norm", "val/loss", "val/action_error"):
        assert len(losses(one, name)) in (2, 4)
        assert losses(ours, name) == pytest.approx(losses(one, name), abs=1e-5)


@pytest.mark.parametrize(("count", "mode"), [*WAYS, *SLOW])
def test_checkpoints_of_every_way_are_whole_and_hold_the_same_weights_averages_and_moments(way_and_runs, count, mode):
    run, one = way_and_runs / f"{mode}_{count}", way_and_runs / "ddp_1"
    newest = run / "checkpoints" / "step_000004"
    check_checkpoint(newest)
    assert_close(weights(run), weights(one), 1e-4)
    assert_close(averages(run), averages(one), 1e-4)
    ours, theirs = (TrainingState.load(checkpoints(path)[-1] / "training_state").optimizer for path in (run, one))
    assert ours.shapes == theirs.shapes
    assert_close(*({key: each.read(key) for key in each.shapes} for each in (ours, theirs)), 1e-5)
    writers = {"ddp": 1, "hsdp": 2}.get(mode, count)
    assert len(list((newest / "training_state").glob("optimizer*"))) == writers


@pytest.mark.parametrize(("count", "mode"), WAYS)
def test_a_policy_acts_by_the_average_of_every_way(runs, count, mode):
    newest = checkpoints(runs / f"{mode}_{count}")[-1]
    acting = PolicyEngine.from_checkpoint(newest, EngineConfig(weights=ActingWeights.ema)).policy.state_dict()
    shadows = load_file(newest / EMA)
    assert shadows
    assert all(torch.equal(acting[name], value) for name, value in shadows.items())


@pytest.mark.parametrize(("count", "mode"), [*WAYS, *SLOW])
def test_two_steps_and_a_resume_by_the_same_way_equal_four_steps(way_and_runs, count, mode):
    whole, again = way_and_runs / f"{mode}_{count}", way_and_runs / f"{mode}_{count}_to_{mode}_{count}"
    allowed = 0 if count <= 2 else 1e-4  # gloo sums the gradients of four in an order that follows their buckets
    assert_close(weights(again), weights(whole), allowed)
    assert_close(averages(again), averages(whole), allowed)
    assert losses(again) == pytest.approx(losses(whole)[2:], abs=1e-6 if allowed else 0)


def check_resumed(runs, way, start):
    run, one = runs / f"{named(start)}_to_{named(way)}", runs / "ddp_1"
    assert losses(run) == pytest.approx(losses(one)[2:], abs=1e-5)
    assert_close(weights(run), weights(one), 1e-4)
    assert_close(averages(run), averages(one), 1e-4)


@pytest.mark.parametrize(("way", "start"), [pair for pair in RESUMED if pair[0] != pair[1]])
def test_a_run_goes_on_by_another_way_and_number_of_processes(runs, way, start):
    check_resumed(runs, way, start)


@pytest.mark.extended
@pytest.mark.parametrize("way", ALL_WAYS)
@pytest.mark.parametrize("start", ALL_WAYS)
def test_a_run_goes_on_by_any_way_from_any(all_runs, way, start):
    check_resumed(all_runs, way, start)


TOGETHER = {
    "adapters": ["backbone.lora.rank=4"],
    "frozen": ["backbone.freeze_vision=true", "backbone.freeze_text=true"],
    "dropout": ["head.dropout=0.3"],
    "newest": ["ema.validate=false"],
    "bf16": ["precision=bf16"],
    "bf16_autocast": ["precision=bf16_autocast"],
    "clipped": ["optimizer.max_grad_norm=0.01"],
    "unclipped": ["optimizer.max_grad_norm=null"],
    "whole": ["device_batch_size=4"],  # the others accumulate
    "small_moments": ["optimizer.moments=int8"],
    "rounded": ["parallel.reduce_dtype=bf16"],
    "layers": ["trainer.compile=layers"],
    "model": ["trainer.compile=model"],
    "bf16_layers": ["precision=bf16", "trainer.compile=layers"],
    "conversations": [],  # `make_conversations`
}
LOOSE = {"bf16": 2e-3, "bf16_autocast": 2e-3, "bf16_layers": 2e-3, "rounded": 2e-3, "small_moments": 2e-3}


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
    modes = ("ddp", "zero1", "fsdp2")
    shorter = ["trainer.validate_every=4 step", "trainer.save_every=4 step"]
    plans = [(2, mode, f"{mode}_{name}", [*shorter, *extra]) for name, extra in options.items() for mode in modes]
    run_all(data, folder, plans + [(2, "ddp", f"ddp_of_{name}", [*ON, *extra]) for name, extra in OF_DDP.items()])
    return folder


@pytest.mark.extended
@pytest.mark.parametrize("name", OF_DDP)
def test_options_of_ddp_change_no_loss_but_rounded_gradients_change_it_a_little(together, name):
    for figure in ("train/loss", "train/grad_norm"):
        ours, plain = (losses(together / f"ddp_of_{which}", figure) for which in (name, "plain"))
        assert ours == pytest.approx(plain, abs=1e-3 if name == "rounded" else 1e-5)
    assert (ours != plain) or name != "rounded"


@pytest.mark.extended
@pytest.mark.parametrize("mode", ["zero1", "fsdp2"])
@pytest.mark.parametrize("name", TOGETHER)
def test_every_way_goes_with_whatever_is_trained(together, name, mode):
    ours, ddp = together / f"{mode}_{name}", together / f"ddp_{name}"
    allowed = LOOSE.get(name, 1e-5)
    for figure in ("train/loss", "train/grad_norm", "val/loss"):
        assert losses(ours, figure) == pytest.approx(losses(ddp, figure), abs=allowed)
    assert_close(weights(ours), weights(ddp), 1e-3 if name in LOOSE else 1e-4)
    assert all(value.dtype != torch.bfloat16 for value in weights(ours).values())
    assert_close(averages(ours), averages(ddp), 1e-3 if name in LOOSE else 1e-4)
