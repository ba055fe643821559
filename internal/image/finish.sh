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
