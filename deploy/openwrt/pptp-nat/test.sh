#!/bin/sh
# Run by the feed's CI once the package is installed: test.sh PACKAGE VERSION

case "$1" in
	pptp-nat)
		pptp-nat --version | grep -F "$2" || exit 1
		/etc/init.d/pptp-nat enabled || exit 1
		pptp-nat run --check-config || exit 1
		;;
	pptp-nat-tools)
		echo | pptp-nat conntrack - || exit 1
		;;
esac
