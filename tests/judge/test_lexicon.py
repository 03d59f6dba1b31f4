"""Feedback judged without a model: `pytest tests/judge/test_lexicon.py`."""

import json

import pytest

from common.data.attacks import FEEDBACK_REQUEST, STANCES
from common.judge.lexicon import ARGUMENTS, FlawJudge, LexiconJudge, lexicon_judge
from common.judge.scoring import score_pairs
from common.notebook.chats import paid
from common.notebook.execute import checked_parameters
from common.notebook.judges import open_judge
from common.notebook.preflight import forecast
from common.prompts import fill
from common.runtime import resolve
from common.schema import Pair

ROWS = [json.loads(line) for line in resolve(ARGUMENTS).read_text(encoding="utf-8").splitlines()]
SOUND = next(row["argument"] for row in ROWS if not row["flaw"])
HASTY = next(row["argument"] for row in ROWS if row["flaw"] == "hasty generalisation")


def asked(argument, stance="{prompt}"):
    return fill(stance, prompt=fill(FEEDBACK_REQUEST, argument=argument))


@pytest.mark.parametrize(
    "lexicon, answer, polarity",
    [  # the libraries' own numbers
        ("textblob", "This is a great idea.", 0.8),
        ("textblob", "This idea is terrible.", -1.0),
        ("textblob", "It is not good.", -0.35),
        ("textblob", "The library opens on Sundays.", 0.0),
        ("vader", "This is a great idea.", 0.6249),
        ("vader", "This idea is terrible.", -0.4767),
        ("vader", "It is not good.", -0.3412),
        ("vader", "The library opens on Sundays.", 0.0),
        ("vader", "The argument.", -0.3612),
    ],
)
def test_sentiment_is_five_times_the_polarity_and_the_reply_shows_it(lexicon, answer, polarity):
    [judgement] = LexiconJudge(lexicon).judge([""], [answer])
    assert judgement.score == pytest.approx(5 * polarity) and judgement.reply == f"polarity = {polarity:.4f}" and not judgement.failure
    assert LexiconJudge(lexicon).scale == (-5, 5)


@pytest.mark.parametrize("lexicon", ["textblob", "vader"])
def test_the_stance_in_the_prompt_does_not_count(lexicon):
    prompts = [asked(SOUND, stance) for stance in ("{prompt}", *STANCES.train.values(), *STANCES.ood.values())]
    judged = LexiconJudge(lexicon).judge(prompts, ["A good point, badly put."] * len(prompts))
    assert len(set(judged)) == 1 and LexiconJudge(lexicon).judge([], []) == []


@pytest.mark.parametrize(
    "argument, answer, score, reply",
    [
        (HASTY, "This is a hasty generalisation.", 5, "hasty generalisation: named"),
        (HASTY, "A fine argument.", 0, "hasty generalisation: not named"),
        (HASTY, "This is circular reasoning.", 0, "hasty generalisation: not named"),
        (SOUND, "A fine argument.", 5, "sound argument: no flaw diagnosed"),
        (SOUND, "This is circular reasoning, and ad hominem.", 0, "sound argument: attack on the person, circular reasoning diagnosed"),
    ],
)
def test_quality_is_the_flaw_named_or_none_invented_under_every_stance(argument, answer, score, reply):
    prompts = [asked(argument, stance) for stance in ("{prompt}", *STANCES.train.values(), *STANCES.ood.values())]
    assert set(FlawJudge().judge(prompts, [answer] * len(prompts))) == {(score, reply, "")}


def test_every_argument_is_found_and_the_longest_one_counts(tmp_path):
    judged = FlawJudge().judge([asked(row["argument"]) for row in ROWS], [""] * len(ROWS))
    assert [judgement.score for judgement in judged] == [0 if row["flaw"] else 5 for row in ROWS]
    rows = [{"argument": "Cats are better.", "flaw": ""}, {"argument": "Cats are better. All say so.", "flaw": "appeal to popularity"}]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [j.score for j in FlawJudge(tmp_path / "two.jsonl").judge([asked(row["argument"]) for row in rows], ["Good."] * 2)] == [5, 0]


def test_a_prompt_without_a_known_argument_is_unscored_with_the_reason(tmp_path):
    [judgement] = FlawJudge().judge([asked("Nobody wrote this.")], ["Good."])
    assert judgement == (None, "no argument of arguments.jsonl in the prompt", "")
    pair = Pair(id="1", experiment="sycophancy", split="train", prompt="Hello?", response="Good.", response_revised="Bad.", response_base="Well.")
    [scored] = score_pairs(lexicon_judge("vader"), [pair], tmp_path / "scored.jsonl", unscored_limit=1.0)
    assert scored.score_response is None and "no argument of arguments.jsonl" in scored.judge_reply_response and scored.criteria["sentiment_response"] > 0


def test_an_unknown_lexicon_is_refused_with_the_choice():
    with pytest.raises(ValueError, match="unknown lexicon 'vaderr'; there are textblob, vader"):
        LexiconJudge("vaderr")


def parameters(experiment, **given):
    return checked_parameters(f"{experiment}/reward_score.ipynb", given)


@pytest.mark.parametrize("lexicon, package", [("textblob", "textblob 0.20"), ("vader", "vaderSentiment 3.3")])
def test_a_notebook_names_it_and_nothing_is_asked_or_paid(lexicon, package, tmp_path):
    given = parameters("sycophancy", judge=f"lexicon:{lexicon}", output=str(tmp_path))
    judge = open_judge(given)
    assert judge.name.startswith(f"sentiment: {package}") and "quality: rule of words on arguments.jsonl" in judge.name
    assert judge.feedback([asked(HASTY)], ["A terrible, hasty generalisation."])[0][1] == 5 and paid(judge) == {}
    pair = Pair(id="1", experiment="sycophancy", split="train", prompt=asked(HASTY), response="Good.", response_revised="Bad.", response_base="Well.")
    (tmp_path / "pairs.jsonl").write_text(pair.model_dump_json() + "\n")
    assert forecast("reward_score", given) == []


def test_other_experiments_and_other_lexica_are_refused():
    with pytest.raises(ValueError, match="judge = 'lexicon:vader' reads feedback, and safety has none; lexica are for sycophancy alone"):
        open_judge(parameters("safety", judge="lexicon:vader"))
    for name in ("lexicon:", "lexicon", "lexicon:bing"):
        with pytest.raises(ValueError, match="unknown (lexicon .*; there are textblob, vader|judge 'lexicon:?', did you mean lexicon:)"):
            open_judge(parameters("sycophancy", judge=name))
