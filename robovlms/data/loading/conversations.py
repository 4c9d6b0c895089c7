"""Image-text conversations in LLaVA's format, and batches of them.

A record is {"image": "coco/train/1.jpg", "conversations": [{"from": "human", "value": "<image>\n..."}, {"from": "gpt",
"value": "..."}, ...]}; one without "image" is text alone. Source: haotian-liu/LLaVA docs/Finetune_Custom_Data.md.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from robovlms.config.training import CotrainConfig
from robovlms.data.bad_records import BadRecords
from robovlms.data.loading.loader import make_loader
from robovlms.data.loading.processes import Loader
from robovlms.data.loading.sampler import Draw, StepSampler
from robovlms.errors import UserError
from robovlms.files import refuse_pointer
from robovlms.images.decoding import decode_picture
from robovlms.images.processor import Processor, pad
from robovlms.types import Conversations

log = logging.getLogger(__name__)

MARK = "<image>"  # where LLaVA puts the image; a backbone puts it where its family does
SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


@runtime_checkable
class Tokenizer(Protocol):
    """What turns a conversation into token ids."""

    @property
    def end_id(self) -> int:
        """The token that ends a reply."""

    def question_ids(self, text: str) -> list[int]:
        """Return the ids of the beginning of a conversation, special tokens included."""

    def reply_ids(self, before: str, text: str) -> list[int]:
        """Return the ids of text that follows `before`."""


class Conversation(NamedTuple):
    """What a human asks and what is answered, in turns."""

    turns: list[tuple[str, str]]
    image: str | None  # path within the folder of images


class ConversationDataset:
    """Records of a JSON array or of JSON lines, by number; only their places are kept in memory.

    Raises:
        FileNotFoundError: there is no such file or folder.
        UserError: a record cannot be used, or none can; names it.
    """

    def __init__(self, config: CotrainConfig, processor: Processor) -> None:
        self.config, self._processor = config, processor
        self.path, self.folder = Path(config.file).expanduser(), Path(config.image_folder).expanduser()
        if not self.path.is_file():
            raise FileNotFoundError(f"cotrain.file={self.path} does not exist: give LLaVA's JSON or JSON lines.")
        if not self.folder.is_dir():
            raise FileNotFoundError(f"cotrain.image_folder={self.folder} does not exist.")
        places, numbers, total = [], [], 0
        self._bad = BadRecords(f"records of {self.path}", config.skip_bad, "cotrain.skip_bad")
        for number, (start, end, record) in enumerate(self._scan()):
            total += 1
            try:
                self._check(record)
            except ValueError as error:
                self._bad.refuse_or_skip(UserError(f"{self.path}, record {number}: {error}"))
                continue
            places.append((start, end))
            numbers.append(number)
        self._bad.settle(total)
        if not places:
            raise UserError(f"cotrain.file={self.path} holds no conversation.")
        self._places, self._numbers = np.array(places, np.int64), np.array(numbers, np.int64)

    def _scan(self) -> Iterator[tuple[int, int, Any]]:
        """Return first byte, end and content of every record. As Latin-1 every byte is a character, so places agree."""
        text = self.path.read_bytes().decode("latin-1")
        decode, at = json.JSONDecoder().raw_decode, _skip(text, 0, " \t\r\n")
        is_array = text.startswith("[", at)
        at += is_array
        while (at := _skip(text, at, " \t\r\n,")) < len(text) and not (is_array and text[at] == "]"):
            try:
                record, end = decode(text, at)
            except (ValueError, RecursionError) as error:
                refuse_pointer(self.path)
                raise UserError(f"cotrain.file={self.path} is not JSON at byte {at}: {error}") from error
            yield at, end, record
            at = end
        if is_array and at >= len(text):
            raise UserError(f"cotrain.file={self.path} ends within its array: it was cut short, copy it again.")

    def _check(self, record: Any) -> None:
        image = parse(record).image
        if image is not None:
            if Path(image).is_absolute() or ".." in Path(image).parts:
                raise UserError(f"its image {image!r} lies outside cotrain.image_folder")
            if not (self.folder / image).is_file():
                raise UserError(f"its image {self.folder / image} does not exist")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[Conversation, UInt8[np.ndarray, "h x c"] | None]:
        """Read a conversation and its image, resized; with `cotrain.skip_bad` another where it cannot be read.

        Raises:
            UserError: the file changed, or the image cannot be decoded; names it.
        """
        return self._bad.read(self._read, index, len(self))

    def _read(self, index: int) -> tuple[Conversation, UInt8[np.ndarray, "h x c"] | None]:
        start, end = self._places[index].tolist()
        with self.path.open("rb") as file:
            file.seek(start)
            conversation = parse(json.loads(file.read(end - start)))
        return conversation, None if conversation.image is None else self._picture(index, conversation.image)

    def _picture(self, index: int, name: str) -> UInt8[np.ndarray, "h x c"]:
        try:
            data = (self.folder / name).read_bytes()  # of a file Pillow reads as much as its chunks claim
            return self._processor.picture(Image.fromarray(decode_picture(data)))
        except (OSError, ValueError) as error:
            refuse_pointer(self.folder / name)
            raise UserError(
                f"{self.folder / name} ({self.path.name}, record {self._numbers[index]}) cannot be read: {error}"
            ) from error


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at


def parse(record: Any) -> Conversation:
    """Return the turns of a record, an unanswered last question left out.

    Raises:
        UserError: it is no conversation of a human and a model in turns, or has several images.
    """
    if not isinstance(record, dict) or not isinstance(record.get("conversations"), list):
        raise UserError("it has no list of 'conversations'")
    said = record["conversations"]
    image = record.get("image")
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if image is not None and not isinstance(image, str):
        raise UserError("its 'image' is not one path")
    texts = []
    for number, turn in enumerate(said):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise UserError(f"turn {number} has no text 'value'")
        if SPEAKERS.get(str(turn.get("from"))) != ("human", "gpt")[number % 2]:
            raise UserError(f"turn {number} is from {turn.get('from')!r}: human and gpt must take turns")
        texts.append(turn["value"].replace(MARK, "").strip())
    if sum(turn["value"].count(MARK) for turn in said) > 1:
        raise UserError(f"it has several {MARK}, one is supported")
    turns = list(zip(texts[::2], texts[1::2], strict=False))  # a last question that nobody answers is left out
    if not turns or not all(answer for _, answer in turns):
        raise UserError("an answer is empty" if turns else "nothing is answered")
    return Conversation(turns, image)


class ConversationCollator:
    """Turn conversations into tokens: the first question, then everything else, of which answers are supervised."""

    def __init__(self, config: CotrainConfig, tokenizer: Tokenizer, size: int) -> None:
        self.config, self.size = config, size
        self._tokenizer = tokenizer

    def __call__(
        self, drawn: Sequence[tuple[tuple[Conversation, UInt8[np.ndarray, "h x c"] | None], Draw]]
    ) -> Conversations:
        rows = [self._tokens(conversation) for (conversation, _), _ in drawn]
        pictures = [picture for (_, picture), _ in drawn]
        images = torch.zeros(len(rows), self.size, self.size, 3, dtype=torch.uint8)
        for row, picture in zip(images.numpy(), pictures, strict=True):
            row[...] = 0 if picture is None else picture
        text_ids, text_mask = pad([question for question, _, _ in rows])
        reply_ids, _ = pad([reply for _, reply, _ in rows])
        width = reply_ids.shape[1]
        supervised = [i * width + place for i, (_, _, places) in enumerate(rows) for place in places]
        return Conversations(
            images=images,
            view_mask=torch.tensor([[picture is not None] for picture in pictures]),
            text_ids=text_ids,
            text_mask=text_mask,
            reply_ids=reply_ids,
            supervised=torch.tensor(supervised),
        )

    def _tokens(self, conversation: Conversation) -> tuple[list[int], list[int], list[int]]:
        """Return the first question, what follows, and which of that is an answer's; at least one token is."""
        config, tokenizer = self.config, self._tokenizer
        said = config.question.format(text=conversation.turns[0][0])
        question = tokenizer.question_ids(said)
        reply: list[int] = []
        supervised: list[int] = []
        for number, (asked, answered) in enumerate(conversation.turns):
            if number:
                text = config.question.format(text=asked)
                reply += tokenizer.reply_ids(said, text)
                said += text
            text = config.answer.format(text=answered)
            answer = [*tokenizer.reply_ids(said, text), tokenizer.end_id]
            said += text
            supervised += range(len(reply), len(reply) + len(answer))
            reply += answer
        question = question[: config.max_tokens]
        room = max(config.max_tokens - len(question), 1)
        return question, reply[:room], [place for place in supervised if place < room]


