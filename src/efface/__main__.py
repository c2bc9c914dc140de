"""``python -m efface``: the command line, as ``accelerate launch -m efface`` needs it."""

import sys

from efface.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
