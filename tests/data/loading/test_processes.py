"""Loader processes: however started, their errors arrive as they were raised, and dead ones are named with a cause."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from composing import completed, composed
from miniatures import make_miniature
from recordings import MemoryReader, make_dataset
from torch.utils.data import DataLoader

from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.plan import DataPlan
from robovlms.actions.statistics import Statistics
from robovlms.backbones.families.nano import Nano
from robovlms.data.loading.loader import Collator, make_loader, training_loader, validation_loader
from robovlms.data.loading.sampler import Draw, StepSampler
from robovlms.data.opening import build_dataset
from robovlms.errors import UserError
from robovlms.images.processor import Processor
from robovlms.registry import BACKBONES


def make_collator(config, dataset) -> Collator:
    actions = dataset.rows(100).actions if hasattr(dataset, "rows") else np.zeros((2, 7), np.float32)
    normalizer = ActionNormalizer(
        config.data.normalization, Statistics.compute(actions), config.data.contract.names, config.data.contract.binary
    )
    processor = Processor(Nano.tiny(), config.view.views, max_text_tokens=16)
    return Collator(processor, [normalizer], config.window)


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def start_method(request):
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.extended
@pytest.mark.parametrize("data", ["calvin", "lerobot"])
def test_batches_are_the_same_however_loader_processes_are_started(start_method, data, tmp_path):
    config = completed(composed(f"data={data}", "view=side_wrist", "window=w4_c10"))
    config = replace(config, data=make_miniature(config.data, tmp_path / "made", steps=16))
    dataset = build_dataset(DataPlan.of(config.data, config.view.views), config.window, "train")
    collator = make_collator(config, dataset)
    sampler = StepSampler(dataset.sizes, batch_size=4, device_batch_size=4, seed=0)

    def first(num_workers: int):
        batches = iter(training_loader(dataset, collator, sampler, num_workers=num_workers, pin_memory=False))
        return next(batches)

    here, there = first(0), first(2)
    assert torch.equal(here.actions, there.actions)
    assert torch.equal(here.text_ids, there.text_ids)
    assert all(torch.equal(frames, there.frames[view]) for view, frames in here.frames.items())


@pytest.mark.parametrize("name", BACKBONES.names())
def test_what_is_sent_to_loader_processes_tokenises_alike_and_holds_no_weights(name):
    backbone = BACKBONES.get(name).tiny()
    processor = Processor(backbone, ["side"], max_text_tokens=64)
    sent = pickle.dumps(processor)
    ids, mask = pickle.loads(sent).text(["open the drawer", "stop"])
    expected = processor.text(["open the drawer", "stop"])
    assert torch.equal(ids, expected[0])
    assert torch.equal(mask, expected[1])
    assert b"torch._utils" not in sent
    assert sum(parameter.numel() for parameter in backbone.parameters()) > 0


class Faulty:
    """Numbers, of which one cannot be read."""

    def __init__(self, fault: object) -> None:
        self.fault = fault

    def __getitem__(self, index: int) -> int:
        if index == 5:
            time.sleep(0.3)  # batches before this one are on their way
            self.fault()
        return index


class OwnError(Exception):
    """One that cannot be pickled: its arguments are not those of its constructor."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def bad_file() -> None:
    raise FileNotFoundError("/data/episode_7.mp4 does not exist")


def own_bug() -> None:
    raise OwnError("one", "two")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def bus_error() -> None:
    os.kill(os.getpid(), signal.SIGBUS)


def left() -> None:
    os._exit(3)


def numbers(samples: list) -> list[int]:
    return [number for number, _ in samples]


def make(fault, collate=numbers, num_workers: int = 2):
    batches = [[Draw(2 * i, 0), Draw(2 * i + 1, 0)] for i in range(5)]
    return make_loader(Faulty(fault), collate, batches, num_workers, pin_memory=False)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_an_error_arrives_as_it_was_raised_when_its_batch_is_asked_for(num_workers):
    batches = iter(make(bad_file, num_workers=num_workers))
    assert [next(batches), next(batches)] == [[0, 1], [2, 3]]
    with pytest.raises(FileNotFoundError) as error:
        next(batches)
    assert str(error.value) == "/data/episode_7.mp4 does not exist"
    if num_workers:
        assert "in bad_file" in str(error.value.__cause__)  # where it happened is not lost


def test_an_error_that_cannot_be_sent_arrives_as_its_text():
    with pytest.raises(RuntimeError, match="OwnError: one and two"):
        list(make(own_bug))


def test_an_error_of_the_collator_arrives_too():
    with pytest.raises(ZeroDivisionError):
        list(make(bad_file, collate=lambda samples: 1 // 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (killed, r"1 of 2 loader processes died: process \d+ was ended by SIGKILL, .*memory ran out"),
        (bus_error, r"was ended by SIGBUS, .*shared memory ran out"),
        (left, r"ended with status 3"),
    ],
)
def test_a_process_that_dies_is_named_with_the_likely_cause_and_the_option(fault, said):
    batches = iter(make(fault))
    with pytest.raises(ValueError, match=rf"{said}.*lower data\.num_workers=2.*data\.num_workers=0 reads"):
        list(batches)


@pytest.mark.slow
def test_a_dead_process_does_not_interrupt_other_work():
    next(iter(DataLoader([0], num_workers=1)))  # as a library may: torch's handler, which raises anywhere, is in place
    batches = iter(make(killed))
    next(batches)
    time.sleep(0.6)
    with pytest.raises(UserError, match="loader processes died"):
        list(batches)


def test_validation_reads_again_after_an_error_free_pass():
    dataset = make_dataset(MemoryReader([12, 12]))
    options = ("data=calvin", "view=side_wrist", "window=w4_c10", "window.window_size=3", "window.chunk_size=4")
    config = completed(composed(*options))
    loader = validation_loader(dataset, make_collator(config, dataset), batch_size=4, max_batches=None, num_workers=1)
    assert len(loader) == 5
    passes = [torch.cat([batch.index for batch in loader]) for _ in range(2)]
    assert torch.equal(*passes)
