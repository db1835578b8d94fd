# A stub: the addresses are in a file.
network_get_ipaddr() {
	eval "$1=\$(sed -n 's/^$2 //p' /tmp/addresses 2>/dev/null)"
	eval "[ -n \"\$$1\" ]"
}
