from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from calvin_folder import tiny_run
from composing import completed, composed
from torch.utils.data import DataLoader

from robovlms.commands.train import train
from robovlms.data.loading.ring import Ring
from robovlms.types import Batch


class Numbers:
    def __getitem__(self, index):
        return index


def make_batch(numbers: list[int]) -> Batch:
    """Return a batch whose every entry tells the first number."""
    n = numbers[0]
    return Batch(
        frames={"side": torch.full((1, 2, 8, 8, 3), n % 256, dtype=torch.uint8)},
        text_ids=torch.full((1, 3), n),
        text_mask=torch.tensor([[True, n % 2 == 0, False]]),
        actions=torch.full((1, 2, 2, 3), n / 2),
        shifts={"side": torch.full((1, 2, 2), -n)},
        index=torch.tensor(numbers),
    )


def loader(ring: object, count: int, num_workers: int = 1, **options: object) -> DataLoader:
    batches = [[i] for i in range(count)]
    return DataLoader(Numbers(), batch_sampler=batches, collate_fn=ring, num_workers=num_workers, **options)


def assert_same(left: Batch, right: Batch) -> None:
    for field in fields(Batch):
        mine, other = getattr(left, field.name), getattr(right, field.name)
        if isinstance(other, torch.Tensor):
            mine, other = {"": mine}, {"": other}
        assert (mine is None) == (other is None)
        for key in other or {}:
            assert mine[key].dtype == other[key].dtype
            assert torch.equal(mine[key], other[key])


@pytest.mark.slow
def test_every_batch_of_a_run_comes_through_the_ring(calvin_folder, tmp_path, monkeypatch) -> None:
    arrived, receive = [], Ring.receive

    def counted(self: Ring, slot: int, pieces: list) -> Batch:
        arrived.append(slot)
        return receive(self, slot, pieces)

    monkeypatch.setattr(Ring, "receive", counted)
    changes = (
        "data.num_workers=1",
        "schedule.total=12 step",
        "trainer.log_every=10 step",
        "trainer.validate_every=null",
    )
    train(completed(composed(*tiny_run(calvin_folder, tmp_path / "run", *changes, "device_batch_size=8"))))
    assert len(arrived) == 12


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_batches_arrive_as_they_were_made(num_workers: int) -> None:
    for number, batch in enumerate(loader(Ring(make_batch, max(num_workers, 1)), 40, num_workers)):
        assert_same(batch, make_batch([number]))


def test_batches_that_are_kept_are_never_written_again() -> None:
    kept = list(loader(Ring(make_batch, 1), 40))  # 7 slots, the others come the ordinary way
    parts = [batch.actions[0, 1] for batch in kept]  # a view keeps its slot too
    del kept
    for _ in loader(Ring(make_batch, 1), 20):
        pass
    assert [part[0, 0].item() for part in parts] == [n / 2 for n in range(40)]


def test_slots_are_free_again_once_nothing_of_a_batch_is_left() -> None:
    ring = Ring(make_batch, 1)
    for batch in loader(ring, 40):
        part = batch.text_ids[0]
    del batch
    assert ring._in_use.sum() == 1
    assert part[0] == 39
    del part
    assert ring._in_use.sum() == 0


def test_a_batch_larger_than_a_slot_goes_the_ordinary_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robovlms.data.loading.ring.SLOT_BYTES", 256)
    ring = Ring(make_batch, 1)
    for number, batch in enumerate(loader(ring, 4)):
        assert_same(batch, make_batch([number]))
    assert ring._in_use.sum() == 0


@pytest.mark.slow
def test_it_works_with_processes_that_inherit_nothing() -> None:
    ring = Ring(make_batch, 1)
    numbers = [batch.index.item() for batch in loader(ring, 12, multiprocessing_context="spawn")]
    assert numbers == list(range(12))
