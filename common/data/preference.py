"""Scored pairs as TRL's conversational preference data, and an account of the pairs that carry no signal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from common.schema import PromptRecord, ScoredAnswer, ScoredPair

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

    Table = TypeVar("Table", Dataset, IterableDataset)


RowType = TypeVar("RowType", ScoredPair, ScoredAnswer)
SCORES = ("score_chosen", "score_rejected")
NORMALISED = "scores_normalised"
WEIGHT = "weight"
"""Column of how often a pair's loss counts."""
EXPLORED, CUT = "explored", "explored_cut"
"""Columns of the student's own answer to a prompt, as messages, none of them where it said nothing; and whether it was
cut off before its end."""


def preference_dataset(pairs: Sequence[ScoredPair], weights: Sequence[float] | None = None) -> Dataset:
    """Columns `id`, `prompt`, `chosen`, `rejected` (message lists), `score_chosen`, `score_rejected` (float or None),
    and `length` in characters, for batches of similar length; `weight` where there are weights, one a pair; `explored`
    and `explored_cut` where a pair has such an answer.

    Chosen is always the revision: scores never reorder or drop a pair here, or DPO's labels would be cleaned by
    stealth. Scores are normalised to [0, 1] by each pair's declared scale.
    """
    from datasets import Dataset, Features, List, Value

    message = List({"role": Value("string"), "content": Value("string")})
    features = {
        "id": Value("string"), "prompt": message, "chosen": message, "rejected": message,
        "score_chosen": Value("float64"), "score_rejected": Value("float64"), "length": Value("int64"),
    }  # fmt: skip
    rows = [_row(pair) for pair in pairs]
    if any(pair.explored for pair in pairs):
        features |= {EXPLORED: message, CUT: Value("bool")}
        rows = [row | _explored(pair) for row, pair in zip(rows, pairs)]
    dataset = Dataset.from_list(rows, features=Features(features))
    return dataset if weights is None else dataset.add_column(WEIGHT, [float(weight) for weight in weights])


def with_normalised_scores(dataset: Table, score_range: Sequence[float], needed: bool, name: str = "train") -> Table:
    """The dataset without unscored pairs, scores mapped to [0, 1] by `score_range` as float64; of a stream, row by row
    as it is read.

    Column `scores_normalised` marks what this has mapped, which is left as it is the next time. Where no scores are
    needed their columns are dropped, once the pairs with an empty score are, so that every method sees the same pairs;
    data without any score stay whole. Raises ValueError for a missing column (when scores are needed), a score that is
    no number or lies outside the range, or no scored pair at all.
    """
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError(f"the {name} dataset is empty")
    if NORMALISED in first:
        return dataset if needed else dataset.remove_columns([*SCORES, NORMALISED])
    there = [column for column in SCORES if column in first]
    if needed and len(there) < len(SCORES):
        missing = ", ".join(column for column in SCORES if column not in there)
        raise ValueError(
            f"this method needs the columns score_chosen and score_rejected; missing: {missing} (in the {name} dataset)"
        )
    if len(there) == len(SCORES):
        how = {"score_range": score_range if needed else None, "name": name}
        scored = dataset.filter(_is_scored, with_indices=True, input_columns=list(SCORES), fn_kwargs=how)
        if next(iter(scored), None) is not None:
            dataset = scored
        elif needed:
            raise ValueError(f"no pair of the {name} dataset has both scores; nothing to train on")
    if not needed:
        return dataset.remove_columns(there)
    dataset = dataset.map(
        _normalised, input_columns=list(SCORES), fn_kwargs={"score_range": score_range}, remove_columns=list(SCORES)
    )
    return dataset.rename_columns(
        {f"normalised_{column}": column for column in SCORES}
    )  # under the old names a column of integers would stay one


def _is_scored(
    score_chosen: Any, score_rejected: Any, row: int, score_range: Sequence[float] | None, name: str
) -> bool:
    for column, score in zip(SCORES, (score_chosen, score_rejected)):
        if score is None or score_range is None:
            continue
        try:
            inside = score_range[0] <= score <= score_range[1]
        except TypeError:
            raise ValueError(
                f"{column} of row {row} of the {name} dataset is {score!r}, which is no number; convert the column"
            ) from None
        if not inside:
            low, high = score_range
            raise ValueError(
                f"{column} of row {row} is {score}, outside score_range {low:g} to {high:g} (in the {name} dataset); give the judge's own scale"
            )
    return score_chosen is not None and score_rejected is not None


