package boot

import (
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

func TestParseCommandLine(t *testing.T) {
	got := parseCommandLine("quiet  hearth.base=base hearth.net=10.0.2.15/24,10.0.2.2,10.0.2.3 a=b=c hearth.base=last\n")
	for k, want := range map[string]string{"hearth.base": "last", "hearth.net": "10.0.2.15/24,10.0.2.2,10.0.2.3", "a": "b=c", "quiet": ""} {
		if v, ok := got[k]; !ok || v != want {
			t.Errorf("%s = %q, want %q", k, v, want)
		}
	}
}

func TestParseAddress(t *testing.T) {
	a, err := parseAddress("10.0.2.15/24,10.0.2.2,10.0.2.3")
	want := address{netip.MustParsePrefix("10.0.2.15/24"), netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("10.0.2.3")}
	if err != nil || a != want {
		t.Error(a, err)
	}
	if a, err := parseAddress("10.0.2.15/24,,"); err != nil || a.gateway.IsValid() || a.dns.IsValid() {
		t.Error(a, err)
	}
	for _, bad := range []string{"", "10.0.2.15", "10.0.2.15/33", "fe80::1/64", "10.0.2.15/24,x", "10.0.2.15/24,::1", "10.0.2.15/24,10.0.2.2,10.0.2.3,10.0.2.4"} {
		if a, err := parseAddress(bad); err == nil {
			t.Errorf("%q: %v", bad, a)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	f.Add("10.0.2.15/24,10.0.2.2,10.0.2.3")
	f.Fuzz(func(t *testing.T, s string) {
		if a, err := parseAddress(s); err == nil && !a.prefix.Addr().Is4() {
			t.Error(a)
		}
	})
}

func TestIdentify(t *testing.T) {
	for want, change := range map[string]func([]byte){
		"":         func([]byte) {},
		"ext4":     func(b []byte) { b[1024+56], b[1024+57] = 0x53, 0xef },
		"erofs":    func(b []byte) { copy(b[1024:], "\xe2\xe1\xf5\xe0") },
		"squashfs": func(b []byte) { copy(b, "hsqs") },
	} {
		b := make([]byte, 4096)
		change(b)
		if got := identify(b); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestFindDiskRefusesPaths(t *testing.T) {
	for _, bad := range []string{"", "/dev/", "../etc", "/dev/disk/x"} {
		if dev, err := findDisk(bad, 0); err == nil {
			t.Errorf("%q: %s", bad, dev)
		}
	}
	if _, err := findDisk("no-such-disk", 0); err == nil {
		t.Error("found it")
	}
}

// The netlink messages, tried on a network name space of their own.
func TestNetlink(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread is thrown away with its name space
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		t.Skipf("SKIPPED, NETLINK WAS NOT TRIED: a network name space needs root: %v", err)
	}
	n, err := openNetlink()
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	// /sys shows the name space of whoever mounted it, so the interface goes by the number all have.
	if i, err := index("lo"); err != nil || i != 1 {
		t.Fatal(i, err)
	}
	if err := n.up("lo"); err != nil {
		t.Fatal(err)
	}
	a := netip.MustParsePrefix("10.9.8.7/24")
	for range 2 { // the second time it replaces
		if err := n.address(syscall.RTM_NEWADDR, syscall.NLM_F_CREATE|syscall.NLM_F_REPLACE, "lo", a); err != nil {
			t.Fatal(err)
		}
		if err := n.route("lo", netip.MustParseAddr("10.9.8.1")); err != nil {
			t.Fatal(err)
		}
	}
	tables := read(t, "/proc/thread-self/net/fib_trie") + read(t, "/proc/thread-self/net/route")
	if !strings.Contains(tables, "10.9.8.7") || !strings.Contains(tables, "lo\t00000000\t0108090A") {
		t.Error(tables)
	}
	if err := n.address(syscall.RTM_DELADDR, 0, "lo", a); err != nil {
		t.Error(err)
	}
	if err := n.address(syscall.RTM_DELADDR, 0, "lo", a); err != syscall.EADDRNOTAVAIL {
		t.Error(err)
	}
	if err := n.setMAC("lo", "nonsense"); err == nil {
		t.Error("set nonsense")
	}
	if err := n.route("lo", netip.MustParseAddr("192.0.2.1")); err == nil {
		t.Error("a gateway nobody can reach")
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	other := dir + "/other"
	os.WriteFile(other, []byte("untouched"), 0o600)
	os.Symlink(other, dir+"/link")
	if err := replaceFile(dir+"/link", "new"); err != nil {
		t.Fatal(err)
	}
	if read(t, dir+"/link") != "new" || read(t, other) != "untouched" {
		t.Error("wrote through the link")
	}
	if err := replaceFile(dir+"/made/for/it", "new"); err != nil || read(t, dir+"/made/for/it") != "new" {
		t.Error(err)
	}
}

// This host has a timer; a machine that has none is what the driver's tests boot with "noapictimer".
func TestCheckTimer(t *testing.T) {
	if err := new(machine).checkTimer(); err != nil {
		t.Error(err)
	}
}
