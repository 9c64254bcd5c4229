"""`python -m trueline` is `trueline`."""

import sys

from trueline.cli import main

sys.exit(main())
