"""What every command shares: from the command line to one typed config, and from an exception to a message that helps.

Nothing heavy is imported before a config has been checked, so that `--help`, `--cfg job` and every misspelling answer
within a second; Hydra itself is imported when it is needed.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

from robovlms import __version__
from robovlms.cli.arguments import HELP, MULTIRUN, VERSION, rewrite
from robovlms.cli.found_data import find_out, wants_finding
from robovlms.cli.help import help_page
from robovlms.cli.jobs import Job, Outcome, summary, swept_keys
from robovlms.cli.option_files import take_files
from robovlms.cli.output import report, set_up_output
from robovlms.config.presets import config_folder, config_folders
from robovlms.config.schemas import schemas
from robovlms.terminal import printable

T = TypeVar("T")
WAITING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}


def entry(config_name: str, schema: type[T], main: Callable[[T], None]) -> None:
    """Run `main` with the config that the command line composes, then leave the process.

    Under `--multirun` every job has its own `output_dir` (`<output_dir>/<number>_<what was varied>`); a job that fails
    does not keep the next from running, and the failed ones are listed at the end.

    Args:
        config_name: file in `configs/`, whose head is the `--help` page.
        schema: dataclass that the config is converted to; its checks run before `main`.
        main: the job. It imports what is heavy itself.

    Exit status: 0; 2 when the user can fix it (message on stderr); 1 with a traceback when the program is at fault;
    130 when interrupted. ROBOVLMS_TRACEBACK=1 shows the traceback of every error.
    """
    set_up_output()
    set_up_threads()
    try:
        status = _run(sys.argv[1:], Job(config_name, schema, main))
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        status = 130
    except BrokenPipeError:  # `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except Exception as error:
        status, _ = report(error, schema)
    sys.exit(status)


def set_up_threads() -> None:
    """Let threads that wait for work spin for microseconds instead of milliseconds, unless the environment says how.

    It must be said before torch loads. With more busy processes than cores, threads that spin keep those waiting that
    have the work.
    """
    if not WAITING & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = "1000"


def _run(given: list[str], job: Job) -> int:
    """Do what a command line asks for, and return the exit status."""
    if HELP & set(given):
        sys.stdout.write(help_page(job.config_name))
        return 0
    if VERSION in given:
        sys.stdout.write(f"robovlms {__version__}\n")
        return 0
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach `entry` instead of being printed by Hydra
    store_schemas()
    if job.config_name == "inspect_data" and wants_finding(given):
        completed = find_out(given)
        if completed is None:
            return 0
        given = completed
    given, questions = take_files(given, bool(MULTIRUN & set(given)))
    job = replace(job, questions=questions)
    arguments = rewrite(given, job.config_name)
    flags = {argument for argument in arguments if argument.startswith("-")}
    if flags <= MULTIRUN:
        overrides = [argument for argument in arguments if argument not in flags]
        config = None if flags else _compose(job.config_name, overrides)
        if config is not None:
            return job(config).status
        return _sweep(job, overrides)
    return _other(arguments, job)


def _compose(config_name: str, overrides: list[str]) -> Any:
    """Compose a plain command line once, Hydra's own way does it twice; None: the config asks for a sweep."""
    from hydra import compose, initialize_config_dir
    from hydra.types import RunMode
    from omegaconf import open_dict

    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose(config_name, overrides, return_hydra_config=True)
    if config.hydra.mode is RunMode.MULTIRUN:
        return None
    with open_dict(config):
        del config["hydra"]
    return config


def _sweep(job: Job, overrides: list[str]) -> int:
    """Run the jobs of a sweep by Hydra's launcher; say which failed, and return the worst status."""
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra

    version.setbase("1.3")
    job = replace(job, swept=swept_keys(overrides))
    overrides = [*overrides, "hydra.mode=MULTIRUN"]
    search_path = create_config_search_path(str(config_folder()))
    hydra = Hydra.create_main_hydra2(task_name=job.config_name, config_search_path=search_path)
    try:
        returned = hydra.multirun(config_name=job.config_name, task_function=job, overrides=overrides)  # type: ignore[arg-type]
    finally:
        GlobalHydra.instance().clear()
    outcomes: list[Outcome] = [each.return_value for batch in returned or [] for each in batch]
    sys.stderr.write(printable(summary(outcomes)))
    return max((outcome.status for outcome in outcomes), default=0)


def _other(arguments: list[str], job: Job) -> int:
    """Leave printing a config and other questions to Hydra."""
    import hydra

    outcomes: list[Outcome] = []
    if re.search(r"(--cfg|-c)[ =]job\b", " ".join(arguments)):
        arguments = ["--resolve", *arguments]  # print values, not where they come from
    sys.argv[1:] = arguments
    run = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=job.config_name)
    run(lambda config: outcomes.append(job(config)))()
    return max((outcome.status for outcome in outcomes), default=0)


def store_schemas() -> None:
    """Make the dataclasses of all options known to Hydra as `/schema/<place>`, and the presets of other packages."""
    from hydra.core.config_store import ConfigStore

    for place, schema in schemas().items():
        group, _, name = f"schema/{place}".rpartition("/")
        ConfigStore.instance().store(group=group, name=name, node=schema)

    if len(config_folders()) > 1:
        _add_other_packages()


@cache
def _add_other_packages() -> None:
    """Let Hydra look into the folders that installed packages bring, too."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class OtherPackages(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder in config_folders()[1:]:
                search_path.append(provider="robovlms.configs", path=f"file://{folder}")

    Plugins.instance().register(OtherPackages)
