"""``python -m training.rlhf.generator_update``: see process.py."""

import sys

from training.rlhf.generator_update.process import main

if __name__ == "__main__":
    sys.exit(main())
