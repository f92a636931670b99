#!/bin/sh
# enter.sh ROOT UID:GID COMMAND...: runs the command in the root folder, in a mount namespace that is the caller's gift,
# with the kernel's file systems, as that user, and with an environment as systemd's.
set -eu
root=$1
user=$2
shift 2
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
for device in null zero random urandom; do
    : > "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir -m 1777 "$root/dev/shm"
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin LANG=C.UTF-8 HOSTILE="${HOSTILE:-}" \
    chroot --userspec="$user" --groups= "$root" "$@"
