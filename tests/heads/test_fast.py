"""FAST against its closed form, a published tokenizer, and what a model may write."""

import logging

import numpy as np
import pytest
import torch
from calvin_folder import make_calvin_folder, tiny_run
from composing import completed, composed

from robovlms.commands.train import train
from robovlms.heads.base import HeadSizes
from robovlms.heads.fast import FastHead
from robovlms.heads.fast_tokenizer import FastTokenizer, coefficients, hold
from robovlms.heads.schemas.fast import FastHeadConfig
from robovlms.policy.checkpoint import load_policy, resolve_checkpoint

K, A = 10, 7


def smooth(count, seed=0):
    """Chunks like a robot's: a few slow waves, and a gripper."""
    generator = np.random.default_rng(seed)
    time = np.linspace(0, 1, K)[None, :, None]
    waves = [generator.uniform(-0.4, 0.4, (count, 1, A)) * np.cos(n * np.pi * time) for n in range(3)]
    chunks = np.clip(sum(waves), -1, 1)
    chunks[..., -1] = np.where(generator.random((count, 1)) > 0.5, 1.0, -1.0)
    return list(chunks)


def test_coefficients_are_those_of_the_orthonormal_cosines():
    place = np.arange(K)
    cosines = np.cos(np.pi * (2 * place[None] + 1) * place[:, None] / (2 * K)) * np.sqrt(2 / K)
    cosines[0] /= np.sqrt(2)
    (chunk,) = smooth(1)
    assert np.array_equal(coefficients(chunk, 1e6), np.rint(cosines @ chunk * 1e6))
    assert coefficients(np.full((4, 1), 0.5), 10.0)[:, 0].tolist() == [10, 0, 0, 0]  # 0.5 * sqrt(4) * 10


def test_a_fitted_tokenizer_is_short_and_rounds_within_its_bound():
    tokenizer = FastTokenizer.fit(smooth(500), vocab_size=512, scale=10.0)
    chunks = smooth(50, seed=1)
    ids = tokenizer.encode(chunks)
    assert np.mean([len(row) for row in ids]) < K * A / 2
    decoded = [tokenizer.decode(row, K, A) for row in ids]
    assert all(is_whole for _, is_whole in decoded)
    assert np.abs(np.stack([chunk for chunk, _ in decoded]) - chunks).max() <= np.sqrt(K) / 20 + 1e-6
    again = FastTokenizer.from_json(*tokenizer.to_json())
    assert again.encode(chunks) == ids


def test_a_published_tokenizer_brings_chunks_back_within_its_published_error(shared_data):
    folder = shared_data / "fast_tokenizer_lerobot_pifast"
    if not folder.is_dir():
        pytest.skip(f"no tokenizer at {folder}")
    tokenizer = FastTokenizer.load(folder)
    assert (tokenizer.vocab_size, tokenizer.scale, tokenizer.min_token) == (1024, 10.0, -32)
    chunks = smooth(20)
    for chunk, ids in zip(chunks, tokenizer.encode(chunks), strict=True):
        decoded, is_whole = tokenizer.decode(ids, K, A)
        assert is_whole
        assert np.abs(decoded - chunk).max() <= 0.1
    assert np.abs(np.stack([tokenizer.decode(i, K, A)[0] for i in tokenizer.encode(chunks)]) - chunks).mean() < 0.03
    low, _ = tokenizer.decode(tokenizer.encode([np.full((K, A), -2.0)])[0], K, A)  # below min_token
    np.testing.assert_allclose(low, -32 / 10 / np.sqrt(K), atol=1e-6)


def test_any_tokens_decode_to_a_chunk_and_say_whether_they_are_one():
    tokenizer = FastTokenizer.fit(smooth(200), vocab_size=300, scale=10.0)
    generator = np.random.default_rng(0)
    for length in (0, 1, 7, 200):
        for _ in range(20):
            chunk, _ = tokenizer.decode(generator.integers(0, tokenizer.vocab_size, length).tolist(), K, A)
            assert chunk.shape == (K, A)
            assert np.isfinite(chunk).all()
    assert not tokenizer.decode([], K, A)[1]


def test_padding_repeats_the_last_real_action():
    actions = torch.arange(8.0).view(1, 2, 4, 1)
    mask = torch.tensor([[[True, True, False, False], [False, False, False, False]]])
    assert hold(actions, mask)[0, :, :, 0].tolist() == [[0, 1, 1, 1], [4, 4, 4, 4]]


def test_what_is_malformed_is_counted_and_still_an_action():
    sizes = HeadSizes(feature_dim=8, action_dim=A, binary=(A - 1,), window_size=1, chunk_size=K)
    head = FastHead(FastHeadConfig(name="fast", vocab_size=300, max_tokens=4), sizes)
    head.calibrate(smooth(50))
    with torch.no_grad():
        actions = head.act(lambda queries, behind=False: torch.randn(2, 1, 1, 8), 2, 1)
    assert actions.shape == (2, K, A)
    assert head.num_malformed == 2


def test_a_tokenizer_larger_than_the_vocabulary_and_a_missing_one_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer.json does not exist: head\.tokenizer must be the folder"):
        FastTokenizer.load(tmp_path)
    sizes = HeadSizes(feature_dim=8, action_dim=A, binary=(A - 1,), window_size=1, chunk_size=K)
    head = FastHead(FastHeadConfig(name="fast", vocab_size=10), sizes)
    with pytest.raises(ValueError, match=r"vocab_size=10 is too small for \d+ coefficients: lower head\.scale"):
        head.calibrate(smooth(50))


@pytest.mark.slow
def test_a_checkpoint_carries_the_tokenizer_that_was_fitted_to_its_training_set(tmp_path, caplog):
    data = make_calvin_folder(tmp_path / "data")
    arguments = [arg for arg in tiny_run(data, tmp_path / "run") if not arg.startswith("head.")]
    extra = ["head=fast", "head.vocab_size=300", "structure=one_step", "window.window_size=1", "schedule.total=2 step"]
    with caplog.at_level(logging.INFO, "robovlms"):
        run = train(completed(composed(*arguments, *extra)))
    assert "tokens fitted to" in caplog.text
    _, policy, *_ = load_policy(resolve_checkpoint(run))
    assert policy.head.tokenizer.encode([np.zeros((3, 7))])
