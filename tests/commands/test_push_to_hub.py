"""A checkpoint goes to the Hub and comes back: what is published, what is not, and what the Hub's answers mean."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from hub_server import OWNER
from huggingface_hub import constants
from served import MIXTURE, SINGLE

from robovlms.cli.recipe import command_of
from robovlms.commands.push_to_hub import base_model_of, push_to_hub
from robovlms.config.commands import PushToHubConfig
from robovlms.errors import UserError
from robovlms.evaluation.analysis.certificate import certify
from robovlms.hub.privacy import is_place
from robovlms.hub.repository import address_of, origin
from robovlms.policy.checkpoint import CONFIG, load_config, load_policy, resolve_checkpoint, run_folder_of, save_policy
from robovlms.policy.manifest import MANIFEST, DamagedCheckpointError, check_checkpoint, new_checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NAME = f"{OWNER}/lift_cup"
SECRET_ROOT = "/home/alice/secret_project/calvin"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with one checkpoint, whose config says where it was trained."""
    old = load_policy(SINGLE / "checkpoints" / "step_000002")
    data = replace(old.config.data, root=SECRET_ROOT, cache_dir="/scratch/alice/cache")
    trainer = replace(old.config.trainer, init_from="/home/alice/old_run")
    config = replace(old.config, data=data, trainer=trainer, output_dir="/home/alice/secret_project/runs/lift")
    run = tmp_path_factory.mktemp("runs") / "lift"
    with new_checkpoint(run / "checkpoints" / "step_000002") as folder:
        save_policy(folder, old._replace(config=config))
        (folder / "training_state").mkdir()
        (folder / "training_state" / "state.json").write_text('{"root": "/home/alice"}')
        backbone = json.loads((folder / "backbone" / "config.json").read_text())
        backbone["_name_or_path"] = "/home/alice/models/nano"
        (folder / "backbone" / "config.json").write_text(json.dumps(backbone))
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A run of this test's own."""
    return shutil.copytree(trained, tmp_path / "lift")


def push(run, repo=NAME, *, say=lambda config: "robovlms-train", **options):
    """Push; what the card says of its training is composed only where a test reads it, since that takes seconds."""
    return push_to_hub(PushToHubConfig(checkpoint=str(run), repo=repo, **options), say)


def fetched(address):
    return resolve_checkpoint(Path(address))


def state(folder):
    return load_policy(folder).policy.state_dict()


def test_a_checkpoint_comes_back_as_it_was_pushed(hub, run):
    url = push(run)
    commit = url.rpartition("/")[2]
    folder = fetched(f"hf://{NAME}")
    check_checkpoint(folder)
    before, after = state(run / "checkpoints" / "step_000002"), state(folder)
    assert before.keys() == after.keys()
    assert all((before[key] == after[key]).all() for key in before)
    assert address_of(folder) == f"hf://{NAME}@{commit}"
    assert {"README.md", MANIFEST, "spec.json", "action_stats.json", "backbone/config.json"} <= hub.files(NAME).keys()
    assert hub.messages == ["Upload a checkpoint of robovlms"]


def test_nothing_private_is_published_and_the_log_says_what_was_left_out(hub, run, caplog):
    caplog.set_level("INFO")
    push(run, say=command_of)
    files = hub.files(NAME)
    assert not [name for name in files if "training_state" in name]
    for name, content in files.items():
        for private in (b"alice", b"secret_project", str(run).encode()):
            assert private not in content, name
    for option in ("data.root", "output_dir", "data.cache_dir", "trainer.init_from", "_name_or_path"):
        assert option in caplog.text
    assert load_config(fetched(f"hf://{NAME}") / CONFIG).data.views == {"side": "rgb_static", "wrist": "rgb_gripper"}


SECRETS = {
    "a token of the Hub": ("hf_" + "Ab1" * 12, "token of the Hugging Face Hub"),
    "a token of GitHub": ("ghp_" + "a1" * 18, "GitHub"),
    "a key of AWS": ("AKIA" + "A1" * 8, "AWS"),
    "a key of W&B": ("WANDB_API_KEY=" + "0a" * 20, "password or key"),
    "a password in an address": ("https://alice:hunter2@data.example.org/set", "password in an address"),
    "a home folder": ("trained in /home/bob/vla", "/home/bob"),
    "a home folder of Windows": (r"trained in C:\Users\bob\vla", "home folder"),
}


PLACES = [(what, "backbone") for what in SECRETS] + [("a token of the Hub", "config"), ("a home folder", "config")]


