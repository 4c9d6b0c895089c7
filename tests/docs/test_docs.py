"""What README and docs say exists: commands compose, options have keys, files and links have targets."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
import yaml
from composing import completed, composed
from rooms import floors, graph

from robovlms.cli.arguments import rewrite
from robovlms.cli.errors import option_names
from robovlms.config.presets import config_folder, options
from robovlms.config.schemas import schemas

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = (
    "train",
    "evaluate",
    "open_loop",
    "serve",
    "export",
    "collect_demos",
    "inspect_data",
    "convert_data",
    "edit_data",
    "compare",
    "merge_lora",
    "push_to_hub",
    "convert_backbone",
    "convert_checkpoint",
)
LAUNCHERS = re.compile(r"^(srun )?(torchrun|accelerate launch|python|RUN) ")
RUNS = re.compile(r"<!-- runs with: (.*?) -->\n```bash\n(.*?)```", re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """Return the page's blocks of a language."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for kind, text in fences if kind == language]


def without_blocks(text: str) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """Return the words of every command line that starts one of ours, comments and line ends aside."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found = [shlex.split(line, comments=True) for line in lines if LAUNCHERS.match(line)]
    return [words for words in found if any(script_of(word) for word in words)]


def script_of(word: str) -> str | None:
    """Return which command a word of a command line starts: `train` for train.py."""
    name = Path(word).stem
    return name if word.endswith(".py") and name in COMMANDS else "train" if word == "RUN" else None


def written_commands() -> list[tuple[str, list[str]]]:
    """Return page and words of all commands, those in blocks and those in single backticks."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", without_blocks(text))]
        for source in [*blocks(page, "bash"), *inline]:
            found += [(page.name, words) for words in commands(source)]
    return found


COMMAND_LINES = written_commands()


@pytest.mark.parametrize(("page", "words"), COMMAND_LINES, ids=[f"{p}-{i}" for i, (p, _) in enumerate(COMMAND_LINES)])
def test_every_command_composes(page: str, words: list[str]) -> None:
    start = next(i for i, word in enumerate(words) if script_of(word))
    name, overrides = script_of(words[start]), []
    for word in words[start + 1 :]:
        if word not in ("...", "--help", "--cfg", "job"):
            word = word.replace("experiment=...", "experiment=calvin_perform").replace("$DATA", "/data")
            word = re.sub(r"^data=[\w./]+\.yaml$", "data=lerobot", word)  # a file of one's own
            overrides.append(word.replace("=...", "=somewhere"))
    if name == "evaluate" and not any(word.startswith("sim=") for word in overrides):
        overrides.insert(0, "sim=metaworld")  # that of the run, which is not there
    if name != "evaluate":  # which reads the run that is evaluated
        overrides = rewrite(overrides, str(name))
    config = composed(*overrides, config_name=str(name))
    if name == "train" and not {"~data.sources.franka.views.wrist", "sweep=appendix_c"} & set(overrides):
        completed(config)


def test_the_pages_have_as_many_commands_as_one_finds_by_eye() -> None:
    assert len(COMMAND_LINES) > 35
    assert {script_of(word) for _, words in COMMAND_LINES for word in words if script_of(word)} == set(COMMANDS)


@cache
def known_options() -> tuple[set[str], set[str]]:
    """Return the dotted keys of all commands, and the config groups."""
    groups = {str(path.relative_to(config_folder())) for path in config_folder().iterdir() if path.is_dir()}
    return {key for command in COMMANDS for key in option_names(schemas()[command])}, groups


def is_option(key: str) -> bool:
    """Tell whether a dotted key is one; `data.sources.<name>.x` is `data.x`, and below a dictionary any name goes."""
    keys, groups = known_options()
    key = re.sub(r"^data\.sources\.[^.]+\.", "data.", key)
    while key not in keys and key not in groups and "." in key:
        key = key.rpartition(".")[0]
        if any(other.startswith(f"{key}.") for other in keys):
            return False
    return key in keys or key in groups


OTHER_WORDS = {
    "file_format=tfrecord": "an argument of TensorFlow Datasets",
    "strict=False": "an argument of torch's load_state_dict",
}
# Folders of RoboVLMs' repository.
UPSTREAM = ("configs/data/calvin", "configs/data/oxe_dataset_stats", "robovlms/model/")