def _normalised(score_chosen: float, score_rejected: float, score_range: Sequence[float]) -> dict[str, float | bool]:
    low, high = score_range
    scores = {
        f"normalised_{column}": (float(score) - low) / (high - low)
        for column, score in zip(SCORES, (score_chosen, score_rejected))
    }
    return {**scores, NORMALISED: True}


def prompt_messages(row: ScoredPair | ScoredAnswer) -> list[dict[str, str]]:
    """System prompt and earlier turns, where there are any, and request, with a pair's instruction behind it."""
    instruction = row.instruction if isinstance(row, ScoredPair) else ""
    request = f"{row.prompt}\n\n{instruction}" if instruction else row.prompt
    opening = [{"role": "system", "content": row.system}] if row.system else []
    return [*opening, *row.history, {"role": "user", "content": request}]


def as_pair(row: ScoredAnswer) -> ScoredPair:
    """A good answer as a pair, for a training that makes the rejected one itself: it has the same text on both sides."""
    told = row.model_dump(include={*PromptRecord.model_fields})
    return ScoredPair(**told, response=row.answer, response_revised=row.answer, score_response=None, score_revised=None)


def _row(pair: ScoredPair) -> dict:
    score_response, score_revised = pair.normalised()
    return {
        "id": pair.id,
        "prompt": prompt_messages(pair),
        "chosen": [{"role": "assistant", "content": pair.response_revised}],
        "rejected": [{"role": "assistant", "content": pair.response}],
        "score_chosen": score_revised,
        "score_rejected": score_response,
        "length": len(pair.prompt) + max(len(pair.response), len(pair.response_revised)),
    }


def _explored(pair: ScoredPair) -> dict:
    text, whole = (pair.explored.text, pair.explored.whole) if pair.explored else ("", True)
    return {EXPLORED: [{"role": "assistant", "content": text}] if text.strip() else [], CUT: not whole}


def accepted(pairs: Sequence[ScoredPair]) -> list[ScoredPair]:
    """dSC's acceptance (arXiv 2312.01957): revisions that scored strictly higher than the original; unscored fail."""
    return [pair for pair in pairs if pair.is_scored and pair.normalised()[1] > pair.normalised()[0]]


def trained_on(rows: Sequence[RowType], method: str, needs_scores: bool) -> list[RowType]:
    """The pairs with both scores, or single answers with one, the same for every method; where none is scored, all,
    for a method that reads no scores. Raises ValueError for one that does."""
    scored = [row for row in rows if row.is_scored]
    if needs_scores and not scored:
        what = "no answer has a score" if rows and isinstance(rows[0], ScoredAnswer) else "no pair has both scores"
        raise ValueError(f"{what}, which {method} reads; take a method that reads none, or give scores")
    return scored or list(rows)


def pairs_without_signal(
    pairs: Sequence[ScoredPair], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list[str]]:
    """Ids of the pairs that teach little or nothing, by reason; a pair may stand under several. None is dropped here.

    identical: both answers are the same text. empty: an answer has no text. cut: the prompt and the part that both
    answers share fill `max_length` tokens, so nothing different is left. tied: equal scores. unscored: a score is
    missing (the trainer leaves these out, for every method alike).
    """
    found: dict[str, list[str]] = {"identical": [], "empty": [], "cut": [], "tied": [], "unscored": []}
    for pair in pairs:
        original, revised = pair.normalised()
        if pair.response == pair.response_revised:
            found["identical"].append(pair.id)
        elif _cut_equal(pair, tokenizer, max_length):
            found["cut"].append(pair.id)
        if not pair.response.strip() or not pair.response_revised.strip():
            found["empty"].append(pair.id)
        if original is None or revised is None:
            found["unscored"].append(pair.id)
        elif original == revised:
            found["tied"].append(pair.id)
    return found


def _cut_equal(pair: ScoredPair, tokenizer: PreTrainedTokenizerBase, max_length: int) -> bool:
    rows = [
        tokenizer.apply_chat_template(
            [*prompt_messages(pair), {"role": "assistant", "content": text}], return_dict=True
        )["input_ids"]
        for text in (pair.response, pair.response_revised)
    ]
    return rows[0][:max_length] == rows[1][:max_length]