@pytest.mark.parametrize(("what", "where"), PLACES)
def test_a_secret_is_refused_by_file_and_line_and_not_repeated(hub, run, what, where):
    secret, named = SECRETS[what]
    checkpoint = run / "checkpoints" / "step_000002"
    old = load_policy(checkpoint)
    shutil.rmtree(checkpoint)
    with new_checkpoint(checkpoint) as folder:
        config = old.config
        if where == "config":
            config = replace(config, tracking=replace(config.tracking, project=secret))
        save_policy(folder, old._replace(config=config))
        if where == "backbone":
            (folder / "backbone" / "notes.txt").write_text(f"first line\n{secret}\n")
    with pytest.raises(UserError, match=named) as raised:
        push(run)
    assert {"config": "config.yaml, line", "backbone": "backbone/notes.txt, line 2"}[where] in str(raised.value)
    assert secret not in str(raised.value)
    assert not hub.branches


def test_what_is_a_path_and_what_is_none():
    places = ["/data/x", "~/x", "./x", "../x", "C:\\x", "D:/x", "file:///x", "\\\\server\\share", str(ROOT / "docs")]
    assert all(map(is_place, places))
    assert not any(
        map(is_place, ["", None, "rgb_static", "microsoft/kosmos-2-patch14-224", "1 epoch", "{instruction}"])
    )


def card(hub, name=NAME):
    text = hub.files(name)["README.md"].decode()
    return yaml.safe_load(text.split("---\n")[1]), text


def test_the_card_says_what_it_is_and_how_it_is_used(hub, run):
    push(run, say=command_of, datasets=["lab/calvin_d"])
    metadata, text = card(hub)
    assert metadata["library_name"] == "robovlms"
    assert metadata["pipeline_tag"] == "robotics"
    assert metadata["license"] == "unknown"
    assert metadata["datasets"] == ["lab/calvin_d"]
    assert {"robotics", "vision-language-action", "nano", "policy_head", "mlp", "calvin"} <= set(metadata["tags"])
    assert "model-index" not in metadata
    for said in (
        f"robovlms-serve checkpoint=hf://{NAME}",
        "None is recorded",
        "dx, dy, dz",
        "this is step 2",
        "30.0 Hz",
    ):
        assert said in text
    assert re.search(r"robovlms-train .*backbone=nano.*data.root=/path/to/it", text)


@pytest.mark.parametrize(
    ("checkpoint", "base", "licence"),
    [
        ("microsoft/kosmos-2-patch14-224", "microsoft/kosmos-2-patch14-224", "mit"),
        ("checkpoints/moondream", "vikhyatk/moondream2", "apache-2.0"),
        ("someone/never_heard_of", "someone/never_heard_of", "unknown"),
        ("/data/models/kosmos", None, "unknown"),
    ],
)
def test_the_licence_is_the_backbones_or_unknown(hub, trained, tmp_path, checkpoint, base, licence):
    config = load_config(trained / "checkpoints" / "step_000002" / CONFIG)
    other = replace(config, backbone=replace(config.backbone, checkpoint=checkpoint))
    assert base_model_of(other) == base
    run = tmp_path / "other"
    old = load_policy(trained / "checkpoints" / "step_000002")
    with new_checkpoint(run / "checkpoints" / "step_000002") as folder:
        save_policy(folder, old._replace(config=other))
    push(run)
    metadata, text = card(hub)
    assert metadata["license"] == licence
    assert metadata.get("base_model") == base
    if licence == "unknown":
        assert "not known" in text or "Not stated" in text


def test_the_licence_that_is_given_is_the_cards(hub, run):
    push(run, license="cc-by-4.0")
    assert card(hub)[0]["license"] == "cc-by-4.0"


