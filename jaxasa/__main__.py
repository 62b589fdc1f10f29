# SPDX-License-Identifier: Apache-2.0
"""`python -m jaxasa`: the command line."""

import sys

from jaxasa.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
