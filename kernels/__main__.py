"""python -m gemm_ladder"""

import sys

from gemm_ladder.cli import main

sys.exit(main())
