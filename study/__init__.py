"""The study service: its commands, and what they share."""

import signal
import sys

# The commands import for a moment before `cli.run` can answer Ctrl-C; until then it ends them without a traceback.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
