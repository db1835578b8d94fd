# shellcheck shell=sh
# From UCI to TOML.  Sourced by /etc/init.d/pptp-nat, behind /lib/functions.sh.
#
# Sections and options have the names that the TOML file gives them, so one table (the file
# keys: section.option, kind, live or fixed) is all there is to know.  What a value may be is
# not repeated here: the daemon checks the file, and its complaint names section and option.

PPTP_NAT_KEYS=${PPTP_NAT_KEYS:-/usr/lib/pptp-nat/keys}
NL='
'

# pptp_nat_generate FILE: write the configuration of /etc/config/pptp-nat to FILE.  Complaints
# go to standard error, one line each; the result is then 1.  Afterwards PPTP_NAT_FIXED holds
# what a running daemon cannot take over, and PPTP_NAT_<OPTION> the options of the router.
pptp_nat_generate() {
	pptp_nat_wrong=0 pptp_nat_section='' pptp_nat_type='' pptp_nat_told=''
	PPTP_NAT_TOML='' PPTP_NAT_FIXED=''
	PPTP_NAT_ENABLED=1 PPTP_NAT_GUARD=0 PPTP_NAT_JAIL=0 PPTP_NAT_INTERFACE='' PPTP_NAT_PORT=9723
	PPTP_NAT_TEXTFILE=''
	PPTP_NAT_LISTEN=off PPTP_NAT_DIRECTORY=/var/lib/pptp-nat PPTP_NAT_BACKEND=auto
	pptp_nat_list='' pptp_nat_list_name='' pptp_nat_list_kind='' pptp_nat_list_live=''

	# shellcheck disable=SC2329  # config_load calls these
	config_cb() { pptp_nat_begin "$1" "$2"; }
	# shellcheck disable=SC2329
	option_cb() { pptp_nat_option "$1" "$2"; }
	# shellcheck disable=SC2329
	list_cb() { pptp_nat_item "$1" "$2"; }
	config_load pptp-nat || return 1
	pptp_nat_begin '' ''
	reset_cb

	[ "$pptp_nat_wrong" = 0 ] || return 1
	printf '# Made from /etc/config/pptp-nat: a change here is lost.\n%s' "$PPTP_NAT_TOML" >"$1"
}

pptp_nat_complain() {
	echo "pptp-nat: /etc/config/pptp-nat: $1" >&2
	pptp_nat_wrong=1
}

# pptp_nat_begin TYPE NAME: a section begins.  An anonymous one goes by its type.
pptp_nat_begin() {
	pptp_nat_flush
	[ "$pptp_nat_section" != metrics ] || pptp_nat_listen
	pptp_nat_type=$1 pptp_nat_section=''
	[ -n "$1" ] || return 0
	case "$1" in
		main) ;;
		*)
			if ! grep -q "^$1\." "$PPTP_NAT_KEYS" 2>/dev/null; then
				pptp_nat_complain "section '$1': there is no such section"
				pptp_nat_type=''
				return 0
			fi
			;;
	esac
	case " $pptp_nat_told " in
		*" $1 "*)
			pptp_nat_complain "section '$1': stands there twice; one is enough"
			pptp_nat_type=''
			return 0
			;;
	esac
	pptp_nat_told="$pptp_nat_told $1"
	pptp_nat_section=$1
	[ "$1" = main ] || PPTP_NAT_TOML="$PPTP_NAT_TOML${NL}[$1]$NL"
}

pptp_nat_option() {
	local kind live
	[ -n "$pptp_nat_type" ] || return 0
	pptp_nat_flush
	case "$pptp_nat_section.$1" in
		main.enabled | main.guard | main.jail)
			case "$2" in
				0 | 1) ;;
				*) pptp_nat_complain "section 'main', option '$1': '$2' is neither 0 nor 1" ;;
			esac
			case "$1" in
				enabled) PPTP_NAT_ENABLED=$2 ;;
				guard) PPTP_NAT_GUARD=$2 ;;
				jail) PPTP_NAT_JAIL=$2 ;;
			esac
			return 0
			;;
		metrics.interface) PPTP_NAT_INTERFACE=$2; return 0 ;;
		metrics.port)
			case "$2" in
				'' | *[!0-9]* | 0*)
					pptp_nat_complain "section 'metrics', option 'port': '$2' is no whole number above 0" ;;
			esac
			PPTP_NAT_PORT=$2
			return 0
			;;
		# These are told to others besides the daemon.
		metrics.listen) PPTP_NAT_LISTEN=$2; return 0 ;;
		metrics.textfile) PPTP_NAT_TEXTFILE=$2 ;;
		state.directory) PPTP_NAT_DIRECTORY=$2 ;;
		rules.backend) PPTP_NAT_BACKEND=$2 ;;
		rules.manage) pptp_nat_complain \
			"section 'rules', option 'manage': the rules are this script's; leave it out"; return 0 ;;
	esac
	pptp_nat_key "$1" || return 0
	case "$kind" in
		wholes | texts) # a list of one, written as an option
			pptp_nat_item "$1" "$2"
			;;
		*) pptp_nat_write "$1" "$(pptp_nat_value "$kind" "$2")" "$live" ;;
	esac
}

