"""The study service: its commands, and what they share."""

import os
import signal
import sys

if sys.argv[:1] == ["-m"]:  # one of the commands
    # Pictures are files; a notebook names a backend of its own to what it starts, which need not be installed here.
    os.environ["MPLBACKEND"] = "agg"
    # They import for a moment before `cli.run` can answer Ctrl-C; until then it ends them without a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
