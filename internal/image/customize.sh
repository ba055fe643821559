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

# Actions and tools look at the system to choose what they download, and know
# Ubuntu. What is built for Ubuntu 22.04 runs on this Debian, whose C library is the
# one newer, so that is what it says it is; HEARTH_SYSTEM names the real one.
# hearth-present debian says so everywhere.
mkdir -p "$root/usr/share/hearth/debian" "$root/usr/share/hearth/ubuntu"
cp "$root/usr/lib/os-release" "$root/usr/share/hearth/debian/os-release"
printf 'LANG=C.UTF-8\n' >"$root/usr/share/hearth/debian/environment"
: >"$root/usr/share/hearth/debian/lsb-release"
real=$(. "$root/usr/lib/os-release" && echo "$PRETTY_NAME")
cat >"$root/usr/share/hearth/ubuntu/os-release" <<EOF
PRETTY_NAME="Ubuntu 22.04.5 LTS"
NAME="Ubuntu"
VERSION_ID="22.04"
VERSION="22.04.5 LTS (Jammy Jellyfish)"
VERSION_CODENAME=jammy
ID=ubuntu
ID_LIKE=debian
UBUNTU_CODENAME=jammy
HEARTH_SYSTEM="$real"
EOF
cat >"$root/usr/share/hearth/ubuntu/lsb-release" <<'EOF'
DISTRIB_ID=Ubuntu
DISTRIB_RELEASE=22.04
DISTRIB_CODENAME=jammy
DISTRIB_DESCRIPTION="Ubuntu 22.04.5 LTS"
EOF
printf 'LANG=C.UTF-8\nImageOS=ubuntu22\nImageVersion=20261128.1.0\nHEARTH_SYSTEM=%s\n' "$real" >"$root/usr/share/hearth/ubuntu/environment"
cat >"$root/usr/local/sbin/hearth-present" <<'EOF'
#!/bin/sh
# hearth-present ubuntu|debian: what system this one says it is.
set -eu
from=/usr/share/hearth/${1:?ubuntu or debian}
rm -f /etc/os-release
cp "$from/os-release" /etc/os-release
cp "$from/lsb-release" /etc/lsb-release
cp "$from/environment" /etc/environment
EOF
chmod 0755 "$root/usr/local/sbin/hearth-present"
chroot "$root" /usr/local/sbin/hearth-present ubuntu

# pip installs for the user who asks, as on GitHub's images.
rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
printf '[safe]\n\tdirectory = *\n[init]\n\tdefaultBranch = main\n' >"$root/etc/gitconfig"

# apt as on GitHub's images: it never asks, and it tries again.
cat >"$root/etc/apt/apt.conf.d/90hearth" <<'EOF'
APT::Get::Assume-Yes "true";
Acquire::Retries "5";
DPkg::Use-Pty "false";
EOF
# There is no init to start services with.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 0755 "$root/usr/sbin/policy-rc.d"

# No .deb stays, but apt's digested lists do: making them again takes apt ten
# seconds on an emulated processor.
rm -f "$root"/var/cache/apt/archives/*.deb "$root"/var/cache/apt/archives/partial/*
chroot "$root" apt-cache gencaches
rm -rf "$root"/var/log/apt/* "$root"/var/log/dpkg.log "$root"/var/log/alternatives.log
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"
