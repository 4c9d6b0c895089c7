"""What the commands beside training are asked for."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, fields
from urllib.parse import urlsplit

from robovlms.config.checks import (
    check_data,
    check_views,
)
from robovlms.config.choices import (
    MISSING,
    CheckpointChoice,
    Execution,
    ExportFormat,
    ImageFormat,
    Quantization,
    Split,
)
from robovlms.config.closed_loop import CollectConfig, EngineConfig, EvaluationConfig, ProtocolConfig, SimConfig
from robovlms.config.data import (
    DataConfig,
)
from robovlms.config.fields import MAX_PORT, MAX_PROCESSES, Checked, ask, number
from robovlms.config.policy import ViewConfig, WindowConfig
from robovlms.config.schemas import schema
from robovlms.errors import UserError


@dataclass(kw_only=True)
class PackConfig:
    """How `scripts/convert_data.py` packs."""

    image_format: ImageFormat = ImageFormat.raw
    workers: int = number(1, at_least=1, at_most=MAX_PROCESSES)  # processes
    splits: list[str] = field(default_factory=lambda: ["train", "validation"])
    verify: bool = False  # compare what is packed with its SHA-256, and write nothing

    def check(self, option: str) -> None:
        """Refuse splits that no data set has."""
        if not self.splits or set(self.splits) - {"train", "validation"}:
            raise UserError(f"{option}.splits={self.splits} must name train, validation or both.")


@schema("evaluate")
@dataclass(kw_only=True)
class EvaluateConfig(Checked):
    """Closed-loop evaluation of a checkpoint, several of a run, or what a server serves (`scripts/evaluate.py`)."""

    # or a run: `runs/quickstart_nano`; with `verify` only where it is no longer where it was
    checkpoint: str = ""
    server: str | None = None  # instead of a checkpoint: where it is served, e.g. ws://gpu:8000, protocol=openpi
    server_token: str | None = None  # that the server demands
    server_patience_s: float = number(60.0, above=0)  # for an answer, and with a server that is busy
    verify: str | None = None  # a results.json, or its folder: find out whether it holds, and evaluate nothing
    share: float = number(0.02, above=0, at_most=1)  # of its episodes that are played again, at least one
    checkpoints: str | None = None  # of a run: last | all | every:<steps>; unset: `evaluation.checkpoints`
    watch: bool = False  # follow a run that still trains: evaluate its checkpoints as they appear, until it has ended
    # unset: `evaluation/<sim>_<checkpoint>` in the run folder; of several checkpoints, each has a folder in it
    output_dir: str | None = None
    overwrite: bool = False
    sim: SimConfig | None = None  # unset: that of the training run
    evaluation: EvaluationConfig = MISSING

    def check(self, _: str) -> None:
        """Ask for a policy where one is evaluated, and refuse a choice of checkpoints that cannot be read or made."""
        if self.server is not None:
            self._check_server(self.server)
        elif not self.checkpoint and self.verify is None:
            raise UserError(
                "checkpoint: not set. Say on the command line, e.g. checkpoint=runs/quickstart_nano, or "
                "checkpoint=runs/quickstart_nano/checkpoints/step_1000, or where a policy is served: "
                "server=ws://127.0.0.1:8000"
            )
        if self.checkpoints is not None:
            choice = CheckpointChoice.parse(self.checkpoints)
            if self.watch and choice.every is None:
                raise UserError(
                    "watch=true evaluates checkpoints as they appear, and checkpoints=last is known at the end alone: "
                    "give checkpoints=all or e.g. every:10000, or leave watch out."
                )

    def _check_server(self, address: str) -> None:
        """Refuse what is not known of a policy behind a server, or is the server's to decide."""
        if not is_address(address):
            raise UserError(
                f"server={address} must be ws://<host>:<port>, or wss:// where it has a certificate; the token is "
                "server_token=... or the environment variable ROBOVLMS_TOKEN."
            )
        if self.checkpoint:
            raise UserError(f"checkpoint={self.checkpoint} and server={address} are two policies: leave one out.")
        if self.verify is not None:
            return
        if self.sim is None:
            raise UserError(
                "sim: not set, and a server does not tell what its run was trained to be evaluated in: choose a "
                "simulator, e.g. sim=metaworld."
            )
        of_runs = {
            "checkpoints": self.checkpoints,
            "watch": self.watch or None,
            "evaluation.checkpoints": self.evaluation.checkpoints,
        }
        if wrong := [f"{name}={str(value).lower()}" for name, value in of_runs.items() if value is not None]:
            raise UserError(f"{wrong[0]} chooses checkpoints of a run, and server={address} has one: leave it out.")
        default = EngineConfig()
        for item in fields(EngineConfig):
            if (value := getattr(self.evaluation.engine, item.name)) != getattr(default, item.name):
                raise UserError(
                    f"evaluation.engine.{item.name}={value}: the policy computes where it is served. Serve with "
                    f"engine.{item.name}={value}, and leave it out here."
                )


