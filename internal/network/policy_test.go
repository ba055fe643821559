package network

import (
	"net/netip"
	"strings"
	"testing"
)

// TestRanges: every special range is closed from its first address to its last and
// no further, and a policy opens the private ones alone.
func TestRanges(t *testing.T) {
	public, err := compile(Policy{})
	if err != nil {
		t.Fatal(err)
	}
	all, err := compile(Policy{Allow: []string{"0.0.0.0/0"}})
	if err != nil {
		t.Fatal(err)
	}
	special := func(ip netip.Addr) bool {
		never, private := classify(ip)
		return never != "" || private != ""
	}
	for prefix, opens := range map[string]bool{
		"0.0.0.0/8": false, "127.0.0.0/8": false, "169.254.0.0/16": false, "168.63.129.16/32": false, "100.100.100.200/32": false, "192.0.0.0/24": false,
		"224.0.0.0/4": false, "240.0.0.0/4": false, "10.0.0.0/8": true, "172.16.0.0/12": true, "192.168.0.0/16": true, "100.64.0.0/10": true, "192.0.2.0/24": true,
		"192.88.99.0/24": true, "198.18.0.0/15": true, "198.51.100.0/24": true, "203.0.113.0/24": true,
	} {
		p := netip.MustParsePrefix(prefix)
		first := p.Addr()
		b := first.As4()
		for i := p.Bits(); i < 32; i++ {
			b[i/8] |= 1 << (7 - i%8)
		}
		last := netip.AddrFrom4(b)
		for _, ip := range []netip.Addr{first, last, netip.AddrFrom16(first.As16())} {
			if public.connect(ip, 80, nil) == "" {
				t.Errorf("%s of %s is public", ip, p)
			}
			if got := all.connect(ip, 80, nil) == ""; got != opens {
				t.Errorf("%s of %s opens: %v", ip, p, got)
			}
		}
		for _, ip := range []netip.Addr{first.Prev(), last.Next()} {
			if ip.IsValid() && !special(ip) && public.connect(ip, 80, nil) != "" {
				t.Errorf("%s beside %s: %s", ip, p, public.connect(ip, 80, nil))
			}
		}
	}
	for _, ip := range []string{"9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "100.63.255.255", "100.128.0.0",
		"1.0.0.0",
		"126.255.255.255", "128.0.0.0", "169.253.255.255", "169.255.0.0", "192.0.1.0", "223.255.255.255", "198.17.255.255", "198.20.0.0", "168.63.129.17"} {
		if why := public.connect(netip.MustParseAddr(ip), 80, nil); why != "" {
			t.Errorf("%s: %s", ip, why)
		}
	}
	// The machines' own network is no way to anybody, whatever is listed.
	if all.connect(Subnet.Addr().Next().Next().Next().Next(), 80, nil) == "" {
		t.Error("a neighbour is reachable")
	}
	all.own = []netip.Addr{netip.MustParseAddr("93.184.216.34")}
	if all.connect(all.own[0], 80, nil) == "" || all.connect(netip.MustParseAddr("93.184.216.35"), 80, nil) != "" {
		t.Error("the host's own address")
	}
}

