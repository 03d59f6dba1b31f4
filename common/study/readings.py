"""The study of both readings of refined DPO and of recipes (`design.READINGS`): runs it and writes `results/readings/`.

    python -m common.study.readings [--jobs N]

Its rows are of this machine's own base students, in a folder of their own; settings of the methods that the first study
has tried are those that its trials chose, the others get the same eight trials on the same seeds.
"""

from __future__ import annotations

import argparse
import os
import sys

from common.notebook.profiles import experiments
from common.runtime import escape_what_the_terminal_lacks, resolve
from common.study.design import OF_READINGS
from common.study.run import run_study

RESULTS = resolve("results/readings")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m common.study.readings", description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="rows side by side, a thread each")
    asked = parser.parse_args()
    if asked.jobs < 1:
        parser.error("--jobs must be at least 1")
    escape_what_the_terminal_lacks()
    failed = run_study(experiments(), OF_READINGS, asked.jobs, RESULTS)
    sys.exit("\n".join(f"FAILED {failure}" for failure in failed) if failed else 0)


if __name__ == "__main__":
    main()
