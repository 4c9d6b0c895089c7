"""Shared by all tests: nothing reaches the network, one thread is fastest here, and with ROBOVLMS_CHECK_SHAPES=1, as in
.ci/run, shape annotations are checked at run time, which takes half as long again.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("MUJOCO_GL", "egl")

import pytest
import torch
from hub_server import TOKEN, Hub, hub_server
from jaxtyping import install_import_hook

if os.environ.get("ROBOVLMS_CHECK_SHAPES") == "1":
    install_import_hook("robovlms", "beartype.beartype")
torch.set_num_threads(1)


FAMILIES = {"nano", "kosmos", "paligemma", "qwen2_5_vl", "flamingo", "florence2"}  # one of every kind of backbone


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave what is tested of further families of backbones to `pytest -m slow`."""
    from robovlms.registry import BACKBONES

    others = set(BACKBONES.names()) - FAMILIES
    for item in items:
        case = getattr(item, "callspec", None)
        if case is not None and any(value in others for value in case.params.values() if isinstance(value, str)):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what is made from data for the session alone."""
    os.environ["ROBOVLMS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _few_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare runs in this process their pictures, half of a short run's time, but in tests marked `plots`."""
    if "robovlms.commands.train" in sys.modules and request.node.get_closest_marker("plots") is None:
        monkeypatch.setattr("robovlms.commands.train.plot_run", lambda *_: {})
        monkeypatch.setattr("robovlms.commands.train.open_loop", lambda *_: [])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real robot data that is not part of the repository."""
    folder = Path(os.environ.get("ROBOVLMS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}: set ROBOVLMS_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def calvin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CALVIN folder with something to learn in it."""
    from calvin_folder import make_calvin_folder

    return make_calvin_folder(tmp_path_factory.mktemp("calvin"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub of this machine, for which the client of this process is logged in and has an empty cache."""
    import huggingface_hub
    from huggingface_hub import constants

    with hub_server() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server speaks Git LFS
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        huggingface_hub.close_session()
        yield hub
        huggingface_hub.close_session()
