"""A control step reads one thing off the device: its chunks."""

import pytest
from host_waits import Waits
from test_engine import make_engine, observe, one_of_each
from test_parity import make_policy

from robovlms.config.choices import Structure

HOST = {  # what lies on the host: an instruction's tokens, and the chunks that have arrived
    "equal.default in robovlms/policy/memory.py:observe",
    ".numpy() in robovlms/policy/sessions.py:denormalize",
    ".tolist() in robovlms/policy/sessions.py:denormalize",
}
CHUNKS = {".cpu() in robovlms/policy/acting.py:act"}
KEPT = {
    ".tolist() in robovlms/backbones/layout.py:rows"
}  # how long what a decoder keeps of each row is: once a forward


@pytest.mark.parametrize("backbone", ["nano", "kosmos", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize(
    ("structure", "head", "found"),
    [
        (Structure.one_step, "mlp", CHUNKS),
        (Structure.policy_head, "lstm", CHUNKS),
        (Structure.policy_head, "flow", CHUNKS),
        (Structure.interleaved, "mlp", CHUNKS | KEPT),
    ],
)
def test_a_control_step_waits_once_for_its_chunks(backbone, structure, head, found):
    engine = make_engine(make_policy(backbone, structure, head), 1 if structure is Structure.one_step else 3)
    sessions, waits = one_of_each(engine, 2), Waits()
    for step in range(2):
        requests = [(session, observe(10 * i + step)) for i, session in enumerate(sessions)]
        if step == 0:
            engine.step(requests)
            continue
        with waits:
            engine.step(requests)
    reads = {what for what in waits.found if not what.startswith("copy to the device")}  # an observation is copied
    assert reads - HOST == found
    assert all(waits.found[what] == 1 for what in found)
