"""`python -m kit`: see `kit.jobs.command_line`."""

import sys

from kit.jobs.command_line import main

if __name__ == "__main__":
    sys.exit(main())
