"""Conversations: what is read of LLaVA's files, what is refused, and which tokens are taught."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from robovlms.backbones.families.nano import Nano
from robovlms.config.training import CotrainConfig
from robovlms.data.loading.conversations import ConversationCollator, ConversationDataset, parse
from robovlms.data.loading.sampler import Draw
from robovlms.images.processor import Processor

ASKED = {"from": "human", "value": "<image>\nWhat colour is it?"}
RED = {"from": "gpt", "value": "rouge, très rouge"}


def record(*turns, image="1.png"):
    return {"id": 7, "image": image, "conversations": list(turns)}


@pytest.fixture
def backbone():
    return Nano.tiny()


@pytest.fixture
def open_records(tmp_path, backbone):
    Image.fromarray(np.full((20, 30, 3), (255, 0, 0), np.uint8)).save(tmp_path / "1.png")

    def write(text, **options):
        (tmp_path / "said.json").write_text(text, encoding="utf-8", newline="")
        options |= {"file": str(tmp_path / "said.json"), "image_folder": str(tmp_path)}
        processor = Processor(backbone, ["side"], max_text_tokens=64)
        return ConversationDataset(CotrainConfig(name="vl", **options), processor)

    return write


@pytest.mark.parametrize(
    "layout",
    [
        lambda rows: json.dumps(rows, ensure_ascii=False),
        lambda rows: json.dumps(rows, indent=2),
        lambda rows: "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n",
    ],
    ids=["array", "indented", "lines"],
)
def test_arrays_and_lines_are_read_by_number(open_records, layout):
    text_alone = {"conversations": [{"from": "user", "value": "é?"}, {"from": "assistant", "value": "é!"}]}
    dataset = open_records(layout([record(ASKED, RED), text_alone, record(ASKED, RED, ASKED | {"value": "sure?"})]))
    assert len(dataset) == 3
    conversation, picture = dataset[0]
    assert conversation.turns == [("What colour is it?", "rouge, très rouge")]
    assert picture.shape == (32, 32, 3)
    assert (picture == [255, 0, 0]).all()
    assert dataset[1] == (([("é?", "é!")], None), None)
    assert dataset[2][0].turns == conversation.turns, "a question without an answer teaches nothing"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record(RED, ASKED), "human and gpt must take turns"),
        (record(ASKED), "nothing is answered"),
        (record(ASKED, {"from": "gpt", "value": " "}), "an answer is empty"),
        (record(ASKED, {"from": "gpt"}), "no text 'value'"),
        (record({"from": "human", "value": "<image> or <image>?"}, RED), "several <image>"),
        (record(ASKED, RED, image="2.png"), "2.png does not exist"),
        (record(ASKED, RED, image="../1.png"), "outside cotrain.image_folder"),
        (record(ASKED, RED, image=["1.png", "1.png"]), "not one path"),
        ({"text": "x"}, "no list of 'conversations'"),
        (3, "no list of 'conversations'"),
    ],
)
def test_a_record_that_cannot_be_used_is_named_or_left_out_and_counted(open_records, bad, reason, caplog):
    text = json.dumps([record(ASKED, RED), bad])
    with pytest.raises(ValueError, match=f"record 1: .*{reason}") as error:
        open_records(text)
    assert "cotrain.skip_bad=true" in str(error.value)
    assert len(open_records(text, skip_bad=True)) == 1
    assert "1 of 2 records of" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "[1", '{"a": ', "no", "[" * 100_000])
def test_a_file_without_conversations_is_refused(open_records, text):
    with pytest.raises(ValueError, match=r"cotrain\.file=.*said\.json"):
        open_records(text, skip_bad=True)


def test_an_array_that_was_cut_short_between_records_is_refused(open_records):
    whole = json.dumps([record(ASKED, RED), record(ASKED, RED)])
    with pytest.raises(ValueError, match="cut short"):
        open_records(whole[: whole.index("}]}, ") + 5])


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"  # a program, which Pillow runs
)


@pytest.mark.parametrize(
    "damage",
    [
        lambda png: png[:40],
        lambda _: POSTSCRIPT,
        lambda png: png[: png.index(b"IDAT") - 4] + b"\xff\xff\xff\xf0tEXt",  # a comment of 4 GB
    ],
    ids=["short", "program", "length"],
)
def test_a_damaged_image_is_named_with_its_record(open_records, tmp_path, damage):
    dataset = open_records(json.dumps([record(ASKED, RED)]))
    (tmp_path / "1.png").write_bytes(damage((tmp_path / "1.png").read_bytes()))
    with pytest.raises(ValueError, match=r"1\.png .*record 0.* cannot be read.*cotrain\.skip_bad=true"):
        dataset[0]


def test_with_skip_bad_an_image_that_is_damaged_later_is_replaced_by_another_with_a_warning(
    open_records, tmp_path, caplog
):
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes())
    records = [record(ASKED, RED), record(ASKED, {"from": "gpt", "value": "blue"}, image="2.png")]
    dataset = open_records(json.dumps(records), skip_bad=True)
    (tmp_path / "1.png").write_bytes(b"")
    assert [dataset[0][0].turns[0][1] for _ in range(2)] == ["blue", "blue"]
    (warning,) = [entry.message for entry in caplog.records]
    assert re.match(r"cotrain\.skip_bad: 1 records of \S+ replaced so far, now because: .*1\.png", warning)
    assert "skip_bad=true" not in warning
    (tmp_path / "2.png").unlink()
    with pytest.raises(ValueError, match=r"cotrain\.skip_bad: 20 records of .* in a row cannot be read.*2\.png"):
        dataset[0]


def test_with_skip_bad_a_file_of_bad_records_alone_is_refused_without_advice(open_records):
    with pytest.raises(ValueError, match=r"None of the 2 records of .* can be used, the first because: ") as error:
        open_records(json.dumps([3, record(ASKED)]), skip_bad=True)
    assert "skip_bad=true" not in str(error.value)


def test_answers_and_their_ends_are_taught_and_questions_are_not(backbone):
    turns = parse(record(ASKED, {"from": "gpt", "value": "red"}, {"from": "human", "value": "sure?"}, RED))
    short = parse({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]})
    config = CotrainConfig(name="vl", file="", image_folder="", question="Q {text} A", answer=" {text}")
    collate = ConversationCollator(config, backbone.tokenize, size=4)
    batch = collate([((turns, np.full((4, 4, 3), 9, np.uint8)), Draw(0, 0)), ((short, None), Draw(1, 1))])
    words = {name: backbone.tokenize([name])[0][1] for name in ("red", "sure", "ho", "q", "a", "?", "rouge")}
    assert batch.reply_ids[0, :6].tolist() == [words["red"], 0, words["q"], words["sure"], words["?"], words["a"]]
    width = batch.reply_ids.shape[1]
    assert batch.supervised.tolist() == [0, 1, *range(6, width), width, width + 1]
    assert batch.reply_ids.flatten()[batch.supervised[-2:]].tolist() == [words["ho"], 0]
    assert batch.text_mask.sum(1).tolist() == [8, 4]
    assert batch.view_mask.tolist() == [[True], [False]]
    assert batch.images[0].unique().tolist() == [9]
    assert batch.images[1].unique().tolist() == [0]


def test_long_conversations_are_cut_and_still_teach(backbone):
    config = CotrainConfig(name="vl", file="", image_folder="", max_tokens=3)
    batch = ConversationCollator(config, backbone.tokenize, size=4)([((parse(record(ASKED, RED)), None), Draw(0, 0))])
    assert batch.text_ids.shape[1] == 3
    assert batch.supervised.tolist() == [0]
