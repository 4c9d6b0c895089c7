"""The host does not wait for the device within a step: nothing there needs a number that the device has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from calvin_folder import make_calvin_folder, tiny_run
from composing import BACKBONES, completed, composed
from host_waits import ONLY_ON_A_CPU, Waits
from small_heads import small_head

from robovlms.commands.train import train
from robovlms.config.choices import HeadKind, Structure
from robovlms.registry import HEADS
from robovlms.training.trainer import Trainer

pytestmark = pytest.mark.slow


def waits_of_a_step(monkeypatch, folder, output_dir, *options, structure=Structure.policy_head, **parts):
    """Run two steps; return what would wait in the second. `parts` take a section of the config each."""
    waits, step, taken = Waits(), Trainer.train_step, []

    def watched(self, *args):
        taken.append(self)
        if len(taken) < 2:
            return step(self, *args)
        with waits:
            return step(self, *args)

    monkeypatch.setattr(Trainer, "train_step", watched)
    options = ("schedule.total=2 step", "trainer.validate_every=null", "trainer.save_every=2 step", *options)
    config = completed(composed(*tiny_run(folder, output_dir, *options)))
    train(replace(config, structure=replace(config.structure, name=structure), **parts))
    assert len(taken) == 2
    return waits.found


@pytest.fixture(scope="module")
def instructed(tmp_path_factory):
    """Data whose instructions are of different lengths, so that shorter ones are padded."""
    folder = make_calvin_folder(tmp_path_factory.mktemp("instructed"))
    path = folder / "training" / "lang_annotations" / "auto_lang_ann.npy"
    annotations = np.load(path, allow_pickle=True).item()
    annotations["language"]["ann"] = ["reach", "reach it", "reach target 3", "reach the target number 4"]
    np.save(path, annotations)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_step_of_every_backbone_reads_nothing_off_the_device(monkeypatch, instructed, tmp_path, backbone):
    tiny = (f"backbone={backbone}", "backbone.size=tiny", "window.window_size=2")
    found = waits_of_a_step(monkeypatch, instructed, tmp_path / "run", *tiny)
    assert set(found) == ONLY_ON_A_CPU.get(backbone, set())


STRUCTURES = {HeadKind.memory: Structure.policy_head, HeadKind.tokens: Structure.one_step}


@pytest.mark.parametrize("head", HEADS.names())
def test_a_step_of_every_head_reads_nothing_off_the_device(monkeypatch, instructed, tmp_path, head):
    config = small_head(head)
    structure = STRUCTURES.get(config.kind, Structure.interleaved)
    window = "window.window_size=1" if structure is Structure.one_step else "window.window_size=2"
    assert not waits_of_a_step(monkeypatch, instructed, tmp_path / "run", window, head=config, structure=structure)


@pytest.mark.parametrize("head", ["mlp", "flow"])
def test_weights_of_the_arm_are_not_copied_at_every_step(monkeypatch, instructed, tmp_path, head):
    config = small_head(head, arm_weights=[1.0, 2.0, 3.0, 1.0, 1.0, 1.0])
    found = waits_of_a_step(monkeypatch, instructed, tmp_path / "run", head=config, structure=Structure.interleaved)
    assert not found


def test_reads_sizes_and_copies_are_found():
    waits = Waits()
    with waits:
        numbers = torch.arange(3)
        assert numbers.sum() == 3
        assert len(numbers[numbers > 1]) == 1
        torch.tensor([1.0])
    assert [what.split(" in ")[0] for what in waits.found] == [
        "_local_scalar_dense.default", "index.Tensor", "copy to the device",
    ]  # fmt: skip
