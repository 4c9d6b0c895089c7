"""CALVIN's own evaluation code, imported from the checkout that CALVIN_ROOT names.

Of what it imports, pyhash no longer builds and its own models are not used: those are replaced.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

import pytest

from robovlms.sims.calvin.states import fnv1_32

UNUSED = ["add_text", "format_sftp_path", "get_all_checkpoints", "get_checkpoints_for_epochs", "get_last_checkpoint"]
REPLACED: dict[str, dict[str, object]] = {
    "pyhash": {"fnv1_32": lambda: fnv1_32},
    "calvin_agent.models.mcil": {"MCIL": None},
    "calvin_agent.models.calvin_base_model": {"CalvinBaseModel": object},
    "calvin_agent.utils.utils": dict.fromkeys(UNUSED),
    "pytorch_lightning": {"seed_everything": None},
}


def official(name: str) -> Any:
    """Return a module of calvin_agent.evaluation; without a checkout the test is skipped."""
    root = os.environ.get("CALVIN_ROOT")
    if not root:
        pytest.skip("set CALVIN_ROOT to a checkout of github.com/mees/calvin")
    for module, names in REPLACED.items():
        if module not in sys.modules:
            sys.modules[module] = ModuleType(module)
            vars(sys.modules[module]).update(names)
    if f"{root}/calvin_models" not in sys.path:
        sys.path.insert(0, f"{root}/calvin_models")
    return importlib.import_module(f"calvin_agent.evaluation.{name}")
