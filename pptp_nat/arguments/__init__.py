"""What each command takes, apart from what it does: reading an option loads no kernel library.

A function here adds one command to the parser of `pptp_nat.cli` and names, as
``module:function``, what in `pptp_nat.commands` carries it out.
"""
