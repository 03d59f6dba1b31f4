"""Tables of the study, from the rows of its `table.csv`.

Every value is a mean over seeds with its t-interval; differences are paired by seed, which is one of data, teacher,
judge and base student.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from common.methods import METHODS
from common.miniature.lab import FINAL_JUDGE_ERROR
from common.report.tables import OBJECTIVES, write_table
from common.statistics import holm, paired_t_test, seed_interval, sign_flip_test
from common.study.design import ABLATED, BLIND_TO, CONTRASTS, INSTRUCTED, MAIN, NEIGHBOURS, UNTRAINED, WITH_NLL
from common.study.rows import Study, behaviour, paired

if TYPE_CHECKING:
    import pandas as pd


ROWS = (*UNTRAINED, *MAIN, *NEIGHBOURS, *WITH_NLL)
CONTROLS = {
    "rdpo": ("shuffled", "rDPO, scores of other pairs"),
    "dpo": ("subset", "DPO, as many random pairs as dSC accepts"),
}
COLUMNS = {
    "judged": "second judge's view",
    "reward": "reward judge's view",
    "kl": "KL (nats)",
    "answer_words": "words",
    "lambda": "lambda",
}
COMPARISONS = (  # of (method, control), beside the named contrasts, without stars
    *(((first, ""), (second, "")) for first, second in (*CONTRASTS, ("rdpo", "sft"), ("rdpo_filter", "dpo"), ("rdpo_filter", "dsc"), ("rdpo_filter", "sft"))),
    (("rdpo", ""), ("rdpo", "shuffled")), (("rdpo", "shuffled"), ("dpo", "")), (("dpo", ""), ("dpo", "subset")), (("rdpo_filter", ""), ("dpo", "subset")),
)  # fmt: skip
COSTS = {
    "teacher_replies": "teacher's replies",
    "judge_verdicts": "judge's verdicts",
    "pairs_used": "pairs trained on",
    "tokens_trained_on": "tokens trained on",
    "train_seconds": "seconds of training, one core",
}
ELSEWHERE = {
    "the judge lets one wrapper pass": {"blind_to": BLIND_TO}, "the judge says good or bad only": {"binary": True}, "noise on prompts in wrappers only": {"noise_on": "wrapped", "noise": 0.6},
    "no benign prompts": {"benign_share": 0.0}, "half of the prompts benign": {"benign_share": 0.5}, "the student is its own teacher": {"teacher": "student"},
    **{f"pairs of Counterfactual DPO, {variant}": {"variant": variant} for variant in INSTRUCTED},
}  # fmt: skip


CONTRASTS_NOTE = "Wanted behaviour at matched utility at the centre, paired by seed; p of a paired t-test, Holm's over these contrasts, and exact p of sign flips, uncorrected."
"""Below `contrast_table`."""


def write_all(tables: Mapping[str, tuple[pd.DataFrame, str]], folder: Path, typeset: Path) -> list[Path]:
    """Writes every table that has rows, with its note, into a folder of its name, in LaTeX and HTML below `typeset`;
    returns the paths."""
    return [
        path
        for name, (table, note) in tables.items()
        if len(table)
        for path in write_table(table, folder / name, note, typeset / name).values()
    ]


def contrasts(study: Study, named: Sequence[tuple[str, str]] = CONTRASTS) -> list[dict[str, Any]]:
    """The contrasts that were named beforehand, with t-interval, p and Holm's p over all of them that there are."""
    found = []
    for experiment in study.experiments():
        for first, second in named:
            values = paired(*(study.of(experiment, behaviour(experiment), method) for method in (first, second)))
            if len(values) > 1:
                difference, low, high = seed_interval(values)
                found.append({"experiment": experiment, "contrast": f"{first} - {second}", "difference": difference, "low": low, "high": high, "seeds": len(values),
                              "differences": [round(value, 4) for value in values], "p": paired_t_test(values), "p_sign_flips": sign_flip_test(values)})  # fmt: skip
    for row, p in zip(found, holm([row["p"] for row in found])):
        row["p_holm"] = p
    return found


def centre_table(study: Study, experiment: str) -> pd.DataFrame:
    """One row a method at the centre, a cell `mean [low, high]` a metric, over seeds."""
    import pandas as pd

    objective, held_out = OBJECTIVES[experiment]
    columns = {
        behaviour(experiment): f"{objective} at matched utility",
        "utility_matched": "utility then",
        objective: f"{objective} as trained",
        "utility": "utility as trained",
        f"{objective}_ood": f"under held-out {held_out}",
        **COLUMNS,
    }
    named = [(METHODS[method].label, method, {}) for method in ROWS] + [
        (label, method, {"control": control}) for method, (control, label) in CONTROLS.items()
    ]
    rows = []
    for label, method, cell in named:
        if seeds := study.of(experiment, objective, method, **cell):
            cells = {
                label_of: mean_cell(study.of(experiment, metric, method, **cell))
                for metric, label_of in columns.items()
            }
            rows.append({"method": label, "seeds": len(seeds), **cells})
    return pd.DataFrame(rows)


