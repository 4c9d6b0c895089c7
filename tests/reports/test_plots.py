import json

import numpy as np
import pytest
from PIL import Image

from robovlms.reports.plots import plot_actions, plot_comparison, plot_latency, plot_success, plot_training


def drawn(path):
    """Share of the pixels that are not white."""
    with Image.open(path) as image:
        return float((np.asarray(image.convert("L")) < 250).mean())


def test_training_curves_come_from_lines_with_missing_keys(tmp_path):
    lines = [
        {"step": 10, "train/loss": 0.5, "train/arm": 0.4, "train/lr": 1e-4, "train/seconds": 3.0},
        {"step": 20, "train/loss": 0.25, "train/arm": 0.2, "train/lr": 2e-4},
        {"step": 20, "val/loss": 0.3, "val/arm": 0.2, "val/gripper_accuracy": 0.9},
    ]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    written = plot_training(metrics, tmp_path / "plots")
    assert [path.name for path in written] == ["loss.png", "lr.png"]
    assert all(drawn(path) > 0.01 for path in written)
    with Image.open(written[0]) as image:
        assert image.height == pytest.approx(2 * 2.9 * 130, abs=2)  # two rows: loss, arm, gripper_accuracy; not seconds


def test_a_run_without_metrics_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        plot_training(tmp_path / "metrics.jsonl", tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/lr": 0.1}\n')
    with pytest.raises(ValueError, match=r"no train/loss or val/loss.*train/lr"):
        plot_training(tmp_path / "metrics.jsonl", tmp_path)


def test_actions_are_drawn_with_masked_steps_left_out(tmp_path):
    target = np.sin(np.arange(40, dtype=np.float32)).reshape(10, 2, 2)
    mask = np.ones((10, 2), bool)
    one = plot_actions(target * np.float32(0.9), target, mask, ["dx", "gripper"], [1], tmp_path / "a.png")
    assert drawn(one) > 0.01
    mask[:, 1] = False
    wrong_where_masked = target * np.float32(0.9)
    wrong_where_masked[:, 1] = 1e6
    masked = plot_actions(wrong_where_masked, target, mask, ["dx", "gripper"], [1], tmp_path / "b.png")
    unmasked_values = np.where(mask[..., None], wrong_where_masked, 0)
    same = plot_actions(unmasked_values, target, mask, ["dx", "gripper"], [1], tmp_path / "c.png")
    assert masked.read_bytes() == same.read_bytes()


def row(successes, trials, low, high):
    return {
        "successes": successes, "trials": trials, "mean": successes / trials, "low": low, "high": high,
        "steps_to_success": 20.0, "errors": 0,
    }  # fmt: skip


def test_success_bars_grow_with_the_tasks_and_the_opposites_may_be_missing(tmp_path):
    own = {"overall": row(11, 20, 0.3, 0.7), "tasks": {"open": row(8, 10, 0.49, 0.94), "close": row(3, 10, 0.1, 0.6)}}
    own |= {"groups": {}, "chains": None}
    opposite = {"overall": row(1, 5, 0.04, 0.6), "tasks": {"open": row(1, 5, 0.04, 0.6)}}
    opposite |= {"groups": {}, "chains": None}
    results = {"language": {"own": own, "opposite": opposite}, "config": {}, "versions": {}, "episodes": []}
    with Image.open(plot_success(results, tmp_path / "a.png")) as both:
        height = both.height
    assert drawn(tmp_path / "a.png") > 0.05
    with Image.open(plot_success({**results, "language": {"own": own}}, tmp_path / "b.png")) as alone:
        assert alone.height < height


def test_success_against_latency_has_a_curve_for_every_way_of_execution(tmp_path):
    points = [
        {"execution": execution, "latency": k, "mean": mean, "low": mean / 2, "high": (1 + mean) / 2, "episodes": 10}
        for execution, means in [("chunk", (0.9, 0.4)), ("real_time", (0.9, 0.8))]
        for k, mean in zip((0, 4), means, strict=True)
    ]
    plot_latency(points, tmp_path / "a.png")
    plot_latency(points[:2], tmp_path / "b.png")
    assert drawn(tmp_path / "a.png") > drawn(tmp_path / "b.png") > 0.02


@pytest.mark.filterwarnings("error::UserWarning")  # what matplotlib says where it gives up on the layout
def test_long_names_of_runs_leave_room_for_the_figure(tmp_path):
    names = [f"runs/a_folder_of_runs/that_lies_deep/and_has_a_long_name/{number:060d}" for number in range(3)]
    picture = plot_comparison(dict.fromkeys(names, (8, 10, 0.49, 0.94)), dict.fromkeys(names, 3.0), tmp_path / "a.png")
    assert drawn(picture) > 0.05
