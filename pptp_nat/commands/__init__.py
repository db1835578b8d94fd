"""The commands of ``pptp-nat``, imported one at a time by `pptp_nat.cli`.

A command takes what argparse found and returns the exit code; what goes wrong
it raises as a `pptp_nat.errors.PptpNatError`.
"""
