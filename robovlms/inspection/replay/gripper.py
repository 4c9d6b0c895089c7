"""Does a recorded gripper go where the actions send it?"""

from __future__ import annotations

import numpy as np

from robovlms.actions.checks import Finding, Severity, gripper_share
from robovlms.actions.contract import split_name
from robovlms.config.data import DataConfig
from robovlms.inspection.replay.motion import stretches
from robovlms.inspection.scan import ScannedRows

# State entries that grow as a gripper opens. `gripper_width` is none of them: recordings call the angle of a finger so.
OPENING = ("opening", "width", "gripper_opening")
SECONDS = 1.0  # that a gripper may take
MIN_TRAVEL = 1e-4  # of the state, less is a gripper that stays where it is
CLEARER = 0.7  # of the distance that may be left if the gripper is inverted, for that to be believed


def gripper_state(name: str, states: list[str]) -> tuple[int, bool] | None:
    """Return the state entry of a gripper, and whether it is an opening (else it is written as the action is)."""
    arm = split_name(name)[0]
    for candidate in OPENING:
        if arm + candidate in states:
            return states.index(arm + candidate), True
    return (states.index(name), False) if name in states else None


def gripper_findings(data: DataConfig, rows: ScannedRows) -> list[Finding]:
    """Name grippers whose state goes open where the actions say close, and the reverse."""
    found = []
    for column in data.contract.grippers:
        name = data.contract.names[column]
        state = gripper_state(name, data.proprio_names)
        if state is None or not _is_inverted(data, rows, column, *state):
            continue
        what = f"{name} looks inverted: where the actions close it, '{data.proprio_names[state[0]]}' opens"
        contract = data.contract
        to_do = (
            f"Set data.contract.gripper_closed={contract.gripper_open:g} and "
            f"gripper_open={contract.gripper_closed:g}, or name the state by what it is."
        )
        severity = Severity.error if state[1] else Severity.warning  # a state called gripper may be a width
        found.append(Finding(severity=severity, what=what, where=f"{len(rows.actions)} rows", to_do=to_do))
    return found


def _is_inverted(data: DataConfig, rows: ScannedRows, column: int, place: int, grows_open: bool) -> bool:
    """Compare where the state is after a while with where it should be, as declared and the other way round."""
    pieces = [
        (np.clip(gripper_share(actions[:, column], data.contract), 0, 1), states[:, place])
        for actions, states in stretches(rows)
    ]
    if not pieces:
        return False
    values = np.concatenate([state for _, state in pieces])
    low, high = (float(value) for value in np.quantile(values, [0.01, 0.99]))
    if high - low < MIN_TRAVEL:
        return False
    rises = grows_open or data.contract.gripper_open > data.contract.gripper_closed
    late = max(1, round(SECONDS * data.contract.control_hz))
    declared, inverted = [], []
    for share, state in pieces:
        if len(state) <= late:
            continue
        opening = np.clip((state[late:] - low) / (high - low), 0, 1)
        target = share[:-late] if rises else 1 - share[:-late]
        held = np.abs(share[late:] - share[:-late]) < 0.5  # it was not called back meanwhile
        declared.append(np.abs(opening - target)[held])
        inverted.append(np.abs(opening - (1 - target))[held])
    off, other = np.concatenate([*declared, []]), np.concatenate([*inverted, []])
    return bool(len(off)) and float(other.mean()) < CLEARER * float(off.mean())
