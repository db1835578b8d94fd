"""``python -m pptp_nat`` is ``pptp-nat``."""

import signal
import sys


def main() -> int:
    """Do what the command line asks for; return the exit code.

    While modules are loaded nothing of ours is there that could tell of Ctrl-C: it ends the
    process as it ends others, without a traceback.
    """
    interrupting = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interrupting:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pptp_nat import cli  # noqa: PLC0415  see above

    if interrupting:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
