"""Captures explained: the daemon's core read over recorded or passing packets.

Read `model` for what an analysis knows, `packets` for what a packet becomes on
its way there.  Nothing in here changes traffic, and nothing needs a package from
outside the standard library.
"""
