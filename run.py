"""Entry point: `python run.py --config=configs/NAME.py`; `python run.py --help` lists the modes and flags."""

import sys

from tljax.run.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
