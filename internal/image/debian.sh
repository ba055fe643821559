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

