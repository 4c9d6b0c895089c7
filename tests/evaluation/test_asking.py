"""Simulators in processes of their own ask one engine: the same episodes, however many ask at once."""

import gc
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import line_world
import numpy as np
import pytest
import torch

from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.plan import Source
from robovlms.actions.statistics import Statistics
from robovlms.config.choices import NormalizationMode, Structure
from robovlms.config.closed_loop import EngineConfig
from robovlms.config.data import DataConfig, NormalizationConfig
from robovlms.evaluation.policies.asking import AskingPolicy, SharedEngine
from robovlms.evaluation.rollouts import run_episodes
from robovlms.heads.base import HeadSizes
from robovlms.heads.schemas.lstm import LSTMHeadConfig
from robovlms.images.processor import Processor
from robovlms.policy.engine import PolicyEngine
from robovlms.policy.policy import VLAPolicy
from robovlms.registry import BACKBONES, HEADS

HERE = {"checkpoint": "a"}
VIEWS = ["side", "wrist"]
NORMALIZATION = NormalizationConfig(mode=NormalizationMode.min_max)


class BareWorld(line_world.LineWorld):
    """Ends after six steps in a process without any model."""

    def reset(self, episode):
        if os.environ.get("LINE_WORLD_ALONE") == str(os.getppid()):
            assert not [each for each in gc.get_objects() if isinstance(each, torch.nn.Module)]
        return super().reset(episode)


class FragileWorld(line_world.LineWorld):
    """Takes its process along: of one seed once, of another every time."""

    def reset(self, episode):
        trace = Path(os.environ["LINE_WORLD_TRACES"]) / episode.scene
        if episode.seed == 101 and (episode.scene == "go-right" or not trace.exists()):
            trace.touch()
            os._exit(7)
        return super().reset(episode)


def start(kind):
    return AskingPolicy(VIEWS, []), line_world.world(kind=kind)


def make_engine(sizes):
    """Return an engine of a random policy for the line, and have the batches that it answers counted."""
    torch.manual_seed(0)
    contract = line_world.LineWorld.contract
    backbone = BACKBONES.get("nano").tiny()
    head = HEADS.get("lstm")(
        LSTMHeadConfig(name="lstm", hidden_dim=16, num_layers=1),
        HeadSizes(feature_dim=backbone.hidden_dim, action_dim=2, binary=(1,), window_size=3, chunk_size=2),
    )
    torch.nn.init.normal_(head.query)
    policy = VLAPolicy(backbone, head, Structure.policy_head, Processor(backbone, VIEWS, max_text_tokens=16))
    data = DataConfig(name="line", root="", views={}, contract=contract, normalization=NORMALIZATION)
    source = replace(Source.of(data), views=VIEWS)
    rows = np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32)
    normalizer = ActionNormalizer(NORMALIZATION, Statistics.compute(rows), contract.names, contract.binary)
    config = EngineConfig(device="cpu", max_wait_ms=50.0)
    engine = PolicyEngine(policy, [(source, normalizer)], window_size=3, config=config)
    head.lstm.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return SharedEngine(engine, engine.open, config)


def play(folder, num_workers, kind=BareWorld, sizes=None):
    episodes = line_world.world(kind=kind).episodes()
    answerer = partial(make_engine, [] if sizes is None else sizes)
    return run_episodes(
        partial(start, kind), episodes, folder=folder, conditions=HERE, num_workers=num_workers, start_answerer=answerer
    )


@pytest.mark.slow
def test_episodes_are_the_same_however_many_processes_ask_one_engine(tmp_path, monkeypatch):
    monkeypatch.setenv("LINE_WORLD_ALONE", str(os.getpid()))
    one, sizes = play(tmp_path / "one", 1), []
    three = play(tmp_path / "three", 3, sizes=sizes)
    assert [replace(result, seconds=0.0) for result in one] == [replace(result, seconds=0.0) for result in three]
    assert max(sizes) == 3 * 3  # sessions, each with a state for every frame that a window may begin with


@pytest.mark.slow
def test_a_dead_simulator_is_replaced_and_its_episode_played_once_more_then_it_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("LINE_WORLD_TRACES", str(tmp_path))
    results = play(tmp_path / "played", 2, FragileWorld)
    lost = [result for result in results if result.error is not None]
    assert [(result.episode.scene, result.episode.seed) for result in lost] == [("go-right", 101)]
    assert "ended with status 7, while it worked on go-right, seed 101" in lost[0].error
    lines = [json.loads(line) for line in (tmp_path / "played" / "episodes.jsonl").read_text().splitlines()[1:]]
    assert sum(line["lost"] for line in lines) == 1
    monkeypatch.setattr(FragileWorld, "reset", line_world.LineWorld.reset)
    again = play(tmp_path / "played", 1, FragileWorld)
    assert [result.error for result in again] == [None] * 4
    assert [r.seconds for r in again if r.episode.seed == 100] == [r.seconds for r in results if r.episode.seed == 100]


def test_what_the_engine_refuses_is_the_error_of_the_episode(tmp_path):
    class Blind(line_world.LineWorld):
        views = ("side",)

        def _observe(self):
            seen = super()._observe()
            del seen.frames["wrist"]
            return seen

    with pytest.raises(RuntimeError, match=r"(?s)go-left, seed 100.*needs the views \['wrist'\]"):
        play(tmp_path, 1, Blind)