def comparison_table(study: Study, experiment: str) -> pd.DataFrame:
    """Differences at the centre, paired by the seeds that both rows have: behaviour at matched utility and as trained,
    and utility as trained."""
    import pandas as pd

    metrics = {
        behaviour(experiment): "at matched utility",
        OBJECTIVES[experiment][0]: "as trained",
        "utility": "utility as trained",
    }
    rows = []
    for two in COMPARISONS:
        found = {
            said: paired(*(study.of(experiment, metric, method, control=control) for method, control in two))
            for metric, said in metrics.items()
        }
        if all(found.values()):
            label = " - ".join(CONTROLS[method][1] if control else METHODS[method].label for method, control in two)
            rows.append(
                {
                    "experiment": experiment,
                    "difference": label,
                    "seeds": len(found["as trained"]),
                    **{said: difference_cell(values) for said, values in found.items()},
                }
            )
    return pd.DataFrame(rows)


def cost_table(study: Study, experiment: str) -> pd.DataFrame:
    """What one student of a method takes at the centre, mean over seeds."""
    import pandas as pd

    rows = []
    for method in ROWS:
        costs = {label: list(study.of(experiment, metric, method).values()) for metric, label in COSTS.items()}
        if costs["judge's verdicts"] and any(costs["tokens trained on"]):
            rows.append(
                {"method": METHODS[method].label, **{label: f"{fmean(values):.0f}" for label, values in costs.items()}}
            )
    return pd.DataFrame(rows)


def elsewhere_table(study: Study) -> pd.DataFrame:
    """Safety in the cells that lie on no drawn axis: wanted behaviour at matched utility, a row a cell, rDPO - DPO and
    DPO on accepted pairs - DPO paired by seed, and the mean utility as trained of DPO, rDPO and DPO on accepted pairs."""
    import pandas as pd

    rows = []
    for label, cell in {"centre, for comparison": {}, **ELSEWHERE}.items():
        found = {method: study.few("safety", behaviour("safety"), method, **cell) for method in MAIN}
        if found["rdpo"] and found["dpo"]:
            kept = [
                study.few("safety", "utility", method, **cell).values() for method in ("dpo", "rdpo", "rdpo_filter")
            ]
            rows.append({
                "cell": label, **{METHODS[method].label: mean_cell(values) for method, values in found.items()}, "rDPO - DPO": difference_cell(paired(found["rdpo"], found["dpo"])),
                "accepted - DPO": difference_cell(paired(found["rdpo_filter"], found["dpo"])), "utility as trained, DPO / rDPO / accepted": " / ".join(f"{fmean(values):.2f}" if values else "-" for values in kept),
            })  # fmt: skip
    return pd.DataFrame(rows if len(rows) > 1 else [])


def gains_table(study: Study) -> pd.DataFrame:
    """Safety as trained, gained over the base student, paired by seed, as the judge of the pairs, another judge and the
    oracle see it. A judge that turns a share e of its verdicts around, whatever the answer, sees 1 - 2e of a gain, so a
    judge's gain is divided by that: what the judge of the pairs then sees above the oracle is over-optimisation."""
    import pandas as pd

    rows = []
    for label, cell, error in (
        ("10 % errors", {}, 0.1),
        ("30 % errors", {"judge_error": 0.3}, 0.3),
        ("10 % errors, blind to one wrapper", {"blind_to": BLIND_TO}, 0.1),
    ):
        for method in ("dsc", "rdpo", "rdpo_filter"):
            gain = lambda metric: paired(*(study.of("safety", metric, row, **cell) for row in (method, "base")))  # noqa: B023, E731
            oracle, second, reward = (
                gain("harmlessness"),
                [value / (1 - 2 * FINAL_JUDGE_ERROR) for value in gain("judged")],
                [value / (1 - 2 * error) for value in gain("reward")],
            )
            if oracle and second and reward:
                rows.append({"judge of the pairs": label, "method": METHODS[method].label, "oracle": difference_cell(oracle), "second judge": difference_cell(second), "judge of the pairs sees": difference_cell(reward),
                             "above the oracle": difference_cell([own - true for own, true in zip(reward, oracle)])})  # fmt: skip
    return pd.DataFrame(rows)


