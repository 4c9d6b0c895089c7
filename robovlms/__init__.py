"""Turn a vision-language model into a robot policy: train, evaluate in closed loop, compare."""

import sys

__version__ = "0.1.0"

if sys.version_info < (3, 11):  # noqa: UP036 - a clone can be run by any Python
    raise ImportError(
        f"robovlms needs Python 3.11 to 3.13, and {sys.executable} is {sys.version.split()[0]}: activate the "
        "environment that it was installed in (. .venv/bin/activate)"
    )
