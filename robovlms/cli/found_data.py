"""`inspect_data.py data.root=/any/folder`, without `data=`: what the folder holds is found out, then composed."""

from __future__ import annotations

from pathlib import Path

from robovlms.cli.option_files import is_given, store
from robovlms.terminal import show

PLACE = "what was found"


def wants_finding(arguments: list[str]) -> bool:
    """Tell whether a command line names a folder, and no option of `data=` that reads it."""
    keys = {argument.partition("=")[0].lstrip("+") for argument in arguments}
    return "data.root" in keys and "data" not in keys and not any(argument.startswith("-") for argument in arguments)


def find_out(arguments: list[str]) -> list[str] | None:
    """Say what the folder holds, and write its data config where `write=` asks for it.

    Return the command line with what was found as `data=`; None where there is nothing more to do, because it was
    written, or asks something.

    Raises:
        FileNotFoundError, UserError: the folder is not there, or holds nothing that is read; or `write` cannot be.
    """
    given = {key.lstrip("+"): value.strip("'\"") for key, _, value in (a.partition("=") for a in arguments)}
    root, target = given["data.root"], Path(given["write"]).expanduser() if "write" in given else None
    if not root.startswith("hf:") and not Path(root).expanduser().exists():  # before anything heavy is imported
        raise FileNotFoundError(f"data.root={root} does not exist: set it to the folder of your recordings.")
    from robovlms.commands.inspect_data import find_out as run

    found = run(root, target)
    show(found.said)
    option = store("data", PLACE, found.text)
    asked = " ".join(f"data.{key}=..." for key in option.questions if not is_given(f"data.{key}", arguments))
    if target is not None:
        answer = f"Answer what it asks, there or on the command line ({asked}): " if asked else ""
        show(f"\nWritten: {target}. {answer}python train.py data={target}")
        return None
    if asked:
        show(f"\nPages need answers: {asked}; or write=robot.yaml writes all of this into a file to answer in.")
        return None
    rest = [argument for argument in arguments if argument.partition("=")[0] != "data.root"]
    has_view = any(argument.partition("=")[0].partition(".")[0] == "view" for argument in arguments)
    return [f"data={option.name}", *([] if has_view else ["view=all"]), *rest]
