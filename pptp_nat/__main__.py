"""``python -m pptp_nat`` is ``pptp-nat``."""

import sys

from pptp_nat.cli import main

if __name__ == "__main__":
    sys.exit(main())
