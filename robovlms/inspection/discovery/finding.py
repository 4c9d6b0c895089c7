"""From any folder to the text of its data config: which format it is, and what to say where it is none that is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robovlms.data.formats import Format, recognise, signs
from robovlms.data.rlds.features import open_folder
from robovlms.errors import UserError
from robovlms.inspection.discovery.folder import Folder
from robovlms.inspection.discovery.hdf5 import describe_aloha, describe_robomimic, is_libero
from robovlms.inspection.discovery.lerobot import describe_lerobot
from robovlms.inspection.discovery.presets import filled_in, preset_of
from robovlms.inspection.discovery.proposal import propose
from robovlms.inspection.discovery.rlds import describe_rlds
from robovlms.inspection.discovery.writing import describe, write_config

MAX_LISTED = 20  # names of what lies in a folder
DESCRIBERS: dict[str, Callable[[Path], Folder]] = {
    "lerobot": describe_lerobot,
    "rlds": describe_rlds,
    "libero": describe_robomimic,
    "aloha": describe_aloha,
}


@dataclass(frozen=True)
class FoundData:
    """What was found out about a folder."""

    said: str  # for people
    text: str  # of the data config

    def lying_at(self, folder: Path, address: str) -> FoundData:
        """Return it with an address of the Hub in place of the folder it was downloaded to."""
        said, text = (told.replace(str(folder.absolute()), address) for told in (self.said, self.text))
        return FoundData(said, text)


def find_data(root: Path) -> FoundData:
    """Return what a folder or file holds, and its data config.

    Raises:
        FileNotFoundError: it does not exist.
        UserError: no format, or none that is read, or several data sets; says what was looked for and what lies there.
    """
    root = root.expanduser()
    if not root.exists():
        raise FileNotFoundError(f"data.root={root} does not exist: set it to the folder of your recordings.")
    root, held = _locate(root.absolute())
    if held.option is None:
        raise UserError(f"data.root={root} holds {held.name}, which is not read: {held.to_do}.")
    if (preset := _preset(root, held.option)) is not None:
        said = f"{held.name[0].upper()}{held.name[1:]}, all of whose facts are known: data={preset}."
        return FoundData(f"{root}: {said}", filled_in(preset, root, said))
    proposal = propose(DESCRIBERS[held.option](root))
    if not proposal.folder.cameras:
        raise UserError(
            f"data.root={root} has no camera that can be read, and a policy needs one. {_notes(proposal.folder)}"
        )
    return FoundData(describe(proposal), write_config(proposal))


def _notes(folder: Folder) -> str:
    return " ".join(f"{note}." for note in folder.notes)


def _preset(root: Path, option: str) -> str | None:
    """Return the preset that knows all of a data set."""
    if option == "calvin":
        return "calvin"
    if option == "libero" and is_libero(root):
        return "libero"
    return preset_of(open_folder(root).name) if option == "rlds" else None


def _below(root: Path, depth: int) -> list[tuple[Path, Format]]:
    """Return the data sets up to `depth` folders below one, with their formats, none within another that is read."""
    found: list[tuple[Path, Format]] = []
    for path in sorted(root.iterdir()) if root.is_dir() and depth else []:
        if path.is_dir():
            held = recognise(path)
            found += [(path, held)] if held else []
            found += _below(path, depth - 1) if held is None or held.option is None else []
    return found


def _locate(root: Path) -> tuple[Path, Format]:
    """Return the folder of a data set, `root` itself or the only one of it or just below, and its format."""
    held = recognise(root)
    if held is not None and held.option:
        if held.option == "calvin" and not (root / "training").is_dir():
            root = root.parent  # one split of it was given
        return root, held
    listed_below = _below(root, depth=3)
    below = [(path, each) for path, each in listed_below if each.option] or listed_below
    if held is not None and not (below and below[0][1].option):
        return root, held
    if len(below) == 1:
        return below[0]
    if below:
        held_below = "; ".join(f"{path} ({each.name})" for path, each in below[:MAX_LISTED])
        raise UserError(f"data.root={root} holds {len(below)} data sets, set it to one of them: {held_below}.")
    for above in root.parents[:2]:
        if (held := recognise(above)) is not None and held.option:
            raise UserError(f"data.root={root} lies within {held.name}: set data.root={above}.")
    listed = sorted(path.name for path in root.iterdir()) if root.is_dir() else [f"{root.stat().st_size} bytes"]
    there = ", ".join(listed[:MAX_LISTED]) + (f" and {len(listed) - MAX_LISTED} more" if listed[MAX_LISTED:] else "")
    raise UserError(
        f"data.root={root} is of no format that is known. Looked for: {'; '.join(signs())}. There lies: "
        f"{there or 'nothing'}."
    )