def test_every_backbone_preset_has_a_licence_that_is_known_or_said_to_be_unknown():
    from robovlms.backbones.checkpoints.licences import CONVERTED, UNKNOWN, licence_of

    unknown = set()
    for path in sorted((ROOT / "configs" / "backbone").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        checkpoint = yaml.safe_load(text)["checkpoint"]
        found = licence_of(CONVERTED.get(checkpoint, checkpoint))
        first = text.splitlines()[0].lower()
        if found == UNKNOWN:
            unknown.add(path.stem)
        elif found.identifier != "other" and "licence" in first:
            said = {"mit": "mit licence", "apache-2.0": "apache-2.0", "gemma": "gemma licence", "llama2": "llama 2"}
            assert said[found.identifier] in first, path.stem
    assert unknown == {"nano", "internvl"}


def recorded(folder, checkpoint, digest):
    """Write the results of an evaluation that this package made, as of a checkpoint."""
    import line_world

    from robovlms.config.choices import Language
    from robovlms.config.closed_loop import EvaluationConfig
    from robovlms.evaluation.episodes import plan_episodes
    from robovlms.evaluation.results import environment_versions, summarize, write_results
    from robovlms.evaluation.rollouts import run_episodes

    plan = plan_episodes(line_world.world(), EvaluationConfig(language=[Language.opposite], videos_per_task=0))
    played = run_episodes(line_world.start_obedient, plan, folder=folder, conditions={})
    config = {"sim": {"name": "line"}, "evaluation": {"execution": "chunk", "execute_steps": 1}}
    results = summarize(played, config=config, versions=environment_versions([]))
    argv = ["evaluate.py", f"checkpoint={checkpoint}"]
    results = certify(results, checkpoint=checkpoint, checkpoint_digest=digest, renderer="", device="cpu", argv=argv)
    write_results(folder / "results.json", results)
    return results


def test_the_card_has_the_results_of_this_checkpoint_with_intervals_and_no_others(hub, run):
    from robovlms.policy.manifest import checkpoint_digest

    checkpoint = run / "checkpoints" / "step_000002"
    results = recorded(run / "evaluation" / "line_step_000002", checkpoint, checkpoint_digest(checkpoint))
    recorded(run / "evaluation" / "line_step_000001", checkpoint, "0" * 64)
    push(run)
    metadata, text = card(hub)
    overall = results["language"]["own"]["overall"]
    (index,) = metadata["model-index"]
    assert len(index["results"]) == 1
    metric = index["results"][0]["metrics"][0]
    assert metric["value"] == overall["mean"]
    assert f"{overall['low']:.4f} to {overall['high']:.4f}" in metric["name"]
    assert f"{overall['successes']}/{overall['trials']}" in text
    assert "opposite instruction" in text
    assert str(run) not in text


def test_a_second_push_replaces_the_first_and_leaves_other_files(hub, run):
    push(run)
    commit = hub.branches[NAME]["main"]
    hub.commit(NAME, hub.files(NAME) | {"video.mp4": b"x"})
    push(MIXTURE)
    assert "video.mp4" in hub.files(NAME)
    check_checkpoint(fetched(f"hf://{NAME}"))
    assert load_config(fetched(f"hf://{NAME}") / CONFIG).data.name == "mixture"
    assert load_config(fetched(f"hf://{NAME}@{commit}") / CONFIG).data.name == "calvin"


def test_files_of_the_last_checkpoint_that_this_one_has_not_are_deleted(hub, run):
    checkpoint = run / "checkpoints" / "step_000002"
    old = load_policy(checkpoint)
    other = run.with_name("other")
    with new_checkpoint(other / "checkpoints" / "step_000003") as folder:
        save_policy(folder, old)
        (folder / "backbone" / "merges.txt").write_text("a b\n")
    push(other)
    assert "backbone/merges.txt" in hub.files(NAME)
    push(run)
    assert "backbone/merges.txt" not in hub.files(NAME)


def test_a_branch_is_made_and_read_by_its_name(hub, run):
    push(MIXTURE)
    push(run, revision="v2")
    assert load_config(fetched(f"hf://{NAME}") / CONFIG).data.name == "mixture"
    assert load_config(fetched(f"hf://{NAME}@v2") / CONFIG).data.name == "calvin"


def test_a_private_repository_is_private(hub, run, monkeypatch):
    push(run, private=True)
    assert hub.private == {NAME}
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="hf auth login"):
        fetched(f"hf://{NAME}")


def test_a_repository_of_something_else_is_left_alone(hub, run):
    hub.commit(NAME, {"pytorch_model.bin": b"x", "README.md": b"mine"})
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        push(run)
    assert hub.files(NAME) == {"pytorch_model.bin": b"x", "README.md": b"mine"}


def test_the_repository_can_be_written_to_a_folder_first(run, tmp_path):
    target = tmp_path / "look"
    assert push(run, output_dir=str(target)) == str(target)
    check_checkpoint(target)
    assert load_policy(target).spec.name == load_policy(run / "checkpoints" / "step_000002").spec.name
    assert not any(path.is_symlink() for path in target.rglob("*"))
    with pytest.raises(FileExistsError, match="output_dir"):
        push(run, output_dir=str(target))