def blind_table(study: Study) -> pd.DataFrame:
    """Harmlessness as trained, by the oracle, where the judge of the pairs is blind and elsewhere, after pairs of a
    judge that sees all and of the blind one; differences paired by seed."""
    import pandas as pd

    rows = []
    for method in ("base", "dsc", "rdpo", "rdpo_filter"):
        for where, metric in (
            ("in the wrapper", "harmlessness_blind"),
            ("in all others, and in none", "harmlessness_seen"),
        ):
            sees, blind = (study.few("safety", metric, method, blind_to=blind_to) for blind_to in ("", BLIND_TO))
            if sees and blind:
                rows.append(
                    {
                        "method": METHODS[method].label,
                        "harmful prompts": where,
                        "judge sees all": mean_cell(sees),
                        "judge is blind": mean_cell(blind),
                        "difference": difference_cell(paired(blind, sees)),
                    }
                )
    return pd.DataFrame(rows)


def settings_table(study: Study) -> pd.DataFrame:
    """Safety at the centre with one value of a method's chosen setting changed: behaviour at matched utility, its
    difference to the chosen setting paired by seed, and utility as trained."""
    import pandas as pd

    rows = []
    for method, changes in ABLATED.items():
        for change in ({}, *({name: value} for name, values in changes.items() for value in values)):
            matched, utility = (
                study.of("safety", metric, method, **change) for metric in (behaviour("safety"), "utility")
            )
            if matched:
                said = ", ".join(f"{name} {value}".removesuffix(".0") for name, value in change.items()) or "as chosen"
                difference = (
                    difference_cell(paired(matched, study.of("safety", behaviour("safety"), method))) if change else "-"
                )
                rows.append(
                    {
                        "method": METHODS[method].label,
                        "setting": said,
                        "at matched utility": mean_cell(matched),
                        "difference": difference,
                        "utility as trained": mean_cell(utility),
                    }
                )
    return pd.DataFrame(rows if any(row["difference"] != "-" for row in rows) else [])


def oracle_table(study: Study, trials: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """What it costs to choose settings by the reward judge's view: behaviour at matched utility with what the oracle
    would have chosen from the same trials, and its difference, paired by seed, to what the judge chose.

    Args:
        trials: content of `trials.json` by experiment.
    """
    import pandas as pd

    rows = []
    for experiment, of_experiment in trials.items():
        for method, setting in of_experiment["chosen"].items():
            by_oracle, by_judge = (
                study.of(experiment, behaviour(experiment), method, **cell) for cell in ({"chosen_by": "oracle"}, {})
            )
            if by_oracle:
                rows.append({"experiment": experiment, "method": METHODS[method].label, "chosen by the judge": _said(setting), "judge's choice": mean_cell({seed: by_judge[seed] for seed in by_oracle}),
                             "oracle's choice": mean_cell(by_oracle), "difference": difference_cell(paired(by_oracle, by_judge))})  # fmt: skip
    return pd.DataFrame(rows)


def _said(setting: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value:g}" for name, value in setting.items() if name != "sft_learning_rate"
    )


def difference_cell(values: Sequence[float]) -> str:
    """Mean difference with its t-interval; "-" for fewer than two."""
    if len(values) < 2:
        return "-"
    mean, low, high = seed_interval(values)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def correction_table(study: Study) -> pd.DataFrame:
    """How far the final judge's view of a row lies from the oracle's, as it is and corrected by labels, over all rows
    at the centre: mean absolute error, and how often the corrected interval holds the oracle's rate."""
    import pandas as pd

    rows = []
    for experiment in study.experiments():
        objective, errors, held = OBJECTIVES[experiment][0], {"judged": [], "judged_corrected": []}, []
        for method in ROWS:
            truth, corrected = study.of(experiment, objective, method), study.of(experiment, "judged_corrected", method)
            for seed in corrected:
                for name, values in errors.items():
                    values.append(abs(study.of(experiment, name, method)[seed] - truth[seed]))
                low, high = study.interval(experiment, "judged_corrected", method, seed)
                held.append(low <= truth[seed] <= high)
        if held:
            row = {
                "experiment": experiment,
                "rows": len(held),
                "error as judged": sum(errors["judged"]) / len(held),
                "error corrected": sum(errors["judged_corrected"]) / len(held),
            }
            rows.append(
                {name: f"{value:.3f}" if isinstance(value, float) else value for name, value in row.items()}
                | {"interval holds the truth": f"{sum(held) / len(held):.0%}"}
            )
    return pd.DataFrame(rows)


def mean_cell(values: Mapping[int, float]) -> str:
    """Mean over seeds with its t-interval; "-" for none."""
    if not values:
        return "-"
    mean, low, high = seed_interval(list(values.values()))
    digits = 2 if abs(mean) < 10 else 1
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def contrast_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([
        {"experiment": row["experiment"], "contrast": row["contrast"], "difference": f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]", "seeds": row["seeds"],
         "p": _p(row["p"]), "p (Holm)": _p(row["p_holm"]), "p (sign flips)": _p(row["p_sign_flips"])}
        for row in rows
    ])  # fmt: skip


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-4 else "< 0.0001"
