"""`python -m ctssl.cli`."""

import sys

from ctssl.cli.main import main

sys.exit(main())
