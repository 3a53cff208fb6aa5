from __future__ import annotations

import sys

from nigredo.cli import main

sys.exit(main())