def conversation_loader(
    config: CotrainConfig, tokenizer: Tokenizer, processor: Processor, beside: StepSampler, *, pin_memory: bool
) -> Loader[Conversations]:
    """Return an endless loader of this rank's conversations: a micro-batch for each one of the robot's data (`beside`).

    Raises:
        UserError: the batch does not divide, or there are fewer conversations than that.
    """
    parts = beside.accumulation * beside.world_size
    if config.batch_size % parts:
        raise UserError(
            f"cotrain.batch_size={config.batch_size} does not divide into {beside.world_size} processes x "
            f"{beside.accumulation} accumulated: set it to a multiple of {parts}."
        )
    dataset = ConversationDataset(config, processor)
    if len(dataset) < config.batch_size:
        raise UserError(f"cotrain.batch_size={config.batch_size}, but {config.file} has {len(dataset)} conversations.")
    log.info("%s: %d conversations, %d a step", config.file, len(dataset), config.batch_size)
    sampler = StepSampler(
        [len(dataset)],
        batch_size=config.batch_size,
        device_batch_size=config.batch_size // parts,
        rank=beside.rank,
        world_size=beside.world_size,
        seed=beside.seed,
        start_step=beside.start_step,
    )
    collate = ConversationCollator(config, tokenizer, processor.image_spec.size)
    return make_loader(dataset, collate, sampler, config.num_workers, pin_memory, "cotrain.num_workers")
