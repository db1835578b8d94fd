"""A laboratory: network namespaces with LAN clients, a NAT router and PPTP servers.

`network` builds and removes the namespaces, `router` runs what is to be tried
in the router's, `peers` are our own PPTP ends, `real_peers` those that Debian
ships, and `demo` is all of it in ten seconds.  Nothing here touches the
machine's own network, and nothing else in the package imports it.
"""
