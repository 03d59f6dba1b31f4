"""Reference log-probabilities of a trainer's pairs before it trains: shared out among processes, and kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import zip_longest
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from trl import DPOTrainer

from common.logprobs.masks import in_evaluation_mode
from common.logprobs.reference import ReferenceCache, reference_identity
from common.logprobs.rows import is_sharded
from common.runtime import Progress
from common.schema import fingerprint
from common.student.dequantised import dequantised
from common.trainer.collator import EXPLORED_IDS, EXPLORED_REFERENCE, REFERENCE, SECOND, TOKENS, groups_of


def with_reference(trainer: DPOTrainer, dataset: Dataset, name: str) -> Dataset:
    """The dataset with the columns `REFERENCE`, `SECOND` where there is a second one, and `EXPLORED_REFERENCE` where
    there are explored answers."""
    trainer._forbid_cpu_repacking()
    trainer._collate_scores()  # TRL calls this within its __init__
    logps = _kept_logps(trainer, trainer.ref_model or trainer.model, trainer._as_reference, dataset, name)
    columns = (*REFERENCE, *((EXPLORED_REFERENCE,) if EXPLORED_IDS in dataset.column_names else SECOND))
    if trainer.second_reference is not None:
        logps += _kept_logps(trainer, trainer.second_reference, nullcontext, dataset, f"second of {name}")
    for column, values in zip(columns, logps):
        dataset = dataset.add_column(column, list(values))
    return dataset


def _kept_logps(
    trainer: DPOTrainer,
    model: torch.nn.Module,
    as_reference: Callable[[], AbstractContextManager],
    dataset: Dataset,
    name: str,
) -> list[tuple[float, ...]]:
    """[of chosen, of rejected], and of explored completions where there are any, of every pair under a model as a
    reference, from the cache where it has them.

    A missing pair is computed alone, so that its numbers hang on nothing but the pair and the model. Processes compute
    equally many, a few twice: a sharded model is called by all at a time."""
    how = {
        "packed": trainer.args.packed,
        "precision": trainer.accelerator.mixed_precision,
        "device": trainer.accelerator.device.type,
        **({"sharded": True} if is_sharded(model) else {}),
    }
    with as_reference():
        identity = reference_identity(model, **how)
    cache = ReferenceCache(trainer.args.reference_cache or Path(trainer.args.output_dir, "reference"), identity)
    rows = dataset.select_columns([name for name in (*TOKENS, EXPLORED_IDS) if name in dataset.column_names])
    groups = [groups_of(trainer.data_collator([row])) for row in rows]
    keys = [fingerprint(*trainer._reference_key(of_pair), digits=32) for of_pair in groups]
    (cache.values,) = broadcast_object_list([cache.values])  # another training may add to the file meanwhile
    missing = {key: number for number, key in enumerate(keys) if key not in cache.values}
    if missing:
        todo, process, processes = list(missing), trainer.accelerator.process_index, trainer.accelerator.num_processes
        mine = [todo[number % len(todo)] for number in range(process, len(todo) + process, processes)]
        progress, found = Progress(f"reference log-probabilities, {name}", len(mine)), {}
        unpacked = nullcontext() if is_sharded(model) else dequantised(model, training=True)
        with torch.no_grad(), trainer._attention_given_back(), as_reference(), in_evaluation_mode(model), unpacked:
            for key in mine:
                row, (answers,) = rows[missing[key]], groups[missing[key]]
                batch = trainer._prepare_inputs(trainer.data_collator([row]))
                found[key] = tuple(float(logps) for logps, _ in zip(trainer._logps(model, batch), answers))
                cache.add_now_and_then(found)
                progress(1)
        cache.add(dict(gather_object(list(found.items()))))
    return list(zip_longest(*(cache.values[key] for key in keys), fillvalue=0.0))
