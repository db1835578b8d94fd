"""Fire for longer: ``python -m tests.fuzz [EXAMPLES [PYTEST ARGUMENTS]]``, 20,000 each by default.

Runs the properties of ``tests/core`` as well.  Other examples in every run; a
failure prints the smallest one found, ready to be pinned with ``@example``.
"""

import os
import sys

import pytest

from tests.core.effort import VARIABLE

os.environ[VARIABLE] = sys.argv[1] if len(sys.argv) > 1 else "20000"
targets = sys.argv[2:] or ["tests/fuzz", "tests/core"]
sys.exit(pytest.main(["-q", "-x", "-p", "no:randomly", *targets]))
