"""Many PPTP clients behind one address: a NAT helper for Linux, in user space."""

__version__ = "0.1.0"