def is_address(text: str) -> bool:
    """Tell whether a text is the address of a websocket and nothing more."""
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return False
    is_bare = not (parts.query or parts.fragment or parts.username or parts.password)
    return parts.scheme in ("ws", "wss") and bool(parts.hostname) and is_bare


@schema("serve")
@dataclass(kw_only=True)
class ServeConfig(Checked):
    """A checkpoint that acts for whoever asks over the wire (`scripts/serve.py`)."""

    checkpoint: str = ask("runs/quickstart_nano")
    protocol: ProtocolConfig = MISSING
    host: str = "127.0.0.1"  # an address of this machine; 0.0.0.0: all of them
    port: int | None = number(None, at_least=0, at_most=MAX_PORT)  # 0: any that is free; unset: the protocol's own
    # of the pages about the server where the protocol is no websocket, whose own port has them; unset: no pages
    status_port: int | None = number(None, at_least=0, at_most=MAX_PORT)
    token: str | None = None  # what clients must present; needed unless only this machine can connect
    tls_certificate: str | None = None  # PEM file, with `tls_key`
    tls_key: str | None = None
    source: str | None = None  # of a mixture: whose actions are given; a policy of one data set needs none
    execution: Execution | None = None  # of chunks, here; unset: clients get whole chunks and execute them
    execute_steps: int = number(1, at_least=1)  # as in `evaluation`, for execution=chunk
    engine: EngineConfig = field(default_factory=EngineConfig)
    max_waiting: int = number(256, at_least=1, at_most=100_000)  # requests; more are told that the server is busy
    max_sessions: int = number(256, at_least=1, at_most=100_000)
    max_message_mb: float = number(16, above=0, at_most=1024)
    idle_timeout_s: float = number(600, above=0)  # after which a silent client is let go

    def check(self, _: str) -> None:
        """Refuse to be open to a network without a token, and half a key pair."""
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise UserError("tls_certificate and tls_key go together: set both, or none.")
        if not self.token and not is_loopback(self.host):
            raise UserError(
                f"host={self.host} lets other machines connect: set token=... too (or the environment variable "
                "ROBOVLMS_TOKEN), which clients must present; host=127.0.0.1 needs none."
            )


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@schema("export")
@dataclass(kw_only=True)
class ExportConfig(Checked):
    """A checkpoint's control step as a program that needs neither this package nor torch (`scripts/export.py`)."""

    checkpoint: str = ask("runs/quickstart_nano")
    output: str = ask("policy.onnx")  # .onnx, or with format=torch .pt2
    format: ExportFormat = ExportFormat.onnx
    source: str | None = None  # of a mixture: whose actions are given; a policy of one data set needs none
    # height and width (px) of the pictures that it is given, and resizes; unset: they have the model's own size
    picture: list[int] | None = number(None, at_least=1, at_most=8192)
    # texts whose token ids are written into the program, so that it is played without a tokenizer
    instructions: list[str] = field(default_factory=list)
    quantize: Quantization | None = None  # as `engine.quantize`: int8 matrices in the program
    overwrite: bool = False

    def check(self, _: str) -> None:
        """Refuse a size that is none, and a name that says another format."""
        if self.picture is not None and len(self.picture) != 2:
            raise UserError(f"picture={self.picture} must be height and width in px, e.g. picture=[480,640].")
        ending = ".onnx" if self.format is ExportFormat.onnx else ".pt2"
        if not self.output.endswith(ending):
            raise UserError(f"output={self.output} must end with {ending} for format={self.format}.")


@schema("collect_demos")
@dataclass(kw_only=True)
class CollectDemosConfig(Checked):
    """Demonstrations without training (`scripts/collect_demos.py`)."""

    root: str = ask("datasets/demos")
    sim: SimConfig = MISSING
    collect: CollectConfig = MISSING


@schema("convert_backbone")
@dataclass(kw_only=True)
class ConvertBackboneConfig(Checked):
    """An original checkpoint to be made a folder of ours (`scripts/convert_backbone.py`)."""

    family: str = ask("moondream")  # a backbone's name
    source: str = ask("/path/to/moondream2")  # its authors' files, or a policy of others (pi0, SmolVLA)
    output_dir: str = ask("checkpoints/moondream")
    vlm: str | None = None  # of a policy: folder or hub id of the VLM's config and tokenizer; unset: the published one


