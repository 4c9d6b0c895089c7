"""A checkpoint becomes a repository of the Hugging Face Hub, with a model card written from its run."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from robovlms.actions.statistics import STATS
from robovlms.backbones.checkpoints.licences import CONVERTED, Licence, licence_of
from robovlms.config.choices import ModelSize
from robovlms.config.commands import PushToHubConfig
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.evaluation.analysis.reading import read_results
from robovlms.evaluation.folder import RESULTS
from robovlms.evaluation.results import Results
from robovlms.files import write_text
from robovlms.hub.privacy import check_private, is_place, without_json_places, without_places
from robovlms.hub.repository import Repository, upload
from robovlms.policy.checkpoint import (
    BACKBONE,
    CONFIG,
    WEIGHTS,
    load_config,
    load_policy,
    resolve_checkpoint,
    run_folder_of,
    save_config,
)
from robovlms.policy.manifest import MANIFEST, check_checkpoint, checkpoint_digest, new_checkpoint
from robovlms.policy.spec import SPEC, PolicySpec
from robovlms.reports.model_card import ModelCard

log = logging.getLogger(__name__)

CARD = "README.md"
PUBLISHED = (CONFIG, WEIGHTS, STATS, SPEC, BACKBONE)  # files and folders; training state and manifest are not


@dataclass(frozen=True)
class Described:
    """A checkpoint, and what its card says of where it comes from."""

    folder: Path
    config: TrainConfig  # as it was saved
    public: TrainConfig  # without places of this machine
    removed: Mapping[str, str]  # what they were, by option
    spec: PolicySpec


def push_to_hub(config: PushToHubConfig, command_of: Callable[[TrainConfig], str | None]) -> str:
    """Upload a checkpoint in one commit and return the commit's address, or write the repository into `output_dir` and
    return that.

    Args:
        config: what is uploaded, and where to.
        command_of: returns a command line that composes a training config, or None.

    Raises:
        FileNotFoundError: no checkpoint there.
        FileExistsError: `output_dir` exists.
        UserError: it would publish what is private, it is damaged, or the Hub refuses.
    """
    target = Path(config.output_dir).expanduser() if config.output_dir else None
    if target is not None and target.exists():
        raise FileExistsError(f"output_dir={target} exists: choose another, or delete it.")
    repository = Repository.of(config.repo, config.revision)
    described = describe(resolve_checkpoint(Path(config.checkpoint)))
    card = card_of(described, config, command_of(described.public))
    if target is not None:
        write_repository(target, described, str(card), shutil.copyfile)
        return str(target)
    with TemporaryDirectory() as parent:
        folder = Path(parent) / "repository"
        write_repository(folder, described, str(card), link)
        return upload(folder, repository, MANIFEST, private=config.private)


def describe(folder: Path) -> Described:
    """Return a whole checkpoint with its config and spec."""
    check_checkpoint(folder)
    config = load_config(folder / CONFIG)
    public, removed = without_places(config)
    spec = PolicySpec.load(folder / SPEC) if (folder / SPEC).is_file() else load_policy(folder).spec
    return Described(folder, config, public, removed, spec)


def card_of(described: Described, config: PushToHubConfig, training_command: str | None) -> ModelCard:
    """Return the model card of a checkpoint."""
    base = base_model_of(described.config)
    licence = Licence(config.license) if config.license else licence_of(base)
    step = described.folder.name.removeprefix("step_")
    return ModelCard(
        repo=config.repo,
        config=described.public,
        spec=described.spec,
        step=int(step) if step.isdigit() else None,
        base_model=base,
        licence=licence,
        datasets=config.datasets,
        evaluations=evaluations_of(described.folder),
        training_command=training_command,
        removed=[option for option in described.removed if option != "output_dir"],
    )


def base_model_of(config: TrainConfig) -> str | None:
    """Return the published model that a policy was made from, by its id on the Hub; None: none, or it is not known."""
    checkpoint = config.backbone.checkpoint
    if checkpoint is None or config.backbone.random_init or config.backbone.size is not ModelSize.full:
        return None
    if checkpoint in CONVERTED:
        return CONVERTED[checkpoint]
    return None if is_place(checkpoint) or checkpoint.count("/") != 1 else checkpoint


def evaluations_of(checkpoint: Path) -> list[Results]:
    """Return the results in the run's folder that are of this very checkpoint, in the order of their folders."""
    digest, found = checkpoint_digest(checkpoint), list[Results]()
    for file in sorted((run_folder_of(checkpoint) / "evaluation").glob(f"**/{RESULTS}")):
        try:
            results = read_results(file)
        except UserError as error:
            log.warning("left out of the card: %s", error)
            continue
        if results.get("certificate", {}).get("checkpoint_digest") == digest:
            found.append(results)  # type: ignore[arg-type]
        else:
            log.info("left out of the card, since it is of another checkpoint: %s", file)
    return found


def write_repository(target: Path, described: Described, card: str, place: Callable[[Path, Path], object]) -> None:
    """Write what is published: the checkpoint without what is private, with a manifest of its own, and the card.

    Args:
        target: folder to be made.
        described: the checkpoint.
        card: of it; not part of the manifest, so that it may be edited on the Hub.
        place: puts a file of the checkpoint there, (from, to).

    Raises:
        UserError: something private is left in it.
    """
    with new_checkpoint(target) as unfinished:
        removed = [f"{CONFIG}: {option}={value}" for option, value in described.removed.items()]
        for path in published(described.folder):
            copy = unfinished / path.relative_to(described.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copyfile if copy.suffix == ".json" else place)(path.resolve(), copy)
            if copy.suffix == ".json":
                removed += [f"{copy.relative_to(unfinished)}: {key}" for key in without_json_places(copy)]
        save_config(described.public, unfinished / CONFIG)
        described.spec.save(unfinished / SPEC)
        write_text(unfinished / CARD, card)
        check_private(texts_of(unfinished), places_of(described))
        (unfinished / CARD).unlink()
    write_text(target / CARD, card)
    for each in removed:
        log.info("not published, as it is a place of this machine: %s", each)


def published(folder: Path) -> list[Path]:
    """Return the files of a checkpoint that are published as they are."""
    found = [path for name in PUBLISHED for path in (folder / name, *sorted((folder / name).rglob("*")))]
    return [path for path in found if path.is_file() and path != folder / CONFIG]


def texts_of(folder: Path) -> dict[str, Path]:
    """Return the files that are read for what is private: all but weights."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".safetensors"]
    return {path.relative_to(folder).as_posix(): path for path in files}


def places_of(described: Described) -> dict[str, str]:
    """Return the places that must not occur in what is published: what was removed, the user's folder, this one."""
    known = {"the user's folder": str(Path.home()), "this folder": str(Path.cwd()), **described.removed}
    return {what: place for what, place in known.items() if Path(place).is_absolute() and len(Path(place).parts) > 1}


def link(source: Path, target: Path) -> None:
    """Stand for a file that need not be copied to be uploaded."""
    target.symlink_to(source)
