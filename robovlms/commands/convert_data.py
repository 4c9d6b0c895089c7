"""Pack the splits of a data set."""

from __future__ import annotations

import logging

from robovlms.actions.plan import DataPlan
from robovlms.config.commands import ConvertDataConfig
from robovlms.data.opening import _origin, native_reader, packed_folder
from robovlms.data.packed.writer import PackSummary, pack, verify
from robovlms.data.remote import fetch, pin

logger = logging.getLogger(__name__)


def convert_data(config: ConvertDataConfig) -> list[PackSummary]:
    """Pack the splits of a data set, or of every source of a mixture; with `pack.verify` check what is packed instead.

    Raises:
        FileNotFoundError: there is nothing to verify, or sources of a mixture are not there.
        UserError: see `packing.pack` and `packing.verify`.
    """
    views = config.view.views
    plan = DataPlan.of(fetch(pin(config.data), views), views)
    plan.check_roots()
    summaries = []
    for source in plan.sources:
        for split in config.pack.splits:
            reader = native_reader(source.config, split, source.views)
            if not len(reader.episodes):
                logger.info("%s has no episode, so nothing is packed", reader.summary())
                continue
            folder = packed_folder(source.config, split, source.views, reader, config.pack.image_format)
            if config.pack.verify:
                size = verify(folder)
                logger.info("%s: %d bytes are as they were written", folder, size)
            else:
                origin = _origin(source.config, split, source.views)
                summaries.append(
                    pack(
                        reader,
                        folder,
                        image_format=config.pack.image_format,
                        workers=config.pack.workers,
                        origin=origin,
                    )
                )
                logger.info("%s", summaries[-1])
    return summaries
