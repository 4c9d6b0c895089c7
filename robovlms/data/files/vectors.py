"""Vectors that data sets keep in one column, in several, or in parts of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from robovlms.errors import UserError
from robovlms.registry import nearest


class VectorSpec:
    """What an option such as `data.action_key` means: `key`, or parts of keys, `a[0:3]+a[6]+b`, one behind another.

    Args:
        text: the option's value.
        option: its name, for messages.
        shapes: what one frame has of each numeric column, [] for a number.
        source: folder or file that the columns are of, for messages.

    Raises:
        UserError: the option is not of this form, or names something that there is not.
    """

    def __init__(self, text: str, option: str, shapes: Mapping[str, Sequence[int]], source: Path) -> None:
        self._text, self.option, self._source = text, option, source
        self.parts: list[tuple[str, slice]] = []
        self._sizes: dict[str, int] = {}
        for part in text.split("+"):
            match = re.fullmatch(r"([^\[\]]+)(?:\[(\d{1,9})(?::(\d{1,9}))?\])?", part.strip())
            if match is None:
                raise UserError(f"{option}={text}: write keys or parts of them, joined by +, e.g. action[0:7]+grip.")
            key, size = match[1], self._size(match[1], shapes)
            first = int(match[2]) if match[2] else 0
            last = int(match[3]) if match[3] else (first + 1 if match[2] else size)
            if not first < last <= size:
                raise UserError(f"{option}={text}: '{key}' of {source} has entries 0 to {size - 1}, not {part}.")
            self.parts.append((key, slice(first, last)))
            self._sizes[key] = size
        self.width = sum(part.stop - part.start for _, part in self.parts)

    def _size(self, key: str, shapes: Mapping[str, Sequence[int]]) -> int:
        if key not in shapes:
            raise UserError(
                f"{self.option}={key} is not a numeric feature of {self._source}.{nearest(key, shapes)} "
                f"It has: {', '.join(shapes) or 'none'}. Set {self.option}=<key>."
            )
        if len(shapes[key]) > 1:
            raise UserError(
                f"{self.option}={key}: it has shape {list(shapes[key])} in {self._source}, expected a vector."
            )
        return int(shapes[key][0]) if shapes[key] else 1

    @property
    def keys(self) -> list[str]:
        """Name the columns to read, each once."""
        return list(self._sizes)

    def take(self, columns: Mapping[str, np.ndarray], source: Path) -> Float32[np.ndarray, "r n"]:
        """Put the vector together from columns, one row a frame.

        Raises:
            UserError: a column of `source` has not the entries it is said to have.
        """
        self.check_columns({key: columns[key].shape for key in self._sizes}, source)
        rows = {key: columns[key] if columns[key].ndim > 1 else columns[key][:, None] for key in self._sizes}
        if not len(rows[self.parts[0][0]]):
            return np.zeros((0, self.width), np.float32)
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused as such
            return np.concatenate([rows[key][:, part] for key, part in self.parts], axis=1).astype(np.float32)

    def check_columns(self, shapes: Mapping[str, Sequence[int]], source: Path) -> None:
        """Refuse columns, of these shapes with the frames first, that have not the entries they are said to have."""
        for key, size in self._sizes.items():
            rows, *found = shapes[key]
            if rows and (found or [1]) != [size]:
                raise UserError(
                    f"{source}: '{key}' has {found} entries a frame, but {self._source} says {size}: "
                    "correct that, or record the file again."
                )

    def check_width(self, names: list[str], option: str) -> None:
        """Refuse another number of names than entries."""
        if self.width != len(names):
            raise UserError(
                f"'{self._text}' of {self._source} has shape [{self.width}], but {option} lists {len(names)} entries "
                f"({', '.join(names)}): set {option} to what this data set records, or choose another {self.option}."
            )