REFUSED = {
    "nobody is logged in": (NAME, lambda hub, patch: patch.delenv("HF_TOKEN"), "hf auth login"),
    "another's token": (NAME, lambda hub, patch: patch.setenv("HF_TOKEN", "hf_" + "b" * 34), "may not upload"),
    "another's name": ("google/lift_cup", lambda hub, patch: None, "may not upload"),
    "no name": ("lift_cup", lambda hub, patch: None, "<owner>/<name>"),
    "an address": (f"hf://{NAME}", lambda hub, patch: None, "<owner>/<name>"),
    "offline": (NAME, lambda hub, patch: patch.setattr(constants, "HF_HUB_OFFLINE", True), "HF_HUB_OFFLINE"),
    "a Hub that is down": (NAME, lambda hub, patch: setattr(hub, "broken", 418), "418"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_push_that_is_refused_says_what_to_do(hub, run, monkeypatch, what):
    name, prepare, said = REFUSED[what]
    prepare(hub, monkeypatch)
    huggingface_hub.close_session()
    with pytest.raises(UserError, match=re.escape(said)):
        push(run, repo=name)


ABSENT = {
    "no such repository": (f"hf://{OWNER}/nothing", "no such repository"),
    "no such revision": (f"hf://{NAME}@v9", "has no revision v9"),
    "no owner": ("hf://lift_cup", "hf://<owner>/<name>"),
    "a folder inside": (f"hf://{NAME}/step_1", "hf://<owner>/<name>"),
    "an empty revision": (f"hf://{NAME}@", "hf://<owner>/<name>"),
    "a gated one": (f"hf://{OWNER}/gated", "gated"),
    "no checkpoint": (f"hf://{OWNER}/bert", "no checkpoint of robovlms"),
    "another manifest": (f"hf://{OWNER}/android", "no checkpoint of robovlms"),
    "a name that cannot be": (f"hf://{OWNER}/a--b", "no repository of the Hub"),
}


@pytest.mark.parametrize("what", ABSENT)
def test_what_cannot_be_fetched_says_what_to_do(hub, run, what):
    push(run)
    hub.commit(f"{OWNER}/bert", {"pytorch_model.bin": b"x"})
    hub.commit(f"{OWNER}/android", {"manifest.json": b'["x"]'})
    hub.commit(f"{OWNER}/gated", {"x": b""})
    hub.gated.add(f"{OWNER}/gated")
    address, said = ABSENT[what]
    with pytest.raises(UserError, match=re.escape(said)):
        fetched(address)


def test_offline_what_is_in_the_cache_is_taken_and_what_is_not_is_named(hub, run, monkeypatch):
    push(run)
    folder = fetched(f"hf://{NAME}")
    asked = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    assert fetched(f"hf://{NAME}") == folder
    assert len(hub.asked) == asked
    with pytest.raises(UserError, match=r"not in the cache.*HF_HUB_OFFLINE"):
        fetched(f"hf://{OWNER}/other")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"not all of it|model\.safetensors"):
        fetched(f"hf://{NAME}")


def test_a_hub_that_is_not_reached_is_said_to_be(hub, run, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # before the client tries again
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    with pytest.raises(UserError, match="not reached"):
        fetched(f"hf://{NAME}")


def test_a_download_that_was_interrupted_is_completed(hub, run):
    push(run)
    folder = fetched(f"hf://{NAME}")
    (folder / "model.safetensors").resolve().unlink()
    (folder / "model.safetensors").unlink()
    check_checkpoint(fetched(f"hf://{NAME}"))


def test_a_damaged_file_of_the_cache_is_named_with_how_it_is_downloaded_again(hub, run):
    push(run)
    folder = fetched(f"hf://{NAME}")
    blob = (folder / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"model\.safetensors.*hf download .*--force-download"):
        load_policy(fetched(f"hf://{NAME}"))
    blob.write_bytes(content[:-1])
    with pytest.raises(DamagedCheckpointError, match="bytes instead of"):
        fetched(f"hf://{NAME}")


def test_what_is_made_of_a_checkpoint_of_the_hub_does_not_go_into_its_cache(hub, run):
    push(run)
    folder = fetched(f"hf://{NAME}")
    assert origin(folder).name == NAME
    assert run_folder_of(folder) == Path("runs/lab--lift_cup")


@pytest.mark.extended
def test_an_address_is_taken_wherever_a_checkpoint_is(hub, run, tmp_path):
    push(run)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"),
                                "HF_HUB_OFFLINE": "0", "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip

    def script(name, *arguments):
        command = [sys.executable, str(ROOT / name), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)

    ended = script("scripts/compare.py", f"folders=[hf://{NAME}@main]", "latency_steps=1")
    assert ended.returncode == 0, ended.stderr
    assert "nano, policy_head, mlp" in ended.stdout
    ended = script("scripts/merge_lora.py", f"checkpoint=hf://{NAME}", "output_dir=merged")
    assert "no adapters to merge" in ended.stderr
    ended = script("scripts/evaluate.py", f"checkpoint=hf://{NAME}")
    assert "trained without a simulator" in ended.stderr
    ended = script("scripts/evaluate.py", f"checkpoint=hf://{OWNER}/nothing", "sim=metaworld")
    assert (ended.returncode, "no such repository" in ended.stderr) == (2, True)
