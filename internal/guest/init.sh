#!/bin/busybox sh
# PID 1 of a vmkit guest. It loads the modules of /vmkit/modules, mounts the
# root disk, runs the command of /vmkit/command in it over the virtio console
# ports vmkit.in, .out and .err, sends the exit status through vmkit.exit and
# powers off. Without a command it gives a shell on the console.
bb=/bin/busybox
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs dev /dev

say() { echo "vmkit-init: $*" >/dev/kmsg; }
halt() {
	trap '' TERM
	kill -9 -1 2>/dev/null
	cd /
	for d in dev/pts dev proc sys run tmp; do $bb umount -l /sysroot/$d 2>/dev/null; done
	$bb umount /sysroot 2>/dev/null || $bb mount -o remount,ro /sysroot 2>/dev/null
	$bb sync
	[ -z "$1" ] || [ ! -e /run/vmkit.exit ] || echo "$1" >/run/vmkit.exit
	$bb poweroff -f
	while :; do $bb sleep 60; done
}
fail() { say "$*"; [ ! -e /run/vmkit.err ] || echo "vmkit-init: $*" >/run/vmkit.err; halt 125; }

while read -r m; do $bb insmod "/vmkit/$m" || say "cannot load $m"; done </vmkit/modules
. /vmkit/config # root=, rootflags=, command=, net=, gateway=, TERM

# Ports and disks appear a moment after their driver; wait without hurry.
wait_for() {
	n=0
	until [ -e "$1" ]; do
		n=$((n + 1))
		[ $n -lt 1000 ] || return 1
		$bb usleep 10000
	done
}
find_ports() {
	for d in /sys/class/virtio-ports/*; do
		[ -e "$d/name" ] && read -r name <"$d/name" || continue
		[ -e "/run/$name" ] || [ ! -c "/dev/${d##*/}" ] || $bb ln -s "/dev/${d##*/}" "/run/$name"
	done
}
if [ -n "$command" ]; then
	n=0
	while find_ports; ! [ -e /run/vmkit.in -a -e /run/vmkit.out -a -e /run/vmkit.err -a -e /run/vmkit.exit ]; do
		n=$((n + 1))
		[ $n -lt 1000 ] || fail "no control ports"
		$bb usleep 10000
	done
fi

new=/
if [ -n "$root" ]; then
	wait_for "$root" || fail "no root disk $root"
	$bb mount -t "${rootfs:-ext4}" -o "${rootflags:-rw}" "$root" /sysroot || fail "cannot mount $root"
	new=/sysroot
	for d in dev proc sys run tmp; do [ -d /sysroot/$d ] || $bb mkdir /sysroot/$d 2>/dev/null; done
	for d in dev proc sys; do $bb mount -o bind /$d /sysroot/$d || say "no /$d in the root"; done
	$bb mount -t tmpfs run /sysroot/run 2>/dev/null
fi
$bb mkdir -p /dev/pts && $bb mount -t devpts devpts /dev/pts

$bb ip link set lo up 2>/dev/null
if [ -n "$net" ]; then
	wait_for /sys/class/net/eth0 || fail "no network device"
	$bb ip addr add "$net" dev eth0 && $bb ip link set eth0 up || fail "cannot set $net on eth0"
	[ -z "$gateway" ] || $bb ip route add default via "$gateway" || fail "no route via $gateway"
fi

if [ -n "$command" ]; then
	. /vmkit/command # set -- the words
	if [ -e /run/vmkit.signal ]; then
		while read -r name; do
			until [ -s /run/vmkit.pid ]; do $bb usleep 10000; done
			read -r pid </run/vmkit.pid
			kill -s "$name" "-$pid"
		done </run/vmkit.signal 2>/dev/null &
	fi
	# The command leads a process group of its own, which gets the signals.
	$bb setsid /bin/sh -c 'echo $$ >/run/vmkit.pid; exec /bin/busybox chroot "$@"' sh $new "$@" \
		</run/vmkit.in >/run/vmkit.out 2>/run/vmkit.err
	halt $?
fi
tty=/dev/ttyS0
n=0
while [ $n -lt 100 ]; do
	[ -c /dev/hvc0 ] && { tty=/dev/hvc0; break; }
	n=$((n + 1))
	$bb usleep 10000
done
$bb setsid -c $bb chroot $new /bin/sh -l <$tty >$tty 2>&1
halt
