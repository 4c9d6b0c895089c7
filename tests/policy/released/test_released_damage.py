"""What is wrong with a released checkpoint is said: which file, which tensors, what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from released_files import configuration, convert, vlm, weights, write
from safetensors.torch import save_file
from test_released import BRIDGE, data

from robovlms.errors import UserError
from robovlms.policy.checkpoint import load_policy

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def kosmos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vlm("kosmos", tmp_path_factory.mktemp("kosmos"))


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return weights()


def refused(match: str, source: Path, config: Path, checkpoint: Path, error: type = UserError) -> None:
    """Convert; nothing may be left behind."""
    output = config.parent / "out"
    with pytest.raises(error, match=match):
        convert(source, config, output, checkpoint, data())
    assert not output.exists()
    assert not list(config.parent.glob(".out*"))


def test_tensors_without_a_place_are_listed(kosmos, tensors, tmp_path):
    more = tensors | {"model.embed_arm_state.weight": torch.zeros(2), "model.backbone.adapter.lora_A": torch.zeros(2)}
    match = r"2 weights of the original have no place in our model: embed_arm_state\.weight, backbone\.adapter\.lora_A"
    refused(match, *write(tmp_path, configuration(), more), kosmos)


@pytest.mark.parametrize(
    "lost", ["action_token", "act_head.rnn.weight_hh_l2", "backbone.text_model.model.layer_norm.bias"]
)
def test_a_missing_tensor_is_named(lost, kosmos, tensors, tmp_path):
    fewer = {key: value for key, value in tensors.items() if key != f"model.{lost}"}
    refused(r"1 missing: .*\. config=.*config\.json is of another", *write(tmp_path, configuration(), fewer), kosmos)


@pytest.mark.parametrize(
    "changes", [{"act_head": {"hidden_size": 16}}, {"fwd_pred_next_n": 5}, {"act_head": {"latent": 2}}]
)
def test_a_configuration_of_another_checkpoint_is_refused(changes, kosmos, tensors, tmp_path):
    files = write(tmp_path, configuration(**changes), tensors)
    refused(r"of another shape: head\..* instead of .*config=.*config\.json is of another checkpoint", *files, kosmos)


def test_another_head_than_the_configurations_is_refused(kosmos, tensors, tmp_path):
    files = write(tmp_path, configuration(head="mlp"), tensors)
    refused(r"have no place in our model: act_head\.rnn\.weight_ih_l0", *files, kosmos)


def test_files_of_another_vlm_are_refused(tensors, tmp_path):
    files = write(tmp_path / "a", configuration(), tensors)
    refused(r"reads 'kosmos-2' checkpoints, but backbone\.checkpoint=.* holds a 'paligemma' model", *files,
            vlm("paligemma", tmp_path / "paligemma"))  # fmt: skip


def test_a_missing_folder_of_the_vlm_names_the_option(tensors, tmp_path):
    files = write(tmp_path, configuration(), tensors)
    refused(r"backbone\.checkpoint=.*nowhere: there is no folder", *files, tmp_path / "nowhere", FileNotFoundError)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_damaged(share, kosmos, tensors, tmp_path):
    source, config = write(tmp_path, configuration(), tensors)
    content = source.read_bytes()
    source.write_bytes(content[: int(share * len(content))])
    refused(r"source=.*weights\.pt \(\d+ bytes\) is damaged, or no file of weights", source, config, kosmos)


def test_a_truncated_safetensors_file_is_damaged(kosmos, tensors, tmp_path):
    _, config = write(tmp_path, configuration(), tensors)
    source = tmp_path / "weights.safetensors"
    save_file({key: value.clone() for key, value in tensors.items()}, source)
    source.write_bytes(source.read_bytes()[:1000])
    refused(r"source=.*weights\.safetensors \(1000 bytes\) is damaged", source, config, kosmos)


class Foreign:
    def __reduce__(self):
        return exec, ("raise SystemExit('it was executed')",)


def test_foreign_objects_are_neither_executed_nor_read(kosmos, tensors, tmp_path):
    source, config = write(tmp_path, configuration(), tensors)
    torch.save({"state_dict": tensors, "callbacks": Foreign()}, source)
    refused(r"holds more than weights \(.*exec\).*write the weights alone.*torch\.save", source, config, kosmos)


def test_a_file_of_another_kind_is_not_recommended_to_be_read_unsafely(kosmos, tmp_path):
    _, config = write(tmp_path, configuration(), {})
    refused(r"is damaged, or no file of weights \(it is not in PyTorch's format\): copy", config, config, kosmos)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {}}, [1, 2], {"state_dict": {"a": 3}}])
def test_a_file_without_weights_says_what_was_found(content, kosmos, tmp_path):
    source, config = write(tmp_path, configuration(), {})
    torch.save(content, source)
    refused(r"holds no weights: expected tensors by name below state_dict", source, config, kosmos)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list"),
        ("{}", "model is not there, where RoboVLMs has a str|use_hand_rgb is not there"),
        ('{"parent": "nowhere.json"}', "nowhere.json does not exist"),
        ('{"parent": "config.json"}', "more than 10 parents"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(text, match, kosmos, tensors, tmp_path):
    source, config = write(tmp_path, configuration(), tensors)
    config.write_text(text, encoding="utf-8")
    refused(match, source, config, kosmos, (UserError, FileNotFoundError))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": "qwen"}, "model is 'qwen': kosmos, paligemma, flamingo are converted"),
        ({"window_size": "8"}, "window_size is '8', where RoboVLMs has a int"),
        ({"window_size": 0}, r"config=.*window\.window_size=0 must be"),
        ({"norm_action": None}, "norm_action is not there.*true, norm_min -0.65 and norm_max 0.65"),
        ({"norm_min": 0.65}, "norm_min is 0.65: it must be below norm_max"),
        ({"act_head": {"type": "DiffusionDecoder"}}, "act_head.type is 'DiffusionDecoder': LSTMDecoder, GPTDecoder"),
        ({"act_head": {"action_space": "discrete"}}, "act_head.action_space is .*discrete.*is not converted"),
        ({"act_head": {"action_space": "down_sample"}}, "act_head.action_space is 'down_sample': with kosmos"),
        ({"act_head": {"history_type": "video"}}, "act_head.history_type is .*video"),
        ({"act_head": {"history_type": "pre"}}, "structure=interleaved with head=lstm is not allowed"),
        ({"act_head": {"action_dim": 8}}, "act_head.action_dim is 8"),
        ({"fwd_head": {"type": "x"}}, "fwd_head is .*is not converted"),
        ({"use_vision_resampler": True}, "use_vision_resampler is true: a resampler behind the projector"),
        ({"regular_action": True}, "regular_action is true"),
        ({"tcp_rel": True}, "tcp_rel is true"),
        ({"train_setup": {"lora_enable": True}}, "lora_enable is true: merge the adapters first"),
        ({"train_dataset": BRIDGE}, "is OpenVLADataset bridge: add data=bridge or data=fractal"),
        ({"train_dataset": {"type": "Other"}}, "train_dataset.type is 'Other'"),
        ({"train_dataset": None}, "train_dataset.type is not there"),
        ({"norm_min": float("nan")}, "norm_min|normalization.low"),
        ({"learning_rate": -1}, r"config=.*optimizer\.lr=-1"),
    ],
)
def test_what_is_not_converted_is_named_by_its_key(changes, match, kosmos, tensors, tmp_path):
    refused(match, *write(tmp_path, configuration(**changes), tensors), kosmos)


@pytest.mark.parametrize("prefix", ["", "module.", "module.model.", "_forward_module.model.", "model."])
def test_prefixes_of_trainers_are_taken_off(prefix, kosmos, tensors, tmp_path):
    named = OrderedDict((prefix + key.removeprefix("model."), value.half()) for key, value in tensors.items())
    folder = convert(*write(tmp_path, configuration(), named), tmp_path / "out", kosmos, data())
    wanted = tensors["model.act_head.rnn.weight_hh_l0"].half().float()
    assert torch.equal(load_policy(folder).policy.head.lstm.weight_hh_l0, wanted)


def test_a_folder_with_one_file_is_read_and_one_with_two_asks_which(kosmos, tensors, tmp_path):
    source, config = write(tmp_path / "in", configuration(), tensors)
    convert(source.parent, config, tmp_path / "out", kosmos, data())
    write(tmp_path / "in", configuration(), tensors, "other.ckpt")
    refused("holds 2 files of weights: name one, e.g. source=", source.parent, config, kosmos)
    refused("holds no weights", kosmos, config, kosmos, FileNotFoundError)
    refused("does not exist: give the .pt file", tmp_path / "nowhere", config, kosmos, FileNotFoundError)


def shard(folder: Path, name: str, module: dict[str, torch.Tensor]) -> Path:
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    torch.save({"module": module, "param_shapes": torch.Size([1]), "ds_version": "0.15"}, folder / "checkpoint" / name)
    return folder


def test_deepspeeds_folder_with_the_whole_model_is_read_and_parts_ask_to_be_joined(kosmos, tensors, tmp_path, caplog):
    _, config = write(tmp_path, configuration(), tensors)
    half = {f"module.{key}": value.half() for key, value in tensors.items()}
    whole = shard(tmp_path / "whole", "mp_rank_00_model_states.pt", half)
    with caplog.at_level("WARNING"):
        convert(whole, config, tmp_path / "done", kosmos, data())
    assert "holds the weights in half precision" in caplog.text
    names = [f"zero_pp_rank_{i}_mp_rank_00_model_states.pt" for i in range(2)]
    empty = {key: value[:0] for key, value in half.items()}
    parts, _ = (shard(tmp_path / "parts", name, empty) for name in names)
    refused(r"holds 2 DeepSpeed shards.*zero_to_fp32\.py", parts, config, kosmos)
    refused(r"is a shard of ZeRO 3.*zero_to_fp32\.py", parts / "checkpoint" / names[0], config, kosmos)


def test_an_output_folder_that_exists_stays_as_it_is(kosmos, tensors, tmp_path):
    files = write(tmp_path, configuration(), tensors)
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match=r"output_dir=.*out exists: choose another"):
        convert(*files, tmp_path / "out", kosmos, data())
    assert not list((tmp_path / "out").iterdir())


def test_rlds_checkpoints_need_the_file_of_their_statistics(kosmos, tensors, tmp_path):
    files = write(tmp_path, configuration(train_dataset=BRIDGE), tensors)
    with pytest.raises(UserError, match=r"data\.normalization\.statistics_file: RoboVLMs keeps the statistics"):
        convert(*files, tmp_path / "out", kosmos, data("data=bridge"))


def test_second_names_that_hold_other_numbers_are_refused(tmp_path):
    tensors = weights("flamingo")
    key = next(key for key in tensors if key.startswith("model.model."))
    changed = tensors | {key: tensors[key] + 1}
    match = r"1 weights named model\.\* differ from those named backbone\.\*, e\.g\. model\.gpt_neox\.embed_in\.weight"
    files = write(tmp_path, configuration("flamingo"), changed)
    refused(match, *files, vlm("flamingo", tmp_path / "vlm"))


@pytest.mark.slow
def test_the_command_converts_and_tells_what_is_wrong_in_one_message(kosmos, tensors, tmp_path):
    source, config = write(tmp_path, configuration(), tensors)
    command = [sys.executable, str(ROOT / "scripts" / "convert_checkpoint.py"), f"source={source}",
               f"config={config}", f"output_dir={tmp_path / 'out'}"]  # fmt: skip
    done = subprocess.run([*command, f"backbone.checkpoint={kosmos}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "spec.json").read_text(encoding="utf-8"))["window_size"] == 8
    again = subprocess.run([*command, f"backbone.checkpoint={kosmos}"], capture_output=True, text=True)
    assert (again.returncode, "Traceback" in again.stderr) == (2, False)
    assert "exists: choose another, or delete it" in again.stderr
