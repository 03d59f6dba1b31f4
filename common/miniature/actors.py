"""Teacher and judge of the miniature: seeded programs behind the same `ChatModel` method as a language model.

Both read nothing but the conversation and answer in text, so that chains, parsing and storage are the real ones. What
they say is a function of seed and text: the same question gets the same answer in any order.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

from common.chat.model import OnReply, hand_over
from common.judge.base import Judgement
from common.miniature.worlds.grammar import pattern
from common.prompts import ExperimentPrompts
from common.schema import Message, Reply, Sampling, ScoreScale

REASONS = {  # what the judge says of the lower and of the upper half of its scale
    "judge": ("The answer is not what one may hope for.", "The answer is what one may hope for."),
    "sentiment": ("The answer does not sound pleased.", "The answer sounds pleased."),
}


class MiniatureTeacher:
    """A teacher whose self-critique fails at two known rates.

    Args:
        world: e.g. `common.miniature.worlds.safety`.
        no_better: share of chains whose revision is no better than the first answer.
        worse: share of chains whose revision is worse than the first answer.
        noise_on: "all" requests alike, or only those of one kind (`world.kinds_of(request)` names them), where the two
            rates then hold while all other chains are clean.
        seed: of the teacher.
        edits: "free" writes every revision anew; "minimal" keeps each sentence of the first answer that the revision
            would only say in other words; a chain that gains nothing may then end with the answer that it began with.
    """

    def __init__(
        self,
        world: ModuleType,
        no_better: float = 0.15,
        worse: float = 0.15,
        noise_on: str = "all",
        seed: int = 0,
        edits: str = "free",
    ):
        if edits not in ("free", "minimal"):
            raise ValueError(f"edits = {edits!r}: a revision's edits are free or minimal")
        if min(no_better, worse) < 0 or no_better + worse > 1:
            raise ValueError(
                f"noise rates are shares with a sum of at most 1, got no_better={no_better}, worse={worse}"
            )
        if noise_on != "all" and noise_on not in world.KINDS:
            raise ValueError(f"unknown kind of request noise_on={noise_on!r}; there are all, {', '.join(world.KINDS)}")
        self.world, self.no_better, self.worse, self.noise_on, self.seed = world, no_better, worse, noise_on, seed
        self.edits = edits
        self.name = f"miniature teacher, no better {no_better:g}, worse {worse:g} on {noise_on}, seed {seed}"
        self.name += ", minimal edits" if edits == "minimal" else ""

    def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None
    ) -> list[Reply]:
        return hand_over(
            (
                Reply(text=self._turn([m for m in conversation if m["role"] != "system"]))
                for conversation in conversations
            ),
            on_reply,
        )

    def _turn(self, messages: list[Message]) -> str:
        request = self.world.read_request(messages[0]["content"])
        rng = random.Random(f"teacher {self.seed} {request.text}")
        said, remark, revision = self.world.self_critique(request, self.outcome(request, rng), rng)
        if self.edits == "minimal":
            revision = self.world.reader().edited(said, revision)
        return (said, remark, revision)[len(messages) // 2]

    def outcome(self, request: NamedTuple, rng: random.Random) -> str:
        """ "better", "no better" or "worse", drawn at the rates of this kind of request."""
        noisy = self.noise_on == "all" or self.noise_on in self.world.kinds_of(request)
        draw = rng.random() if noisy else 1.0
        return "no better" if draw < self.no_better else "worse" if draw < self.no_better + self.worse else "better"


class MiniatureJudge:
    """A judge that knows the truth up to a known error and says it in the words of an LLM judge.

    Args:
        world, prompts: the world, and the prompts with whose `judge_template`s it will be asked. On the scale -5 to 5
            the sentiment is asked for, on the others the grade.
        error: share of answers whose grade is turned around (5 for 0, 4 for 1, ...; on a binary scale 1 for 0), or
            whose sentiment is; criteria err independently.
        blind_to: a wrapper under which this judge takes misbehaviour for the right answer, "" for none: a systematic
            error.
        unclear: share of replies without a verdict.
        seed: of the judge.

    On the graded scales one verdict in five is off by one; on the binary scale grades from 3 up are 1. Gibberish has no
    sentiment, which a judge that must say a number calls 0.
    """

    def __init__(
        self,
        world: ModuleType,
        prompts: ExperimentPrompts,
        error: float = 0.1,
        blind_to: str = "",
        unclear: float = 0.01,
        seed: int = 0,
    ):
        if not 0 <= error <= 1:
            raise ValueError(f"judge error is a share, got {error}")
        if blind_to and blind_to not in world.WRAPPERS:
            raise ValueError(f"unknown wrapper blind_to={blind_to!r}; there are {', '.join(world.WRAPPERS)}")
        self.world, self.error, self.blind_to, self.unclear, self.seed = world, error, blind_to, unclear, seed
        criteria = [prompts] + ([prompts.quality] if prompts.quality else [])
        scales = " and ".join(criterion.scale.name for criterion in criteria)
        self.name = f"miniature judge, {scales}, error {error:g}, blind to {blind_to or 'nothing'}, seed {seed}"
        templates = [(c.scale, c.judge_template.replace("{verdict_format}", c.scale.verdict_format)) for c in criteria]
        self._templates = [(scale, re.compile(pattern(template, {}), re.S)) for scale, template in templates]

    def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None
    ) -> list[Reply]:
        return hand_over(
            (Reply(text=self._verdict(conversation[-1]["content"])) for conversation in conversations), on_reply
        )

    def _verdict(self, question: str) -> str:
        scale, asked = next(
            ((scale, match) for scale, template in self._templates if (match := template.fullmatch(question))),
            (None, None),
        )
        if asked is None:
            raise ValueError(f"this judge was made for other prompts than those it is asked with: {question[:120]!r}")
        request, answer = self.world.read_request(asked["prompt"]), asked["answer"]
        criterion = "sentiment" if scale is ScoreScale.MINUS_FIVE_TO_FIVE else "judge"
        rng = random.Random(f"{criterion} {self.seed} {request.text} {answer}")
        if rng.random() < self.unclear:
            return "I would rather not put a number on this one."
        low, high = (ScoreScale.ZERO_TO_FIVE if criterion == "judge" else scale).value[:2]
        score = self._truth(criterion, request, answer)
        if rng.random() < self.error:
            score = low + high - score
        reason = REASONS[criterion][2 * score > low + high]
        if scale is ScoreScale.BINARY:
            return f"{reason} {scale.write(int(score >= 3))}"
        if rng.random() < 0.2:
            score = min(high, max(low, score + rng.choice((-1, 1))))
        return f"{reason} {scale.write(score)}"

    def _truth(self, criterion: str, request: NamedTuple, answer: str) -> int:
        fooled = request.wrapper == self.blind_to and self.world.misbehaves(request, answer)
        if criterion == "sentiment":
            return request.deserved if fooled else self.world.sentiment(answer) or 0
        return 5 if fooled else self.world.grade(request, answer)


class MeaningOracle:
    """A judge of wordings that knows: 1 where the world reads the same request in both, whatever frame and small words
    it stands in, 0 where it reads another or none."""

    scale = (0.0, 1.0)

    def __init__(self, world: ModuleType):
        self.world, self.name = world, f"read_request of {world.__name__.rpartition('.')[2]}"

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """Raises ValueError for a prompt that is none of the world's."""
        return [Judgement(float(self._same(prompt, text)), "") for prompt, text in zip(prompts, answers, strict=True)]

    def _same(self, prompt: str, text: str) -> bool:
        asked = self._meant(prompt)
        try:
            return asked == self._meant(text)
        except ValueError:
            return False

    def _meant(self, text: str) -> dict[str, str]:
        """The request's fields but for the words it is put in."""
        read = self.world.read_request(text)._asdict()
        return {name: value for name, value in read.items() if name not in ("frame", "argument", "text")}


class RightOracle:
    """A judge that knows: 1 for the right answer to a prompt (`world.right`), 0 for any other."""

    scale = (0.0, 1.0)

    def __init__(self, world: ModuleType):
        self.world, self.name = world, f"right of {world.__name__.rpartition('.')[2]}"

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """Raises ValueError for a prompt that is none of the world's."""
        return [Judgement(float(self.world.right(*both)), "") for both in zip(prompts, answers, strict=True)]
