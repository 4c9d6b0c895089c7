"""A proposal as a file with a comment beside each key, and as text for a console."""

from __future__ import annotations

from collections.abc import Iterator

from robovlms.inspection.discovery.folder import Answer, Kind
from robovlms.inspection.discovery.presets import quoted
from robovlms.inspection.discovery.proposal import Proposal
from robovlms.terminal import printable

MAX_SHOWN = 8  # instructions and entries that are printed


def write_config(proposal: Proposal) -> str:
    """Return the text of a data config: its schema in defaults, and every key with what it rests on."""
    folder, lines = proposal.folder, list[str]()
    robot = f" of {folder.robot}" if folder.robot else ""
    head = _plain(f"{folder.what[0].upper()}{folder.what[1:]}{robot}: {folder.counts}")
    lines += [
        f"# {head}. Written by scripts/inspect_data.py.",
        "# ??? is asked: say it here or on the command line. What begins with guess may be wrong: correct it.",
        *(f"# {_plain(note)}." for note in folder.notes),
        "defaults:",
        f"  - /schema/data/{folder.option}@_here_",
        "  - _self_",
        "",
    ]
    group = ""
    for key, answer in proposal.answers.items():
        outer, _, inner = key.rpartition(".")
        if outer and outer != group:
            lines.append(f"{outer}:")
        group = outer
        lines.append(f"{'  ' if outer else ''}{inner}: {literal(answer)}{_beside(answer)}")
    return "\n".join(lines) + "\n"


def literal(answer: Answer) -> str:
    """Return a value as YAML on one line."""
    value = answer.value
    if isinstance(value, list):
        return f"[{', '.join(quoted(str(each)) for each in value)}]"
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return f"{value:g}"
    return "???" if answer.kind is Kind.question else quoted(str(value))


def describe(proposal: Proposal) -> str:
    """Return what was found, guessed and is asked as text for a console."""
    folder = proposal.folder
    lines = [f"{folder.root}: {folder.what}: {folder.counts}"]
    if folder.robot:
        lines.append(f"robot: {folder.robot}")
    views = [(key.removeprefix("views."), a) for key, a in proposal.answers.items() if key.startswith("views.")]
    lines += [f"camera {view}: {answer.value}{f', {answer.why}' if answer.why else ''}" for view, answer in views]
    lines += _vector("action", folder.action.key, proposal.answers["contract.names"])
    if folder.state is not None and "proprio_names" in proposal.answers:
        lines += _vector("state", folder.state.key, proposal.answers["proprio_names"])
    rate = folder.rate
    lines.append(f"rate: {rate.value:g} Hz" if rate.kind is not Kind.question else "rate: not recorded")
    texts = [f"  {text!r}" for text in folder.instructions[:MAX_SHOWN]]
    more = len(folder.instructions) - MAX_SHOWN
    lines += [
        f"instructions: {len(folder.instructions) or 'none'}",
        *texts,
        *([f"  and {more} more"] if more > 0 else []),
    ]
    lines += [f"note: {note}" for note in folder.notes]
    lines += list(_listed("guessed", proposal.of_kind(Kind.guess)))
    lines += list(_listed("asked", proposal.of_kind(Kind.question)))
    return "\n".join(printable(line, keep="") for line in lines)


def _vector(what: str, key: str, names: Answer) -> list[str]:
    entries = names.value
    shown = ", ".join(entries if len(entries) <= 3 * MAX_SHOWN else [*entries[: 3 * MAX_SHOWN], "..."])
    return [f"{what}: {key}, {len(entries)} entries: {shown}"]


def _listed(title: str, answers: dict[str, Answer]) -> Iterator[str]:
    if answers:
        yield f"{title}:"
    for key, answer in answers.items():
        value = "" if answer.kind is Kind.question else f"={literal(answer)}"
        yield f"  data.{key}{value}: {answer.why}"


def _beside(answer: Answer) -> str:
    return f"  # {_plain(answer.comment)}" if answer.comment else ""


def _plain(text: str) -> str:
    """Return foreign text as one line."""
    return printable(" ".join(text.split()), keep="")
