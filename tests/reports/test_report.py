import re

import line_world
import numpy as np
from PIL import Image

from robovlms.actions.checks import Finding, Severity
from robovlms.commands.evaluate import report
from robovlms.config.choices import Language
from robovlms.config.closed_loop import EvaluationConfig
from robovlms.evaluation.analysis.certificate import certify
from robovlms.evaluation.episodes import EpisodeResult, plan_episodes
from robovlms.evaluation.results import summarize
from robovlms.evaluation.rollouts import run_episodes
from robovlms.reports.evaluation_page import write_report

CONFIG = {"backbone": {"name": "<nano>"}, "batch_size": 8}


def evaluate(folder):
    config = EvaluationConfig(language=[Language.opposite], language_episodes=1)
    plan = plan_episodes(line_world.world(), config)
    episodes = run_episodes(line_world.start_stubborn, plan, folder=folder, conditions={})
    return summarize(episodes, config=CONFIG, versions={"python": "3"})


def test_the_report_is_one_file_with_everything_in_it(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "loss.png")
    results = evaluate(tmp_path)
    page = write_report(tmp_path, results, name="a <b> run", figures={"Training": [tmp_path / "loss.png"]}).read_text()
    assert "a &lt;b&gt; run" in page
    assert "&lt;nano&gt;" in page
    assert page.count("data:video/mp4;base64,") == 4
    assert page.count("data:image/png;base64,") == 1
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert 'opposite instruction “go left”: <b class="wrong">did it anyway</b>' in page
    assert "<td>2/4</td><td>50.0%</td>" in page


def test_the_report_shows_the_verdict_on_language_and_the_certificate(tmp_path):
    results = certify(
        evaluate(tmp_path), checkpoint=tmp_path, checkpoint_digest="abc", renderer="numpy", device="cpu", argv=["run"]
    )
    page = write_report(tmp_path, results, name="run", figures={}).read_text()
    assert '<p class="verdict">Whether the policy follows its instructions is not decided' in page
    assert "<dt>checkpoint_digest</dt><dd>abc</dd>" in page


def test_the_report_shows_what_the_runs_validation_found(tmp_path):
    found = Finding(severity=Severity.warning, what="<language> is ignored", where="validation", to_do="Record more.")
    page = write_report(tmp_path, evaluate(tmp_path), name="run", figures={}, warnings=[found]).read_text()
    assert '<div class="finding warning"><b>Warning: &lt;language&gt; is ignored</b>' in page
    assert "Record more." in page


def test_no_two_headings_of_the_report_are_the_same(tmp_path):
    results = evaluate(tmp_path)
    report(tmp_path, results, "run", {})
    page = (tmp_path / "report.html").read_text()
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert "Success rates" in headings
    assert len(set(headings)) == len(headings) > 2


def test_videos_beyond_the_limit_are_named_instead_of_shown(tmp_path):
    results = evaluate(tmp_path)
    first = (tmp_path / "videos" / "go-left_100.mp4").stat().st_size
    page = write_report(tmp_path, results, name="run", figures={}, max_video_bytes=first).read_text()
    assert page.count("data:video/mp4;base64,") == 1
    assert "go-right_100.mp4" in page


def test_what_a_recorded_episode_says_stays_text(tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    results = evaluate(tmp_path)
    for episode in results["episodes"]:
        episode["goals"][0]["instruction"] = evil
    results["versions"] = {evil: evil}
    page = write_report(tmp_path, results, name=evil, figures={}).read_text()
    assert evil not in page
    assert page.count("“&lt;img src=x onerror=alert(1)&gt;”") == 4


def test_a_video_is_looked_for_in_the_folder_of_videos_alone(tmp_path):
    episode = evaluate(tmp_path)["episodes"][0]
    assert "/" not in EpisodeResult.from_json(episode | {"scene": "../../secret/"}).video_name
