"""python -m common.study.systems: see `common.study.systems.run`."""

from common.study.systems.run import main

if __name__ == "__main__":
    main()
