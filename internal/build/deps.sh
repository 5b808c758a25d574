#!/bin/sh
# Installs the Debian packages that `make test` and `make bench` need and that
# are missing; with the argument demo, only those of `make demo`. Says what it
# does; says nothing if all is there.
set -eu

# A program or file that shows that a package is there, and the package.
demo='
/bin/busybox busybox-static
/sbin/mke2fs e2fsprogs
/usr/bin/xz xz-utils
/etc/ssl/certs/ca-certificates.crt ca-certificates
'
rest='
/usr/bin/qemu-system-x86_64 qemu-system-x86
/usr/bin/qemu-img qemu-utils
/usr/bin/qemu-aarch64 qemu-user
/usr/share/seabios/bios-microvm.bin seabios
/usr/bin/gcc gcc
/usr/include/stdio.h libc6-dev
/usr/include/linux/kvm.h linux-libc-dev
/sbin/ip iproute2
/usr/bin/zstd zstd
/usr/bin/iasl acpica-tools
/usr/bin/nbdkit nbdkit
/usr/bin/nbdinfo libnbd-bin
'
needs=$demo
[ "${1:-}" = demo ] || needs=$demo$rest

missing=
while read -r file package; do
	if [ -n "$file" ] && [ ! -e "$file" ]; then
		missing="$missing $package"
	fi
done <<END
$needs
END
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
	echo "These Debian packages are needed, and there is no apt-get to install them:$missing" >&2
	exit 1
fi
sudo=
if [ "$(id -u)" != 0 ]; then
	if ! command -v sudo >/dev/null; then
		echo "These Debian packages are needed; install them as root: apt-get install$missing" >&2
		exit 1
	fi
	sudo="sudo"
fi

echo "Installing missing Debian packages:$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run() {
	if ! $sudo env DEBIAN_FRONTEND=noninteractive "$@" </dev/null >"$log" 2>&1; then
		cat "$log" >&2
		return 1
	fi
}
# The package lists of a new machine are missing, and those of an old one name
# versions that are gone.
# shellcheck disable=SC2086 # $missing is a list
install() { run apt-get install -y --no-install-recommends $missing; }
if ! ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1; then
	echo "Fetching apt's package lists"
	run apt-get update
fi
install 2>/dev/null || {
	echo "Fetching newer package lists"
	run apt-get update
	install
}
echo "Installed:$missing"
