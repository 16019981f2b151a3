"""`python run.py --config=configs/NAME.py`: one config in, one result out; `--help` says more."""

import sys

from tljax.run.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
