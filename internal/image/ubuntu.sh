# The system is what it says; the environment names it as GitHub's images do.
version=$(. "$root/usr/lib/os-release" && echo "$VERSION_ID")
printf 'LANG=C.UTF-8\nImageOS=ubuntu%s\nImageVersion=20261128.1.0\n' "${version%%.*}" >"$root/etc/environment"
mv "$root"/etc/apt/sources.list.d/*.list "$root/etc/apt/sources.list"

