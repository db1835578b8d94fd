# A stub: UCI's shell functions.  A configuration is sourced, and calls back as OpenWrt's does.
_count=0
reset_cb() {
	config_cb() { :; }
	option_cb() { :; }
	list_cb() { :; }
}
reset_cb
config() {
	_count=$((_count + 1))
	_section=${2:-cfg$_count}
	_sections="$_sections $_section"
	eval "_type_$_section=\$1"
	config_cb "$1" "$_section"
}
option() {
	eval "_value_${_section}_$1=\$2"
	option_cb "$1" "$2"
}
list() { list_cb "$1" "$2"; }
config_load() {
	_section='' _sections=''
	[ -f "/etc/config/$1" ] || return 1
	. "/etc/config/$1"
	config_cb
}
config_get() {
	eval "_found=\${_value_$2_$3-}"
	eval "$1=\${_found:-\$4}"
}
config_get_bool() {
	config_get _bool "$2" "$3" "$4"
	case "$_bool" in 1 | on | true | yes | enabled) _bool=1 ;; *) _bool=0 ;; esac
	eval "$1=\$_bool"
}
config_foreach() {
	for _each in $_sections; do
		eval "_this=\$_type_$_each"
		[ "$_this" != "$2" ] || "$1" "$_each"
	done
}