// TestRules: what an entry of an allow-list lets through, by name and by address.
func TestRules(t *testing.T) {
	const ip = "93.184.216.34"
	for _, c := range []struct {
		allow   string
		name    string // that the guest was told has the address
		port    uint16
		resolve bool
		connect bool
	}{
		{"example.com", "example.com", 443, true, true},
		{"EXAMPLE.com.", "example.com", 443, true, true},
		{"example.com", "www.example.com", 443, false, false},
		{"example.com", "badexample.com", 443, false, false},
		{"*.example.com", "www.example.com", 443, true, true},
		{"*.example.com", "a.b.example.com", 443, true, true},
		{"*.example.com", "example.com", 443, false, false},
		{"*.example.com", "badexample.com", 443, false, false},
		{"example.com:443", "example.com", 443, true, true},
		{"example.com:443", "example.com", 80, true, false},
		{"example.com:1", "example.com", 1, true, true},
		{"example.com:65535", "example.com", 65535, true, true},
		{ip, "example.com", 443, false, true},
		{ip + ":443", "", 443, false, true},
		{ip + ":443", "", 80, false, false},
		{"93.184.216.0/24", "", 80, false, true},
		{"93.184.216.77/24", "", 80, false, true},
		{"93.184.216.0/27", "", 80, false, false},
		{"93.184.216.0/24:80", "", 443, false, false},
		{"other.com,example.com", "example.com", 443, true, true},
		{"9z.example_1.com", "9z.example_1.com", 443, true, true},
		{"", "example.com", 443, false, false},
	} {
		p, err := ParsePolicy("allow:" + c.allow)
		if err != nil {
			t.Errorf("%s: %v", c.allow, err)
			continue
		}
		r, err := compile(p)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		if c.name != "" {
			names = []string{"else.org", c.name}
			if got := r.resolve(c.name) == ""; got != c.resolve {
				t.Errorf("%s: %s resolves: %v", c.allow, c.name, got)
			}
		}
		if got := r.connect(netip.MustParseAddr(ip), c.port, names) == ""; got != c.connect {
			t.Errorf("%s: %s:%d connects: %v", c.allow, c.name, c.port, got)
		}
		if len(r.nets) > 0 && r.connect(netip.MustParseAddr(ip), c.port, nil) == "" != c.connect {
			t.Errorf("%s: without a name", c.allow)
		}
	}
	for mode, want := range map[Mode]string{Public: "", AllowList: "not on the allow-list", None: "the network is off"} {
		r, err := compile(Policy{Mode: mode})
		if err != nil {
			t.Fatal(err)
		}
		if got := r.resolve("example.com"); got != want {
			t.Errorf("%d: %q", mode, got)
		}
		if got := r.connect(netip.MustParseAddr(ip), 80, []string{"example.com"}); got != want {
			t.Errorf("%d: %q", mode, got)
		}
	}
	// What a listed name, written out, stands for is listed, unless whoever asked may
	// not decide that; what only lies below one is not.
	for _, c := range []struct {
		p     Policy
		names []string
		ip    string
		want  string
	}{
		{Policy{Mode: AllowList, Allow: []string{"example.com"}}, []string{"example.com"}, "10.2.0.1", ""},
		{Policy{Allow: []string{"example.com"}}, []string{"example.com"}, "10.2.0.1", ""},
		{Policy{Mode: AllowList, Allow: []string{"example.com"}, PublicNames: true}, []string{"example.com"}, "10.2.0.1", "private address"},
		{Policy{Mode: AllowList, Allow: []string{"*.example.com"}}, []string{"www.example.com"}, "10.2.0.1", "private address"},
		{Policy{Mode: AllowList, Allow: []string{"example.com:443"}}, []string{"example.com"}, "10.2.0.1", "private address"},
		{Policy{Mode: AllowList, Allow: []string{"example.com"}}, []string{"other.com"}, "10.2.0.1", "private address"},
		{Policy{Mode: AllowList, Allow: []string{"example.com"}}, []string{"example.com"}, "127.0.0.1", "loopback address"},
		{Policy{Mode: AllowList, Allow: []string{"10.1.0.0/16"}, PublicNames: true}, nil, "10.1.0.1", ""},
	} {
		r, err := compile(c.p)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.connect(netip.MustParseAddr(c.ip), 80, c.names); got != c.want {
			t.Errorf("%+v: %q, want %q", c, got, c.want)
		}
	}
}

