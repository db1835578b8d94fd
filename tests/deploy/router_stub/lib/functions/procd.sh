# A stub: one line for each thing that procd is told, its words ended by 0x1F.
procd() {
	printf '%s\037' "$@" >>/tmp/procd
	echo >>/tmp/procd
}
procd_open_instance() { procd open "$@"; }
procd_close_instance() { procd close; }
procd_set_param() { procd "$@"; }
procd_append_param() { procd append "$@"; }
procd_send_signal() { procd signal "$@"; }
procd_add_jail() { procd jail "$@"; }
procd_add_jail_mount() { procd mount "$@"; }
procd_add_jail_mount_rw() { procd mount_rw "$@"; }
procd_add_reload_trigger() { procd trigger "$@"; }
procd_add_reload_interface_trigger() { procd interface "$@"; }
