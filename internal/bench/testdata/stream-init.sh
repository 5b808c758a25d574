#!/bin/busybox sh
# PID 1 of the guest that the stream benchmark boots: it starts the appliance's
# service on the first disk.
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
while read -r m; do $bb insmod "/$m"; done </modules
n=0
until [ -e /dev/vda ]; do
	n=$((n + 1))
	[ $n -lt 1000 ] || exec $bb poweroff -f
	$bb usleep 10000
done
$bb mount -t ext4 /dev/vda /sysroot || $bb poweroff -f
for d in dev proc sys; do $bb mount -o bind /$d /sysroot/$d; done
$bb mount -t tmpfs run /sysroot/run
$bb ip link set lo up
$bb chroot /sysroot /srv/start once
$bb poweroff -f
