"""`python -m enginerouter` is the same as `enginerouter`."""

import sys

from enginerouter.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
