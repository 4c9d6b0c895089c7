from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.statistics import Statistics, import_statistics
from robovlms.config.choices import NormalizationMode
from robovlms.config.data import NormalizationConfig

NAMES = ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]


def test_statistics_of_five_rows_by_hand():
    stats = Statistics.compute(np.array([[0.0], [1], [2], [3], [4]], np.float32))
    assert (stats.mean, stats.min, stats.max, stats.q50) == ([2.0], [0.0], [4.0], [2.0])
    assert stats.q10 == [0.4]
    assert stats.std == pytest.approx([2**0.5])


def test_robovlms_and_openvla_publish_the_same_bridge(shared_data):
    folder = shared_data / "norm_stats"
    ours = import_statistics(folder / "robovlms" / "dataset_statistics_bridge.json", None, 7)
    theirs = import_statistics(folder / "openvla_style" / "config.json", "bridge_orig", 7)
    np.testing.assert_allclose(ours.q01, theirs.q01, atol=1e-6)
    np.testing.assert_allclose(ours.q99[:3], [0.02831, 0.04086, 0.04016], atol=1e-5)


def test_openpis_padding_is_cut_off(shared_data):
    stats = import_statistics(shared_data / "norm_stats" / "openpi_style" / "libero.json", None, 7)
    assert len(stats.q99) == 7
    assert stats.min == stats.q01


def test_a_key_is_asked_for_where_a_file_has_many(shared_data):
    with pytest.raises(ValueError, match=r"statistics_key to one of .*bridge_orig"):
        import_statistics(shared_data / "norm_stats" / "openvla_style" / "config.json", "bridge", 7)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        '{"action": {"mean": [0], "std": [1]}}',
        '{"action": {"mean": 1, "std": 2}}',
        '{"action": {"mean": [NaN]}}',
        pytest.param("[" * 10**5, id="deep"),
    ],
)
def test_files_that_are_something_else_are_refused(tmp_path, content):
    (tmp_path / "stats.json").write_text(content)
    with pytest.raises(ValueError, match=r"data\.normalization\.statistics_file=.*stats\.json"):
        import_statistics(tmp_path / "stats.json", None, 7)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"statistics_file=.*none\.json"):
        import_statistics(tmp_path / "none.json", None, 7)


def normalizer(rows: np.ndarray, **options) -> ActionNormalizer:
    return ActionNormalizer(
        NormalizationConfig(**options), Statistics.compute(rows.astype(np.float32)), ["x", "y", "gripper"], [2]
    )


ROWS = np.stack([np.linspace(-2, 4, 101), np.linspace(0, 10, 101), np.ones(101)], axis=1)


def test_modes_differ_by_entry():
    both = normalizer(ROWS, mode=NormalizationMode.min_max, modes={"y": NormalizationMode.mean_std})
    normal = both.normalize(torch.tensor([[4.0, 5.0, 1.0], [9.0, 20.0, 1.0]]))
    assert normal[0, :2].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert normal[1, 0] == 1  # clipped
    assert normal[1, 1] > 5  # not clipped


def test_mu_law_gives_small_motions_more_room_and_comes_back():
    curved = normalizer(ROWS, mode=NormalizationMode.min_max, mu=255.0)
    raw = torch.tensor([[1.03, 5.0, 1.0], [-2.0, 10.0, -1.0]])
    normal = curved.normalize(raw)
    assert normal[0, 0] == pytest.approx(np.log1p(255 * 0.01) / np.log(256), abs=1e-4)
    assert normal[1, :2].tolist() == pytest.approx([-1, 1])
    torch.testing.assert_close(curved.denormalize(normal), raw, atol=1e-4, rtol=0)


def test_an_unknown_entry_and_other_statistics_are_refused():
    with pytest.raises(ValueError, match=r"modes has \['z'\]"):
        normalizer(ROWS, mode=NormalizationMode.min_max, modes={"z": NormalizationMode.identity})
    with pytest.raises(ValueError, match="statistics of 2 action entries do not fit the 3"):
        normalizer(ROWS[:, :2], mode=NormalizationMode.min_max)


def test_statistics_are_written_as_openvla_reads_them(tmp_path):
    from robovlms.actions.statistics import save_statistics

    save_statistics(tmp_path / "stats.json", {"mine": Statistics.compute(ROWS.astype(np.float32))})
    content = json.loads((tmp_path / "stats.json").read_text())
    assert content["mine"]["action"]["q01"][0] == pytest.approx(-1.94)
    assert import_statistics(tmp_path / "stats.json", "mine", 3).q99[1] == pytest.approx(9.9)
