#!/bin/sh
# Fetches the real programs that the tests call with (marker `peer`), where this user may install packages.
# Never fails: what stays missing is named, and the tests that need it are skipped by name.
missing() {
    command -v baresip >/dev/null 2>&1 || echo baresip-core
    command -v sipp >/dev/null 2>&1 || echo sip-tester
    command -v kamailio >/dev/null 2>&1 || [ -x /usr/sbin/kamailio ] || echo kamailio
    [ -n "$(ls /usr/lib/*/kamailio/modules/tls.so /usr/lib/kamailio/modules/tls.so 2>/dev/null)" ] ||
        echo kamailio-tls-modules
    command -v linphonec >/dev/null 2>&1 || echo linphone-cli
    command -v tshark >/dev/null 2>&1 || echo tshark
    command -v dnsmasq >/dev/null 2>&1 || [ -x /usr/sbin/dnsmasq ] || echo dnsmasq-base
    command -v firefox-esr >/dev/null 2>&1 || command -v firefox >/dev/null 2>&1 || echo firefox-esr
    command -v chromium >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 || echo chromium
}

wanted=$(missing | xargs)
[ -z "$wanted" ] && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "peers: not found: $wanted (names of Debian packages; no apt-get here). Their tests will be skipped."
    exit 0
elif [ "$(id -u)" = 0 ]; then
    root=
elif sudo -n true 2>/dev/null; then
    root=sudo
else
    echo "peers: not found: $wanted. Their tests will be skipped; to have them: sudo apt-get install $wanted"
    exit 0
fi

echo "peers: installing $wanted"
log=$(mktemp)
$root apt-get update -qq >"$log" 2>&1
for package in $wanted; do
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends "$package" >>"$log" 2>&1 ||
        { echo "peers: $package could not be installed:"; tail -3 "$log"; }
done
rm -f "$log"
left=$(missing | xargs)
[ -z "$left" ] || echo "peers: still not found: $left. Their tests will be skipped."
