#!/bin/sh
# Makes a Debian into a runner. Runs on the building machine, inside
# mmdebstrap's namespaces; $1 is the new root directory.
set -eu
root=$1

# The user every step runs as, with the ids that GitHub's images use.
chroot "$root" groupadd --gid 1001 runner
chroot "$root" useradd --uid 1001 --gid 1001 --create-home --shell /bin/bash runner
echo 'runner ALL=(ALL:ALL) NOPASSWD:ALL' >"$root/etc/sudoers.d/runner"
chmod 0440 "$root/etc/sudoers.d/runner"
chroot "$root" install -d -o runner -g runner /home/runner/work /home/runner/work/_temp /home/runner/work/_actions
chroot "$root" install -d -o runner -g runner -m 0777 /opt/hostedtoolcache
mkdir -p "$root/opt/hearth"

# Node and npm come from the tools disk; PATH finds them here.
for name in node npm npx; do
	ln -sf /opt/hearth/bin/$name "$root/usr/local/bin/$name"
done

# The network is the same inside every machine (internal/network).
echo hearth >"$root/etc/hostname"
printf '127.0.0.1 localhost hearth\n::1 localhost ip6-localhost ip6-loopback\n10.0.2.2 hearth.internal\n' >"$root/etc/hosts"
printf 'nameserver 10.0.2.3\noptions timeout:5 attempts:2\n' >"$root/etc/resolv.conf"

printf 'LANG=C.UTF-8\n' >"$root/etc/default/locale"

