"""A few conversations about pictures, to co-train with."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def make_conversations(folder: Path) -> list[str]:
    """Write eight coloured pictures with their colours, and a greeting without one; return overrides that use them."""
    records = [{"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "good day"}]}]
    for number in range(8):
        name, colour = [("red", (255, 0, 0)), ("blue", (0, 0, 255))][number % 2]
        Image.fromarray(np.full((8, 8, 3), colour, np.uint8)).save(folder / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat colour?"}, {"from": "gpt", "value": f"{name}, just {name}"}]
        records.append({"image": f"{number}.png", "conversations": turns})
    (folder / "said.json").write_text(json.dumps(records))
    return [
        "cotrain=vl", f"cotrain.file={folder / 'said.json'}", f"cotrain.image_folder={folder}",
        "cotrain.batch_size=4", "cotrain.num_workers=0",
    ]  # fmt: skip
