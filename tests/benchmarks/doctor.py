"""How many of the pair doctor's first 30 suspects are pairs whose answers were swapped, and how long it takes, for results/doctor.json.

    python tests/benchmarks/doctor.py [--small FOLDER] [--real]     FOLDER: of the real pairs that `make small` scored, by default runs/small

--real: of these alone; all else stays as results/doctor.json has it. So do the rows of real pairs whose file is missing, which is named.
Generated pairs: each world's train prompts with the study's teacher (30 % noise) and judge (10 % error). A known share of the pairs is exchanged by the stream
of swaps that trainings use, each answer with its own score. The swapped pairs that the judge contradicts can be found; those that the teacher got wrong, too,
count as false. Also writes what the doctor prints and draws of the safety pairs into results/doctor/.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

from common.data.self_critique import generate_pairs
from common.doctor.diagnosis import examine
from common.doctor.noise import noise_of
from common.doctor.report import terminal, write
from common.doctor.rows import DoctorRow, rows_of
from common.judge.scoring import score_pairs
from common.miniature import lab
from common.miniature.world import world_of
from common.runtime import resolve
from common.schema import Sampling, ScoredPair
from common.statistics import wilson_interval
from common.storage import read_records, write_json, write_whole
from common.training.comparison import stream

REAL = {"safety": "scored.jsonl", "roleplay-robustness": "scored.jsonl", "sycophancy": "counterfactual_neutral/scored.jsonl"}
"""Below the folder of each experiment: the profile `small` makes its sycophancy pairs from one student's answers, and so in a folder of their own."""
EXAMPLE = "400 generated pairs of safety"
SHARES, FIRST, PAIRS, SEEDS = (0.1, 0.3), 30, 400, range(5)
WORDS = "river stone lamp winter paper garden silver early market window bread story coat morning letter music road candle forest harbour".split()


def world_pairs(experiment: str, seed: int, scratch: Path, noise: float = 0.3) -> list[ScoredPair]:
    world = world_of(experiment)
    records = world.prompts_for("train", PAIRS, 0.25, seed)
    teacher = lab.teacher(experiment, no_better=noise / 2, worse=noise / 2, noise_on="all", seed=seed)
    pairs = generate_pairs(teacher, records, world.PROMPTS, Sampling(), scratch / f"{experiment}-{seed}-{noise}-pairs.jsonl", failed_limit=0.0)
    judge = lab.judge(experiment, error=0.1, blind_to="", unclear=0.01, seed=seed)
    return list(score_pairs(judge, list(pairs), scratch / f"{experiment}-{seed}-{noise}-scored.jsonl", unscored_limit=0.1))


def recall(pairs: list[ScoredPair], share: float, seed: int) -> dict[str, float | int | list[float]]:
    """Swapped pairs among the first suspects, and among as many drawn at random on average."""
    swapped = set(stream("swaps", seed).sample(range(len(pairs)), round(share * len(pairs))))
    rows = rows_of([pair.swapped() if i in swapped else pair for i, pair in enumerate(pairs)])
    suspects = examine(rows).suspects[:FIRST]
    found = sum(one.row in swapped for one in suspects)
    return {"pairs": len(pairs), "swapped": len(swapped), "found": found, "recall": round(found / len(swapped), 4), "most": round(min(FIRST, len(swapped)) / len(swapped), 4),
            "precision": round(found / len(suspects), 4), "precision_interval": [round(end, 4) for end in wilson_interval(found, len(suspects))]}  # fmt: skip


def generated_rows(count: int) -> list[DoctorRow]:
    """Rows of random words, 20 in a prompt and 80 in an answer, with random scores."""
    rng = random.Random(0)
    text = lambda length: " ".join(rng.choice(WORDS) + str(rng.randrange(50)) for _ in range(length))
    return [DoctorRow(f"row {i}", text(20), text(80), text(80), rng.random(), rng.random(), split=rng.choice(["train", "test"])) for i in range(count)]


def table(made: dict) -> str:
    """Markdown: a line for each file and share of swapped pairs, means over the draws of swaps."""
    lines = ["| pairs | swapped | swaps among the first 30 | recall at 30 | highest possible |", "|:--|--:|--:|--:|--:|"]
    for label, files, name in (("miniature, teacher without errors", "miniature", "swaps, teacher without errors"), ("miniature, 30 % teacher noise", "miniature", "swaps"), ("real pairs", "real pairs", "swaps")):
        for experiment, of in made[files].items():
            for share, draws in of[name].items():
                mean = {key: sum(draw[key] for draw in draws) / len(draws) for key in ("swapped", "found", "recall", "most")}
                lines.append(f"| {label}: {experiment} | {mean['swapped']:.0f} of {draws[0]['pairs']} | {mean['found']:.1f} | {mean['recall']:.2f} | {mean['most']:.2f} |")
    return "\n".join(lines) + f"\n\nMeans over {len(SEEDS)} draws of the swaps. Recall is low by design where there are more than 30 swaps.\n"


def miniature(scratch: Path) -> dict:
    """Recall on generated pairs, of a teacher with and without errors; writes the example of the page."""
    scratch.mkdir(parents=True, exist_ok=True)
    made = {}
    for experiment in REAL:
        found = [world_pairs(experiment, seed, scratch) for seed in SEEDS]
        made[experiment] = {
            "seeds": len(SEEDS), "swaps": {str(share): [recall(pairs, share, seed) for seed, pairs in zip(SEEDS, found)] for share in SHARES},
            "swaps, teacher without errors": {str(share): [recall(world_pairs(experiment, seed, scratch, 0.0), share, seed) for seed in SEEDS] for share in SHARES},
        }  # fmt: skip
        if experiment == "safety":
            write_example(found[0], resolve("results/doctor"))
    return made


def write_example(pairs: list[ScoredPair], folder: Path) -> None:
    example = examine(pairs, EXAMPLE)
    page = write(example, folder)
    for texts in (page, page.with_name("suspects.jsonl")):  # of a world that one command makes anew
        texts.unlink()
    write_whole(page.with_name("doctor.txt"), terminal(example) + "\n")


def real_pairs(folder: Path) -> dict:
    """Recall on the real pairs that are there; names the files that are missing."""
    made = {}
    for experiment, name in REAL.items():
        path = folder / experiment / name
        if not path.is_file():
            print(f"no file {path}: the row of {experiment} stays as it was", file=sys.stderr)
            continue
        pairs = [pair for pair in read_records(path, ScoredPair) if pair.split == "train"]
        swaps = {str(share): [recall(pairs, share, seed) for seed in SEEDS] for share in SHARES}
        made[experiment] = {"contradicted before any swap": noise_of(rows_of(pairs)).contradicted, "swaps": swaps}
    return made


def seconds() -> float:
    """Processor time of an examination."""
    rows = generated_rows(10_000)
    start = time.process_time()
    examine(rows)
    return round(time.process_time() - start, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", default="runs/small", help="folder of the real models' pairs")
    parser.add_argument("--real", action="store_true", help="real pairs alone")
    parser.add_argument("--scratch", default="runs/doctor", help="folder for generated pairs")
    asked = parser.parse_args()
    path = resolve("results/doctor.json")
    made = json.loads(path.read_text(encoding="utf-8"))
    if not asked.real:
        made |= {"first": FIRST, "miniature": miniature(resolve(asked.scratch)), "processor seconds for 10000 generated pairs": seconds()}
    made["real pairs"] |= real_pairs(resolve(asked.small))
    write_whole(resolve("results/doctor/table.md"), table(made))
    print(write_json(path, made).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
