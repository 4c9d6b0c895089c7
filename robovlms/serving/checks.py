"""What clients may ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from robovlms.config.closed_loop import ProtocolConfig
from robovlms.errors import UserError

MAX_INSTRUCTION = 4096  # characters


def check_instruction(value: Any) -> None:
    """Refuse an instruction whose tokenization would keep everybody waiting.

    Raises:
        UserError: says how long it may be.
    """
    while isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, str | bytes) and len(value) > MAX_INSTRUCTION:
        raise UserError(f"the instruction has {len(value)} characters, more than {MAX_INSTRUCTION}.")


def check_client(views: Sequence[str], proprio_names: Sequence[str], protocol: ProtocolConfig) -> None:
    """Refuse names of `protocol` that do not cover what the policy needs.

    Raises:
        UserError: names what is missing, and the option.
    """
    if missing := [view for view in views if protocol.views and view not in protocol.views]:
        raise UserError(
            f"the policy sees {', '.join(views)}: say what clients call {', '.join(missing)}, e.g. "
            f"protocol.views.{missing[0]}=front."
        )
    names = protocol.proprio_names
    if missing := [name for name in proprio_names if names and name not in names]:
        raise UserError(
            f"protocol.proprio_names={names} lacks {', '.join(missing)}, which the policy was trained with: "
            f"{', '.join(proprio_names)}."
        )
