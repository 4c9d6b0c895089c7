import av
import numpy as np
import pytest
from PIL import Image

from robovlms.evaluation.video import annotate, side_by_side, write_video


def frame(value, height=41, width=63):
    return np.full((height, width, 3), value, np.uint8)


def test_views_of_different_sizes_stand_side_by_side():
    both = side_by_side({"side": frame(0, 128, 256), "wrist": frame(255, 64, 64)})
    assert both.shape == (256, 512 + 256, 3)
    assert both[:, :512].max() == 0
    assert both[:, 512:].min() == 255


def test_the_last_frame_is_held_and_turns_green_or_red():
    clip = annotate([frame(0), frame(1), frame(2)], "open the drawer", "SUCCESS", True, hold=4)
    assert len(clip) == 2 + 4
    assert all((picture[:41] == i).all() for i, picture in enumerate(clip[:3]))
    red, green, _ = clip[-1][-1, 0]
    assert green > red
    failed = annotate([frame(0)], "open the drawer", "FAIL", False, hold=1)[0]
    assert failed[-1, 0, 0] > failed[-1, 0, 1]


def test_an_mp4_of_odd_size_keeps_its_frames_and_rate(tmp_path):
    write_video(tmp_path / "a.mp4", [frame(10 * i) for i in range(7)], fps=12.5)
    with av.open(str(tmp_path / "a.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (64, 42, 12.5)
        values = [picture.to_ndarray(format="rgb24").mean() for picture in video.decode(stream)]
    assert values == pytest.approx([10 * i for i in range(7)], abs=3)


def test_a_gif_keeps_its_frames_and_rate(tmp_path):
    write_video(tmp_path / "a.gif", [frame(30 * i) for i in range(5)], fps=20.0)
    with Image.open(tmp_path / "a.gif") as picture:
        assert (picture.n_frames, picture.info["duration"]) == (5, 50)


def test_other_files_and_empty_videos_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"end it in \.mp4 or \.gif"):
        write_video(tmp_path / "a.avi", [frame(0)], fps=20.0)
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "a.mp4", [], fps=20.0)
