"""What happens to records that cannot be used: refused, or left out and counted. The one rule of every format.

Faults say what is wrong and where; only this module advises to leave a record out, and only where that is not set.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from robovlms.errors import UserError

T = TypeVar("T")

log = logging.getLogger(__name__)

MAX_SUBSTITUTES = 20  # records tried in place of one that cannot be read
SHOWN = 3  # faults that are quoted one by one


def or_skip(skip_bad: bool, option: str = "data.skip_bad") -> str:
    """Return the end of a sentence that advises to leave out what is damaged; "" where that is being done already."""
    return "" if skip_bad else f", or set {option}=true to leave such records out"


class BadRecords:
    """The records of a data set that cannot be used.

    Args:
        records: what they are and where, e.g. "episodes of /data/drawers".
        skip_bad: the value of the option: leave them out instead of stopping.
        option: its name.
    """

    def __init__(self, records: str, skip_bad: bool, option: str = "data.skip_bad") -> None:
        self._records, self._skip_bad, self._option = records, skip_bad, option
        self._count = 0
        self._first: list[Exception] = []
        self._replaced: set[int] = set()

    def refuse(self, fault: Exception) -> None:
        """Do nothing if bad records are left out.

        Raises:
            FileNotFoundError, UserError: the fault, with the advice to leave such records out.
        """
        if self._skip_bad:
            return
        if not isinstance(fault, UserError | OSError):
            raise fault  # a mistake of ours keeps its traceback
        raise _like(fault, f"{_sentence(fault)} Correct it{or_skip(False, self._option)}.") from fault

    def refuse_or_skip(self, fault: Exception) -> None:
        """Count a bad record; see `refuse`."""
        self.refuse(fault)
        self._count += 1
        if len(self._first) < SHOWN:
            self._first.append(fault)

    def settle(self, total: int, hint: str = "") -> None:
        """Warn once of all that was left out of `total` records.

        Raises:
            FileNotFoundError, UserError: nothing is left.
        """
        if not self._count:
            return
        said = f"{_sentence(self._first[0])}{hint and ' '}{hint}"
        if self._count >= total:
            raise _like(self._first[0], f"None of the {total} {self._records} can be used, the first because: {said}")
        for number, fault in enumerate(self._first, 1):
            log.info("%s: left out, %d of %d: %s", self._option, number, self._count, fault)
        what = f"{self._count} of {total} {self._records}"
        log.warning("%s: %s are left out, the first because: %s", self._option, what, said)

    def settle_all(self, faults: Sequence[Exception], total: int, hint: str = "") -> None:
        """Refuse, or leave out, the bad ones among `total` records that were all looked at.

        Args:
            faults: one a bad record, in order.
            total: records, good and bad.
            hint: sentences that say what to correct.

        Raises:
            FileNotFoundError, UserError: there are some, and they are not left out; says how many. Or nothing is left.
        """
        if faults and not self._skip_bad and len(faults) < total:
            first = _sentence(faults[0])
            told = f"{len(faults)} of {total} {self._records} cannot be used, the first because: {first}"
            self.refuse(_like(faults[0], f"{told}{hint and ' '}{hint}"))
        self._count, self._first = len(faults), list(faults[:SHOWN])
        self.settle(total, hint)

    def read(self, read: Callable[[int], T], index: int, total: int) -> T:
        """Return record `index` of `total`, or where bad ones are left out, another in its place, always the same.

        Of those that are replaced, number 1, 2, 3, 10, 100, ... is warned of, in each process that reads.

        Raises:
            FileNotFoundError, UserError: it cannot be read, and none of those that were tried in its place.
        """
        fault: Exception | None = None
        for attempt in range(MAX_SUBSTITUTES):
            tried = (index + attempt * (total // MAX_SUBSTITUTES + 1)) % total
            try:
                return read(tried)
            except (OSError, ValueError) as error:
                self.refuse(error)
                fault = error
                if tried not in self._replaced:
                    self._replaced.add(tried)
                    self._warn_of_replaced(fault)
        raise UserError(
            f"{self._option}: {MAX_SUBSTITUTES} {self._records} in a row cannot be read, the last because: {fault}"
        ) from fault

    def _warn_of_replaced(self, fault: Exception) -> None:
        count = len(self._replaced)
        if count <= SHOWN or str(count).rstrip("0") == "1":
            log.warning("%s: %d %s replaced so far, now because: %s", self._option, count, self._records, fault)


def _sentence(fault: Exception) -> str:
    return f"{str(fault).rstrip('.')}."


def _like(fault: Exception, message: str) -> FileNotFoundError | UserError:
    return FileNotFoundError(message) if isinstance(fault, FileNotFoundError) else UserError(message)
