import pytest
from test_results import chain, result

from robovlms.config.choices import Language
from robovlms.evaluation.analysis.language import judge_instructions
from robovlms.sims.base import Episode


def played(own, **others):
    """Return episodes that succeed where there is a 1; every kind starts where the first of its own do."""
    kinds = {"own": own, **others}
    return [
        result("open", seed, mark == "1", 10, language=kind)
        for kind, marks in kinds.items()
        for seed, mark in enumerate(marks)
    ]


def test_a_policy_that_does_the_same_whatever_it_is_told_is_named_so():
    judged = judge_instructions(played("1" * 12, opposite="1" * 10))
    assert judged["ignores_language"] is True
    assert judged["verdict"] == (
        "The policy ignores its instructions: on 10 starts it reached the scene's goal 10 times with its own "
        "instruction and 10 times with the opposite instruction (difference -28% to +28%, p = 1)."
    )


def test_a_policy_that_obeys_is_named_so():
    judged = judge_instructions(played("1" * 10, opposite="0" * 10))
    assert judged["ignores_language"] is False
    assert judged["verdict"].startswith("The policy follows its instructions: on 10 starts")
    (effect,) = judged["effects"]
    assert (effect["own"], effect["other"], effect["difference"]) == (1.0, 0.0, 1.0)
    assert effect["p_value"] == pytest.approx(2 / 2**10)


@pytest.mark.parametrize(("own", "opposite"), [("11", "11"), ("0" * 20, "0" * 20), ("1111", "0011")])
def test_too_few_episodes_or_none_that_succeed_decide_nothing(own, opposite):
    judged = judge_instructions(played(own, opposite=opposite))
    assert judged["ignores_language"] is None
    assert judged["verdict"].endswith("Raise evaluation.language_episodes.")


def test_without_an_opposite_the_empty_instruction_tells_and_other_words_do_not():
    assert judge_instructions(played("1" * 10, empty="1" * 10))["ignores_language"] is True
    assert judge_instructions(played("1" * 10, empty="1" * 10, opposite="0" * 10))["ignores_language"] is False
    other_words = judge_instructions(played("1" * 10, paraphrase="0" * 10, spelling="1" * 10))
    assert (other_words["verdict"], other_words["ignores_language"]) == ("", None)
    assert [effect["p_value"] for effect in other_words["effects"]] == pytest.approx([2 * 2 / 2**10, 1.0])  # Holm's


def test_own_instructions_alone_say_nothing():
    assert judge_instructions(played("111")) is None


def test_of_a_chain_the_first_goal_alone_is_held_against_its_opposite():
    def retold(result, language):
        fields = {name: getattr(result.episode, name) for name in ("scene", "seed", "goals", "max_steps", "group")}
        episode = Episode(**fields, variant=result.episode.variant, language=Language(language))
        return type(result)(episode=episode, goal_steps=result.goal_steps, steps=result.steps, seconds=1.0)

    own = [chain(i, 10, 20, 30) for i in range(10)]
    first_alone = [retold(chain(i, 10), "opposite") for i in range(10)]
    (effect,) = judge_instructions([*own, *first_alone])["effects"]
    assert (effect["own"], effect["other"]) == (1.0, 1.0)
    (effect,) = judge_instructions([*own, *(retold(each, "empty") for each in first_alone)])["effects"]
    assert (effect["own"], effect["other"], effect["difference"]) == (3.0, 1.0, 2.0)
