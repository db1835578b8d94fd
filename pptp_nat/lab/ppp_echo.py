"""Stands in for pppd behind pptpd: answers each frame with itself and its own name.

pptpd runs it with a pseudo-terminal as standard input and output, and with
pppd's arguments, which it does not need.  pptpd reads no GRE before pppd has
said something, hence the greeting.
"""

from __future__ import annotations

import os
import sys
import termios
import tty

from pptp_nat.lab.hdlc import Deframer, frame

GREETING = b"hello"


def main() -> int:
    """Serve until the terminal is hung up."""
    if os.isatty(0):
        tty.setraw(0, termios.TCSANOW)  # what came already stays, pptpd wrote it before we were up
    name = f"{os.getpid()}.{os.urandom(6).hex()}".encode("ascii")
    frames = Deframer()
    os.write(1, frame(GREETING + b" from " + name))
    while True:
        try:
            octets = os.read(0, 65536)
        except OSError:  # pptpd is gone, and the terminal's other end with it
            return 0
        if not octets:
            return 0
        for body in frames.feed(octets):
            os.write(1, frame(body + b" from " + name))


if __name__ == "__main__":
    sys.exit(main())
