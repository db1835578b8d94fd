"""The doctor: what keeps PPTP from passing through this router, or a server from answering.

Read `model` first, then `checks` for the table of what is looked at.  Nothing here
changes the router but `pptp_nat.linux.conntrack_path`, which makes two entries
between addresses that nobody has and removes them again.
"""
