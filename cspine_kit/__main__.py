"""`python -m cspine_kit` is the console script `cspine`."""

import sys

from cspine_kit.cli import main

sys.exit(main())
