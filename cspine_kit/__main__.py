"""`python -m cspine_kit` is the console script `cspine`.

In: arguments. Out: the script's exit status. Example: `python -m cspine_kit --version`.
"""

import sys

from cspine_kit.cli import main

sys.exit(main())
