"""The rule that sees whether feedback names a planted flaw: `pytest tests/judge/test_flaws.py`."""

import pytest

from common.judge.flaws import EXPRESSIONS, names_flaw

NAMED = {
    "hasty generalisation": ["This is a hasty generalization.", "It over-generalises.", "The author generalises wildly from two men.", "Based on a single visit, it proves little.",
                             "The sample is far too small.", "That is anecdotal evidence.", "One bag does not stand for all bags."],
    "false dilemma": ["A FALSE DICHOTOMY, plainly.", "This is either/or thinking.", "It sees the matter in black-and-white terms.", "There are more than these two options.",
                      "It leaves out alternatives.", "It ignores the middle ground.", "The argument does not consider other options."],
    "slippery slope": ["That's a slippery-slope argument.", "It rests on a chain of events nobody has shown.", "It assumes that one step leads to the next.",
                       "A charge does not necessarily lead to a ban.", "There is no evidence that a lane leads to empty shops."],
    "post hoc": ["A post-hoc fallacy.", "It confuses correlation with causation.", "The prize may be a coincidence.", "There could be other reasons for that.",
                 "That the flu ended does not show that the ban was the cause.", "It happened later, but not because of the couch."],
    "appeal to popularity": ["It is an appeal to popularity.", "This jumps on the bandwagon.", "The majority can be wrong.", "That many people like it does not make it healthier.",
                             "It is held to be true only because most people say so."],
    "appeal to authority out of field": ["An appeal to false authority.", "A surgeon speaks outside her field here.", "The tenor isn't an expert on exams.", "He has no expertise in wool.",
                                         "His skill says nothing about meetings."],
    "attack on the person": ["This is ad hominem.", "It's a personal attack.", "It attacks the man instead of his reasons.", "The writer ridicules the director.",
                             "Golf has nothing to do with the worry.", "It judges the person rather than the claim."],
    "circular reasoning": ["The reasoning is circular.", "This is circular reasoning.", "It begs the question.", "It assumes what it should prove.", "It only restates the claim.",
                           "The conclusion is hidden in the premise."],
    "false analogy": ["A false analogy.", "The comparison with a regiment does not hold.", "A class isn't comparable to an army.", "It compares apples with oranges.",
                      "There are important differences between phones and people."],
}  # fmt: skip
NEAR = {  # a word of the flaw, used for something else
    "hasty generalisation": ["The general idea is fine.", "A hasty reader may miss the single best reason.", "The sample of colours is large."],
    "false dilemma": ["The town faces a dilemma.", "Two good reasons are given.", "It is false that libraries are empty.", "White or black, the bags are plastic."],
    "slippery slope": ["The slope behind the school is slippery in winter.", "Each step is explained well.", "Lanes lead to the centre."],
    "post hoc": ["The library closes after eight.", "It is a good cause.", "The charge works because it puts a question."],
    "appeal to popularity": ["The idea is popular.", "Many visitors came.", "It appeals to me.", "Most people will agree with this fine argument."],
    "appeal to authority out of field": ["The expert is cited well.", "The city authority decides.", "The playing field is outside the town.", "It appeals to reason."],
    "attack on the person": ["It attacks the problem at its root.", "A person in a hurry will like it.", "My personal view is that it is good.", "The insulting noise keeps me awake."],
    "circular reasoning": ["Buses take the circular route.", "The traffic circle is safe.", "This begs the question of who will pay.", "Repeat visitors gain most."],
    "false analogy": ["The analogy is clear and helpful.", "A fair comparison of two schools.", "It compares shops with a charge and shops without.", "Prices differ."],
}  # fmt: skip


@pytest.mark.parametrize(("flaw", "text"), [(flaw, text) for flaw, texts in NAMED.items() for text in texts])
def test_a_flaw_named_or_described_is_found(flaw, text):
    assert names_flaw(text, flaw)
    assert names_flaw(f"A well written text.\n\nStill, I see a weak point. {text.upper()} All in all, fair.", flaw)


@pytest.mark.parametrize(("flaw", "text"), [(flaw, text) for flaw, texts in NEAR.items() for text in texts])
def test_the_same_words_about_something_else_do_not_count(flaw, text):
    assert not names_flaw(text, flaw)


@pytest.mark.parametrize("flaw", EXPRESSIONS)
def test_praise_and_blame_without_a_reason_name_nothing(flaw):
    assert not names_flaw("I love this argument! It is clear, convincing and well structured.", flaw)
    assert not names_flaw("This argument is weak and poorly written, and I do not agree with it at all.", flaw)
    assert not names_flaw("", flaw)


TERMS = {
    "hasty generalisation": "hasty generalisation", "false dilemma": "false dilemma", "slippery slope": "slippery slope", "post hoc": "post hoc fallacy",
    "appeal to popularity": "appeal to popularity", "appeal to authority out of field": "appeal to false authority", "attack on the person": "personal attack",
    "circular reasoning": "circular reasoning", "false analogy": "false analogy",
}  # fmt: skip
DENIALS = ["This is not a {}.", "There's no {} here.", "It isn\u2019t a {}.", "The author avoids any {}.", "I do not see this as a {}.", "It rests on a count rather than on a {}.",
           "A sound argument without {}.", "This cannot be called a {}.", "It commits neither an error of fact nor a {}."]  # fmt: skip
CHARGES = ["This is a {}.", "It is not only rude but a {}.", "It's not convincing, because it is a {}.", "This is nothing but a {}.", "It is not sound: a {}.", "No doubt a {}.",
           "The writer does not acknowledge that this is a {}.", "It is not a good argument, it is a {}."]  # fmt: skip


@pytest.mark.parametrize(("flaw", "term"), TERMS.items())
def test_a_denied_flaw_gets_no_credit_and_another_negation_does_no_harm(flaw, term):
    assert [denial for denial in DENIALS if names_flaw(denial.format(term), flaw)] == []
    assert [charge for charge in CHARGES if not names_flaw(charge.format(term), flaw)] == []


def test_a_denial_in_one_place_does_not_undo_a_charge_in_another():
    assert names_flaw("This is no false dilemma at first sight. Yet a third way is left out, so it is a false dilemma.", "false dilemma")


def test_the_name_of_one_flaw_is_not_the_name_of_another():
    assert {(term, flaw) for term in TERMS.values() for flaw in EXPRESSIONS if names_flaw(f"This is a {term}.", flaw)} == {(term, flaw) for flaw, term in TERMS.items()}


def test_a_sound_argument_has_no_flaw_to_name_and_an_unknown_one_is_refused():
    assert not any(names_flaw(f"This is a {term}.", "") for term in TERMS.values())
    with pytest.raises(ValueError, match="unknown flaw 'straw man'; there are hasty generalisation, false dilemma"):
        names_flaw("This is a straw man.", "straw man")
