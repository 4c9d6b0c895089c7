"""Which choices go together, and why the others do not."""

from __future__ import annotations

from robovlms.config.choices import CacheMode, HeadKind, Precision, Structure
from robovlms.config.data import (
    AugmentationConfig,
    ConvertConfig,
    DataConfig,
    IdleConfig,
    MixtureDataConfig,
)
from robovlms.config.policy import HeadConfig, StructureConfig, ViewConfig, WindowConfig
from robovlms.config.training import EMAConfig, OptimizerConfig, ParallelConfig, PrecisionConfig, Rounding
from robovlms.errors import NotAllowedError, UserError
from robovlms.registry import nearest


def check_policy(
    structure: StructureConfig, head: HeadConfig, window: WindowConfig, view: ViewConfig, data: DataConfig
) -> None:
    """Refuse combinations that cannot be built.

    Raises:
        UserError: names the option to change.
    """
    check_structure(structure, head, window)
    check_views(view, data)
    check_data(data)


def check_views(view: ViewConfig, data: DataConfig) -> None:
    """Refuse cameras that the data config does not map, or that are named twice."""
    if not view.views or len(set(view.views)) != len(view.views):
        raise UserError(f"view.views={view.views} must name each camera once: choose view=side_wrist or side.")
    for name in view.views:
        if name not in data.view_names:
            raise UserError(
                f"view.views has '{name}', which the data config does not map.{nearest(name, data.view_names)} "
                f"It maps {', '.join(data.view_names)}: choose another view=, or map it with +data.views.{name}=<key>."
            )


def check_data(data: DataConfig) -> None:
    """Refuse a data set that contradicts itself.

    Raises:
        UserError: names the option to change.
    """
    is_mixture = isinstance(data, MixtureDataConfig)
    if not is_mixture and (data.proprio_key is None) == bool(data.proprio_names):
        raise UserError(
            f"data.proprio_key={data.proprio_key} and data.proprio_names={data.proprio_names} belong together: "
            "give the data set's key and a name for each of its entries, or neither."
        )
    if unknown := set(data.seen_names) - set(data.proprio_names):
        raise UserError(f"data.proprio_seen has {sorted(unknown)}, not among data.proprio_names={data.proprio_names}.")
    check_augmentation(data)
    if isinstance(data, MixtureDataConfig):
        check_mixture(data)
        for name, source in data.sources.items():
            try:
                check_data(source)
            except ValueError as error:
                raise UserError(f"data.sources.{name}: {error}") from error


REFUSED = {
    (Structure.one_step, HeadKind.memory): "a memory of frames has one frame to remember: use head=mlp",
    (
        Structure.policy_head,
        HeadKind.tokens,
    ): "the VLM reads every frame alone, so no history would reach the tokens it writes: use structure=one_step",
    (Structure.policy_head, HeadKind.slots): "the VLM reads every frame alone, so no history would reach the slots it "
    "fills: use structure=one_step or interleaved",
    (Structure.interleaved, HeadKind.memory): "the VLM has already seen the earlier frames: use head=mlp, or "
    "structure=policy_head",
    (
        Structure.interleaved,
        HeadKind.tokens,
    ): "chunks overlap, so the target tokens of an earlier frame would tell "
    "later frames their own actions: use head.parallel=true or structure=one_step",
}


def check_structure(structure: StructureConfig, head: HeadConfig, window: WindowConfig) -> None:
    """Refuse a head that does not go with the structure, or a history that the structure does not see.

    Raises:
        NotAllowedError: says why, and what to choose.
    """
    if structure.name is Structure.one_step and window.window_size != 1:
        raise NotAllowedError(
            f"structure=one_step sees one frame, but window.window_size={window.window_size}: "
            "choose window=w1_c10 or structure=policy_head."
        )
    if head.per_source and head.kind in (HeadKind.tokens, HeadKind.slots):
        raise NotAllowedError(
            f"head.per_source=true with head={head.name} is not allowed: its projectors are words of the VLM's "
            "vocabulary, which all sources share. Choose head=lstm, gpt, mlp, flow or diffusion."
        )
    if reason := REFUSED.get((structure.name, head.kind)):
        raise NotAllowedError(f"structure={structure.name} with head={head.name} is not allowed: {reason}.")


def check_augmentation(data: DataConfig) -> None:
    """Refuse augmentation out of range, or of cameras that are not there.

    Raises:
        UserError: names the option to change.
    """
    config = data.augmentation
    named = {"shift": set(data.shift), "augmentation.crop": set(config.crop), "augmentation.views": set(config.views)}
    for option, names in named.items():
        if unknown := names - set(data.view_names):
            raise UserError(f"data.{option} names {sorted(unknown)}, which are not among data.views {data.view_names}.")
    for view, area in config.crop.items():
        if area != 1 and area > config.largest_crop:
            raise UserError(
                f"data.augmentation.crop.{view}={area} must lie in (0, {config.largest_crop}], where "
                "data.augmentation.largest_crop ends, or be 1 for none."
            )


def check_mixture(data: MixtureDataConfig) -> None:
    """Refuse what would be ignored: options of a source set on the mixture, and the reverse.

    Raises:
        UserError: names the option and where to set it.
    """
    of_sources = {"convert": ConvertConfig(), "skip_bad": False, "skip_idle": False, "idle": IdleConfig(),
                "cache": CacheMode.native, "cache_mb": 0, "cache_dir": None, "episodes": None,
                "fraction": 1.0, "weight": 1.0}  # fmt: skip
    for option, default in of_sources.items():
        if getattr(data, option) != default:
            raise UserError(f"data.{option} of a mixture is ignored: set data.sources.<name>.{option}.")
    for name, source in data.sources.items():
        for option, ours in {"augmentation": AugmentationConfig(), "num_workers": 4}.items():
            if getattr(source, option) != ours:
                raise UserError(f"data.sources.{name}.{option} is ignored: set the mixture's data.{option}.")


def check_rounding(
    optimizer: OptimizerConfig, precision: PrecisionConfig, ema: EMAConfig | None, parallel: ParallelConfig
) -> None:
    """Refuse to round weights that are not bfloat16, and to average or to share those that are.

    Raises:
        UserError: names both options.
    """
    if optimizer.rounding is Rounding.masters:
        return
    option = f"optimizer.rounding={optimizer.rounding}"
    if precision.name is not Precision.bf16:
        raise UserError(
            f"{option} is how bfloat16 weights take a step, and precision={precision.name} trains float32 ones: choose "
            "precision=bf16, or optimizer.rounding=masters."
        )
    if ema is not None:
        raise UserError(
            f"{option} keeps no float32 weights, which ema={ema.name} averages: choose optimizer.rounding=masters, or "
            "ema=null."
        )
    if parallel.shares_weights:
        raise UserError(
            f"{option} is not available with parallel={parallel.name}, whose processes share float32 weights, 4 bytes "
            "each divided by their number: leave it at masters, or choose parallel=ddp or zero1."
        )