// TestHostNames: what is a host's name in a policy, to the length.
func TestHostNames(t *testing.T) {
	label := strings.Repeat("a", 63)
	for name, want := range map[string]bool{
		"a": true, "a-b_c.d9": true, "z0": true, "1.a": true, label: true, label + "a": false,
		label + "." + label + "." + label + "." + label[:61]: true, label + "." + label + "." + label + "." + label[:62]: false,
		"": false, ".": false, "a.": false, ".a": false, "a..b": false, "1.2": false, "123": false, "a b": false, "A": false, "é": false, "a/b": false,
		"a`": false, "a{": false, "a:": false, "-": true,
	} {
		if got := validName(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
	for entry, want := range map[string]bool{
		"a:1": true, "a:65535": true, "a:0": false, "a:65536": false, "a:-1": false, "a:+1": false, "a:1 ": false, "a:": false, "a:1:2": false,
		"1.2.3.4:80": true, "1.2.3.0/24:80": true,
		"::1": false, "2001:db8::/32": false, "1.2.3.4/33": false, "*.": false, "*": false, "*.a": true,
	} {
		if _, err := compile(Policy{Mode: AllowList, Allow: []string{entry}}); (err == nil) != want {
			t.Errorf("%q: %v", entry, err)
		}
	}
	if _, err := compile(Policy{Mode: None + 1}); err == nil {
		t.Error("a mode that is none")
	}
	if _, err := compile(Policy{Mode: None}); err != nil {
		t.Error(err)
	}
}

// TestWithin: an entry is within another one, or is not.
func TestWithin(t *testing.T) {
	for _, c := range []struct {
		narrow, wide string
		want         bool
	}{
		{"none", "none", true}, {"public", "none", false}, {"allow:a.b", "none", false}, {"none", "allow:a.b", true}, {"public", "allow:a.b", false},
		{"public", "public", true},
		{"allow:a.b", "public", true}, {"allow:1.2.3.4", "public", true}, {"allow:10.1.2.3", "public", false}, {"allow:8.0.0.0/5", "public", false},
		{"allow:127.0.0.1", "public", false},
		{"allow:10.0.2.0/24", "public", false}, {"allow:a.b", "allow:a.b", true}, {"allow:a.b", "allow:a.c", false}, {"allow:x.a.b", "allow:*.a.b", true},
		{"allow:a.b", "allow:*.a.b", false},
		{"allow:*.a.b", "allow:*.a.b", true}, {"allow:*.x.a.b", "allow:*.a.b", true}, {"allow:*.a.b", "allow:a.b", false}, {"allow:a.b:443", "allow:a.b", true},
		{"allow:a.b:443", "allow:a.b:443", true},
		{"allow:a.b", "allow:a.b:443", false}, {"allow:a.b:80", "allow:a.b:443", false}, {"allow:1.2.3.4", "allow:1.2.3.0/24", true},
		{"allow:1.2.3.0/24", "allow:1.2.3.0/24", true},
		{"allow:1.2.3.0/23", "allow:1.2.3.0/24", false}, {"allow:1.2.4.0", "allow:1.2.3.0/24", false}, {"allow:1.2.3.4:80", "allow:1.2.3.0/24:80", true},
		{"allow:1.2.3.4", "allow:1.2.3.0/24:80", false},
		{"allow:1.2.3.4:81", "allow:1.2.3.0/24:80", false}, {"allow:a.b,c.d", "allow:a.b", false}, {"allow:a.b,1.2.3.4", "allow:a.b", false},
		{"allow:", "allow:a.b", true},
	} {
		narrow, err := ParsePolicy(c.narrow)
		if err != nil {
			t.Fatal(err)
		}
		wide, err := ParsePolicy(c.wide)
		if err != nil {
			t.Fatal(err)
		}
		if err := narrow.Within(wide); (err == nil) != c.want {
			t.Errorf("%s within %s: %v", c.narrow, c.wide, err)
		}
	}
	bad := Policy{Mode: 9}
	if bad.Within(Policy{}) == nil || (Policy{}).Within(bad) == nil {
		t.Error("a mode that is none")
	}
	// Listed under Public, a private address of the ceiling may be asked for.
	open := Policy{Allow: []string{"10.1.0.0/16", "8.8.8.8:53"}}
	if err := (Policy{Allow: []string{"10.1.2.3"}}).Within(open); err != nil {
		t.Error(err)
	}
	if err := (Policy{Allow: []string{"10.2.2.3:80"}}).Within(open); err == nil || !strings.Contains(err.Error(), "10.2.2.3:80 is not all public") {
		t.Error(err)
	}
	if err := (Policy{Mode: AllowList, Allow: []string{"*.a.b:7", "10.9.0.0/16"}}).Within(Policy{Mode: AllowList,
		Allow: []string{"10.9.0.0/16"}}); err == nil || !strings.Contains(err.Error(), "*.a.b:7 is not on the list of what may be had here (allow:10.9.0.0/16)") {
		t.Error(err)
	}
}
