"""The router, the kernel's helper and pptp-nat side by side: ``python -m benchmarks``."""
