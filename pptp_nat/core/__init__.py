"""The core: octets and a clock in, verdicts, octets and events out.

No socket, file, log, thread, clock or random source in here, and no import
from outside this folder, `pptp_nat.errors` and the pure standard library.
Read `translator` for the whole, `messages` for the fifteen control messages,
`stream` for TCP, `states` for the life of a call, `bindings` for the numbers.
"""