@dataclass(kw_only=True)
class ReleasedBackboneConfig:
    """The VLM of a released checkpoint, which holds neither its configuration nor its tokenizer."""

    checkpoint: str | None = None  # folder or hub id of them; unset: the published model's


@schema("convert_checkpoint")
@dataclass(kw_only=True)
class ConvertCheckpointConfig(Checked):
    """A checkpoint of RoboVLMs to be made one of ours (`scripts/convert_checkpoint.py`)."""

    source: str = ask("/path/to/kosmos_ph_calvin_abcd.pt")  # or the folder that it lies in
    config: str = ask("/path/to/kosmos_ph_calvin_abcd.json")
    output_dir: str = ask("checkpoints/kosmos_ph_calvin_abcd")
    backbone: ReleasedBackboneConfig = field(default_factory=ReleasedBackboneConfig)
    data: DataConfig = MISSING  # what its actions mean


@schema("convert_data")
@dataclass(kw_only=True)
class ConvertDataConfig(Checked):
    """A data set to be packed (`scripts/convert_data.py`)."""

    data: DataConfig = MISSING
    view: ViewConfig = MISSING
    pack: PackConfig = field(default_factory=PackConfig)

    def check(self, _: str) -> None:
        """Refuse views that the data do not have, or data that contradict themselves."""
        check_views(self.view, self.data)
        check_data(self.data)


@schema("merge_lora")
@dataclass(kw_only=True)
class MergeLoRAConfig(Checked):
    """A checkpoint whose adapters are to be merged (`scripts/merge_lora.py`)."""

    checkpoint: str = ask("runs/calvin_perform")
    output_dir: str = ask("runs/calvin_perform_merged")


@schema("push_to_hub")
@dataclass(kw_only=True)
class PushToHubConfig(Checked):
    """A checkpoint to be published on the Hugging Face Hub (`scripts/push_to_hub.py`)."""

    checkpoint: str = ask("runs/quickstart_nano")
    repo: str = ask("my-lab/lift_cup")  # <owner>/<name>; it is created if there is none
    private: bool = False  # of a repository that is created
    revision: str | None = None  # branch, which is created if there is none; unset: the main one
    license: str | None = None  # of the weights, by its identifier on the Hub; unset: that of the backbone, if known
    datasets: list[str] = field(default_factory=list)  # that it was trained on, by their ids on the Hub
    output_dir: str | None = None  # the repository is written there, and nothing is uploaded


@schema("inspect_data")
@dataclass(kw_only=True)
class InspectConfig(Checked):
    """A data set to look at (`scripts/inspect_data.py`)."""

    data: DataConfig = MISSING
    # a file to write what was found out of a folder, without `data=`: a data config, for data=<file>
    write: str | None = None
    view: ViewConfig = MISSING
    window: WindowConfig = MISSING
    output_dir: str = MISSING
    split: Split = Split.train
    episode: int = number(0, at_least=0)  # number of the episode that gets a page
    # frames that are read; of larger data sets whole episodes, evenly spread
    max_frames_scanned: int = number(5000, at_least=1)
    # interquartile ranges beyond the 1st and 99th percentile that make an outlier
    outlier_iqr: float = number(3.0, above=0)
    sheet_episodes: int = number(8, at_least=1, at_most=1000)  # rows of the contact sheet
    sheet_frames: int = number(8, at_least=1, at_most=1000)  # its columns
    max_page_frames: int = number(500, at_least=1)  # pictures per view of the page; of longer episodes every n-th
    # play `sim.episodes` recorded episodes of every task of it again; unset: nothing is played
    sim: SimConfig | None = None

    def check(self, _: str) -> None:
        """Refuse views that the data do not have, data that contradict themselves, and to write what is known."""
        check_views(self.view, self.data)
        check_data(self.data)


@schema("compare")
@dataclass(kw_only=True)
class CompareConfig(Checked):
    """Runs and evaluations side by side (`scripts/compare.py`)."""

    folders: list[str] = ask("[runs/structure_grid]")  # runs, evaluations, or what holds some; or files results.json
    latency_steps: int = number(20, at_least=0)  # control steps that are timed; 0: policies are not loaded
    sequential: bool = False  # evaluations may still run, and the comparison may be made again whenever there is more
    output_dir: str | None = None  # of the tables and the page; unset: the first of `folders`
