"""`python -m flanjax.data list|show|stats|lint|fetch`; see `flanjax.data_door`."""

import sys

from flanjax.data_door import main

sys.exit(main())
