"""A data set's report as text for a console."""

from __future__ import annotations

from collections.abc import Sequence

from robovlms.inspection.replay.following import EntryReplay
from robovlms.inspection.replay.proof import ReplayReport
from robovlms.inspection.replay.simulation import SimulationReport, TaskReplay
from robovlms.inspection.report import Report
from robovlms.terminal import printable

SHOWN = ("mean", "std", "min", "q01", "q50", "q99", "max")  # columns of the tables of statistics
FOLLOWING = ("steps later", "gain", "correlation", "drift")  # heads of the table of states and actions
SOLVED = (
    "episodes",
    "solved as recorded",
    "solved again",
    "without noise",
    "not normalised",
)  # heads of the table of replays
IDLE = ("at ends", "inside", "longest at ends", "inside")  # heads of the table of idle steps
MAX_INSTRUCTIONS, MAX_OUTLIERS, MAX_TASKS = 20, 10, 10
MAX_NUMBERS = 200  # characters of the episodes' numbers; the JSON has all


def format_report(report: Report) -> str:
    """Return the report as text for a console."""
    lines = [
        f"{report.name}: {report.summary}",
        f"{report.num_episodes} episodes, {report.num_frames} frames, {report.seconds / 60:.1f} min at "
        f"{report.hz:g} Hz; {report.lengths.low:g} to {report.lengths.high:g}, median {report.median_length:g} frames",
        f"Numbers of the episodes, as data.episodes takes them: {shorten(report.numbers, MAX_NUMBERS)}",
        f"{report.num_windows} windows of {report.window_size} frames and {report.chunk_size} actions a frame; "
        f"{report.masked_share:.1%} of their actions are masked",
        f"Statistics of {report.scanned}.",
    ]
    for table in report.tables:
        columns = [getattr(table.statistics, key) for key in SHOWN]
        cells = [[f"{column[i]:.4g}" for column in columns] for i in range(len(table.names))]
        lines += ["", table.title, *_align([["", *SHOWN], *([n, *c] for n, c in zip(table.names, cells, strict=True))])]
    for grip in report.grippers:
        lines += [
            "",
            f"{grip.name.capitalize()}: recorded {grip.histogram.low:g} to {grip.histogram.high:g}, declared "
            f"{grip.closed:g} closed and {grip.open:g} open; open in {grip.open_share:.0%} of the rows and at the "
            f"start of {grip.starts_open_share:.0%} of the episodes; {grip.changes:.1f} changes an episode",
        ]
    lines += ["", *replay_lines(report.replay), *simulation_lines(report.simulation), "", *idle_lines(report)]
    for view in report.views:
        where = f", {view.longest_source}" if view.longest_source else ""
        lines.append(
            f"View {view.name}: {', '.join(view.sizes)}; {view.repeated_share:.1%} of the steps repeat the picture, "
            f"the longest run is {view.longest_run}{where}"
        )
    lines += ["", f"Instructions: {len(report.instructions)}"]
    lines += [f"  {count:6d}  {text!r}" for text, count in list(report.instructions.items())[:MAX_INSTRUCTIONS]]
    lines += ["", f"Outliers: {report.num_outliers}"]
    lines += [
        f"  {o.entry} = {o.value:.4g}, not in {o.low:.4g} ... {o.high:.4g}: {o.source}"
        for o in report.outliers[:MAX_OUTLIERS]
    ]
    lines += ["", f"Findings: {report.num_errors} errors, {len(report.findings) - report.num_errors} warnings"]
    for finding in report.findings:
        lines += [f"  {finding.severity.upper()}: {finding.what}"]
        lines += [f"    where: {finding.where}", f"    do: {finding.to_do}"]
    return "\n".join(printable(line, keep="") for line in lines)


def replay_lines(replay: ReplayReport) -> list[str]:
    """Say how actions come back and how states follow them, a line a statement."""
    lines = []
    if replay.round_trip:
        worst = max(replay.round_trip, key=lambda entry: entry.error)
        lines.append(
            f"Replay: recorded actions come back from the policy's words within {worst.error:.1g} of their range "
            f"({worst.name}, {worst.rows} rows)"
        )
        for undone in dict.fromkeys(entry.undone for entry in replay.round_trip):
            entries = [entry for entry in replay.round_trip if entry.undone == undone]
            if beyond := [f"{entry.name} {entry.beyond}" for entry in entries if entry.beyond]:
                lines.append(f"  rows beyond the bounds, {undone}: {', '.join(beyond)}")
    if replay.following:
        lines.append("States follow the actions, moves summed over half a second:")
        lines += _align([["", *FOLLOWING], *([entry.name, *following_cells(entry)] for entry in replay.following)])
    if replay.not_compared:
        lines.append(
            f"  no recorded state of {', '.join(replay.not_compared)}: name it in data.proprio_names (data.proprio_key)"
        )
    return lines


def simulation_lines(simulation: SimulationReport | None) -> list[str]:
    """Say what recorded actions solve when they are played again, a task a line; nothing where none was played."""
    if simulation is None:
        return []
    lines = [f"Recorded actions, through the policy's words and back, played again in sim={simulation.simulator}:"]
    lines += _align([["", *SOLVED], *([task.task, *solved_cells(task)] for task in simulation.tasks)])
    lines += [f"  left out, {count} episodes: {why}" for why, count in simulation.left_out.items()]
    if simulation.states:
        lines.append("Recorded states beside those of the replay:")
        lines += _align([["", *FOLLOWING], *([entry.name, *following_cells(entry)] for entry in simulation.states)])
    return lines


def solved_cells(task: TaskReplay) -> list[str]:
    """Return the cells of a task below the heads `SOLVED`."""
    numbers = (task.episodes, task.recorded, task.solved, task.without_noise, task.uncut)
    return ["" if number is None else str(number) for number in numbers]


def idle_lines(report: Report) -> list[str]:
    """Say where the arm waits, the most idle tasks first."""
    head = f"The arm waits (data.idle.threshold={report.idleness.threshold:g}), of each task's steps:"
    rows = [["", *IDLE], *([task, *cells] for task, *cells in idle_cells(report)[:MAX_TASKS])]
    return [head, *_align(rows)]


def idle_cells(report: Report) -> list[list[str]]:
    """Return the cells of every task below the heads `IDLE`."""
    return [
        [
            task.task,
            f"{task.at_ends.share:.0%}",
            f"{task.inside.share:.0%}",
            f"{task.at_ends.longest / report.hz:.1f} s",
            f"{task.inside.longest / report.hz:.1f} s",
        ]
        for task in report.idleness.tasks
    ]


def following_cells(entry: EntryReplay) -> list[str]:
    """Return the cells of an entry below the heads `FOLLOWING`."""
    if entry.gain is None or entry.correlation is None:
        return ["", "still", "", f"{entry.drift:.3g}"]
    return [str(entry.lag), f"{entry.gain:.2f}", f"{entry.correlation:.2f}", f"{entry.drift:.3g}"]


def shorten(text: str, most: int) -> str:
    """Return a text, cut where it is longer."""
    return text if len(text) <= most else f"{text[:most]}..."


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + row[0].ljust(widths[0]) + "".join(cell.rjust(w + 2) for cell, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
