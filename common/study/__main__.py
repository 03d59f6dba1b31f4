"""python -m common.study: see `common.study.run`."""

from common.study.run import main

if __name__ == "__main__":
    main()