def named_options(page: Path) -> set[str]:
    """Return the options, `key=value` or `group.key`, that a page names in backticks."""
    text = without_blocks(page.read_text(encoding="utf-8"))
    found = set()
    for code in re.findall(r"`([^`\n]+)`", text):
        for word in code.split():
            word = word.strip("'\"(),;")
            if re.match(r"^[+~]?[a-z_]+(\.[a-z_0-9<>]+)*(=|$)", word) and (
                "=" in word or re.match(r"^[+~]?\w+\.\w", word)
            ):
                found.add(word.lstrip("+~"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_is_named_exists(page: Path) -> None:
    _, groups = known_options()
    for word in named_options(page) - OTHER_WORDS.keys():
        key, equals, value = word.partition("=")
        if key.partition(".")[0] not in groups | {"batch_size", "device_batch_size"} and "." in key:
            continue  # a file, a column of a data set, an attribute of transformers
        if "." not in key and not equals:
            continue
        assert is_option(key), f"{page.name}: `{word}` is no option"
        if equals and key in groups and re.fullmatch(r"[a-z_0-9]+", value):
            assert value in options(key), f"{page.name}: `{word}`: {key} has {options(key)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"(?<![\w/.-])((?:robovlms|configs|scripts|tests|benchmarks|docs)/[\w./*<>-]*)", text)):
        pattern = re.sub(r"<\w+>", "*", name.rstrip(".")).rstrip("/")
        assert list(ROOT.glob(pattern)) or name.startswith(UPSTREAM), f"{page.name} names {name}"


def test_the_trees_of_readme_and_architecture_exist() -> None:
    tree = next(block for block in blocks(PAGES[0], "") if block.startswith("train.py"))
    named = [(line.startswith("  "), re.split(r"\s{2,}", line.strip())[0].split()) for line in tree.splitlines()]
    paths = [f"{'robovlms/' if is_inside else ''}{path}" for is_inside, names in named for path in names]
    for block in blocks(ROOT / "docs" / "architecture.md", ""):
        paths += [f"robovlms/{path}" for path in re.findall(r"^(?:  )?(\w+/[\w/<>.]+)", block, re.MULTILINE)]
    assert len(paths) > 25
    for path in paths:
        assert list(ROOT.glob(re.sub(r"<\w+>", "*", path).rstrip("/"))), path


def test_the_rooms_of_the_architecture_page_are_on_their_floors() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)
    written = {room: int(floor) for floor, cell in rows for room in re.findall(r"(?:^|· )`(\w+)`", cell)}
    assert written == floors(graph())


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page.read_text(encoding="utf-8"))):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_can_be_reached_from_the_readme(page: Path) -> None:
    reached, new = set(), {PAGES[0]}
    while new:
        reached |= new
        links = {
            (p.parent / t).resolve()
            for p in new
            for t in re.findall(r"\]\(([\w./]+\.md)", p.read_text(encoding="utf-8"))
        }
        new = links - reached
    assert page in reached


def test_every_extra_that_is_named_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for page in PAGES:
        for names in re.findall(r"\.\[([a-z,]+)\][\"\']", page.read_text(encoding="utf-8")):
            assert set(names.split(",")) <= set(extras), f"{page.name} names [{names}]"
        assert "robovlms[" not in page.read_text(encoding="utf-8"), (
            f"{page.name}: no index has robovlms: write .[extra]"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_on_the_pages_can_be_read(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)
    for block in blocks(page, "yaml"):
        yaml.safe_load(block)


def run_blocks() -> list[tuple[str, list[str], list[str]]]:
    """Return page, words and further options of the commands that a page marks as tested by running."""
    found = []
    for page in PAGES:
        for more, text in RUNS.findall(page.read_text(encoding="utf-8")):
            found += [(page.name, words, shlex.split(more)) for words in commands(text)]
    return found


RUN_LINES = run_blocks()


@pytest.mark.slow
@pytest.mark.parametrize(("page", "words", "more"), RUN_LINES, ids=[f"{p}-{i}" for i, (p, *_) in enumerate(RUN_LINES)])
def test_marked_commands_run(page, words, more, calvin_folder, tmp_path) -> None:
    words = [word for word in words if word != "..." and not any(fnmatch(word, f"{m.split('=')[0]}=*") for m in more)]
    more = [option.replace("CALVIN", str(calvin_folder)).replace("OUT", str(tmp_path)) for option in more]
    done = subprocess.run([sys.executable, *words[1:], *more], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{page}: {' '.join(words)}\n{done.stderr}"
    assert done.stdout or list(tmp_path.iterdir()), "it printed or wrote nothing"