pptp_nat_item() {
	local kind live value
	[ -n "$pptp_nat_type" ] || return 0
	[ "$pptp_nat_list_name" = "$1" ] || pptp_nat_flush
	pptp_nat_key "$1" || return 0
	case "$kind" in
		wholes) value=$(pptp_nat_value whole "$2") ;;
		texts) value=$(pptp_nat_value text "$2") ;;
		*)
			pptp_nat_complain \
				"section '$pptp_nat_section', list '$1': takes one value; write 'option $1'"
			return 0
			;;
	esac
	pptp_nat_list_name=$1 pptp_nat_list_live=$live
	pptp_nat_list="$pptp_nat_list${pptp_nat_list:+, }$value"
}

# Write the list that has been collected, if there is one.
pptp_nat_flush() {
	[ -n "$pptp_nat_list_name" ] || return 0
	pptp_nat_write "$pptp_nat_list_name" "[$pptp_nat_list]" "$pptp_nat_list_live"
	pptp_nat_list='' pptp_nat_list_name=''
}

# pptp_nat_key OPTION: set kind and live of an option of this section, or complain.
pptp_nat_key() {
	local line
	line=$(grep "^$pptp_nat_section\.$1 " "$PPTP_NAT_KEYS" 2>/dev/null)
	if [ -z "$line" ]; then
		pptp_nat_complain "section '$pptp_nat_section', option '$1': there is no such option"
		return 1
	fi
	# shellcheck disable=SC2034  # the first word is the name that was looked for
	read -r line kind live <<-END
		$line
	END
}

# pptp_nat_value KIND TEXT: print TEXT as a value of TOML.  What is no number is written as the
# string that it is, so that the daemon can say what is wrong with it.
pptp_nat_value() {
	case "$1" in
		whole)
			case "$2" in
				0x*[!0-9a-fA-F]* | 0x) ;;
				0x*) printf '%s' "$2"; return ;;
				'' | *[!0-9]* | 0?*) ;;
				*) printf '%s' "$2"; return ;;
			esac
			;;
		number)
			case "$2" in
				'' | *[!0-9.]* | .* | *. | *.*.* | 0[0-9]*) ;;
				*) printf '%s' "$2"; return ;;
			esac
			;;
		switch)
			case "$2" in
				1 | on | true | yes) printf true; return ;;
				0 | off | false | no) printf false; return ;;
			esac
			;;
	esac
	printf '"%s"' "$(printf '%s' "$2" | sed -e 's/[\\"]/\\&/g' -e 's/	/\\t/g' | sed -e ':a' -e 'N;$!ba' -e 's/\n/\\n/g')"
}

# pptp_nat_write OPTION VALUE LIVE
pptp_nat_write() {
	PPTP_NAT_TOML="$PPTP_NAT_TOML$1 = $2$NL"
	[ "$3" = live ] || PPTP_NAT_FIXED="$PPTP_NAT_FIXED$pptp_nat_section.$1=$2;"
}

# The section metrics ends: put the address of its interface in place of metrics.listen.
pptp_nat_listen() {
	local address=''
	if [ -n "$PPTP_NAT_INTERFACE" ]; then
		network_get_ipaddr address "$PPTP_NAT_INTERFACE"
		if [ -n "$address" ]; then
			PPTP_NAT_LISTEN="$address:$PPTP_NAT_PORT"
		else
			# It will have one some time; then a trigger has us come back.
			echo "pptp-nat: metrics wait: network '$PPTP_NAT_INTERFACE' has no address yet" >&2
			PPTP_NAT_LISTEN=off
		fi
	fi
	pptp_nat_write listen "$(pptp_nat_value text "$PPTP_NAT_LISTEN")" fixed
}
