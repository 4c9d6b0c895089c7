import pytest
from omegaconf import OmegaConf

from robovlms.config.renamed import rename


@pytest.mark.parametrize("read", [dict, OmegaConf.create])
def test_a_run_that_was_evaluated_with_opposite_instructions_is_still_read(read):
    evaluation = {"episodes_per_task": 10, "seed": 7, "opposite_episodes_per_task": 5, "execute_steps": 4}
    config = read({"evaluation": evaluation, "sim": {"name": "metaworld"}})
    rename(config)
    assert config == {
        "evaluation": {"execute_steps": 4, "language": ["opposite"], "language_episodes": 5},
        "sim": {"name": "metaworld", "seed": 7, "episodes": 10},
    }


@pytest.mark.parametrize("read", [dict, OmegaConf.create])
@pytest.mark.parametrize(("old", "new"), [(False, "off"), (True, "model"), ("layers", "layers")])
def test_whether_an_engine_compiled_is_still_read(read, old, new):
    config = read({"evaluation": {"engine": {"compile": old, "device": "cpu"}}})
    rename(config)
    assert config == {"evaluation": {"engine": {"compile": new, "device": "cpu"}}}
