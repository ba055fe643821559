package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Mode is a policy's ground rule.
type Mode uint8

const (
	// Public lets a guest reach every public address. It is the default.
	Public Mode = iota
	// AllowList lets a guest reach the hosts on the list and no other.
	AllowList
	// None leaves only the gateway's services. No name is resolved.
	None
)

// Policy says what a guest may reach. The zero Policy is the default.
type Policy struct {
	Mode Mode
	// Allow lists hosts: "example.com", "*.example.com" (any name below it,
	// not itself), "203.0.113.7", "10.20.0.0/16", each with an optional port
	// (":443"). Under Public, listed addresses are let through although they
	// are private, and so is what a listed name, written out, resolves to.
	// Addresses that are never let through stay so (doc.go).
	Allow []string
	// Refuse answers at once what may not be reached; else there is no answer, as
	// behind a firewall, and whoever connects waits.
	Refuse bool
	// PublicNames keeps names on the list from standing for private addresses: those
	// who asked for them do not decide that.
	PublicNames bool
}

// ParsePolicy reads a policy as users write it: "public" (or "default" or ""), "none",
// or "allow:HOST,HOST…". After a comma come further hosts that public lets through,
// and how what may not be reached is answered: "refuse" or "drop".
func ParsePolicy(s string) (Policy, error) {
	var p Policy
	word, rest, _ := strings.Cut(s, ",")
	switch word = strings.TrimSpace(word); {
	case word == "" || word == "default" || word == "public":
	case word == "none":
		p.Mode = None
	case strings.HasPrefix(word, "allow:"):
		p.Mode, rest = AllowList, strings.TrimPrefix(strings.TrimSpace(s), "allow:")
	default:
		return Policy{}, fmt.Errorf("network policy %q: it is public, none, or allow:HOST,HOST…, with refuse or drop after a comma", s)
	}
	for item := range strings.SplitSeq(rest, ",") {
		switch item = strings.TrimSpace(item); {
		case item == "":
		case item == "refuse" || item == "drop":
			p.Refuse = item == "refuse"
		case p.Mode == None:
			return Policy{}, fmt.Errorf("network policy %q: none lets nothing through, %q neither", s, item)
		default:
			p.Allow = append(p.Allow, item)
		}
	}
	_, err := compile(p)
	return p, err
}

// String returns the policy as ParsePolicy reads it.
func (p Policy) String() string {
	more := slices.Clone(p.Allow)
	if p.Refuse {
		more = append(more, "refuse")
	}
	list := strings.Join(more, ",")
	switch {
	case p.Mode == AllowList:
		return "allow:" + list
	case list != "":
		list = "," + list
	}
	if p.Mode == None {
		return "none" + list
	}
	return "public" + list
}

// rules is a policy made ready for use.
type rules struct {
	mode  Mode
	names []nameRule
	// publicNames and refuse are as in [Policy].
	publicNames, refuse bool
	nets                []netRule
	own                 []netip.Addr // this host's addresses
}

type nameRule struct {
	name string // lower case, no final dot
	sub  bool   // *.name
	port uint16 // 0 is any
}

type netRule struct {
	net  netip.Prefix
	port uint16
}

func compile(p Policy) (*rules, error) {
	if p.Mode > None {
		return nil, fmt.Errorf("network policy: unknown mode %d", p.Mode)
	}
	r := &rules{mode: p.Mode, publicNames: p.PublicNames, refuse: p.Refuse}
	for _, entry := range p.Allow {
		host, port := entry, uint16(0)
		if h, portText, ok := strings.Cut(entry, ":"); ok {
			n := 0
			if _, err := fmt.Sscanf(portText+"\n", "%d\n", &n); err != nil || n < 1 || n > 65535 || fmt.Sprint(n) != portText {
				return nil, fmt.Errorf("network policy: %q: %q is not a port", entry, portText)
			}
			host, port = h, uint16(n)
		}
		if prefix, err := netip.ParsePrefix(host); err == nil && prefix.Addr().Is4() {
			r.nets = append(r.nets, netRule{prefix.Masked(), port})
			continue
		}
		if ip, err := netip.ParseAddr(host); err == nil && ip.Is4() {
			r.nets = append(r.nets, netRule{netip.PrefixFrom(ip, 32), port})
			continue
		}
		name, sub := strings.CutPrefix(strings.ToLower(host), "*.")
		name = strings.TrimSuffix(name, ".")
		if !validName(name) {
			return nil, fmt.Errorf("network policy: %q is neither a host name (with *. in front for all below it) nor an IPv4 address or range", entry)
		}
		r.names = append(r.names, nameRule{name, sub, port})
	}
	return r, nil
}

// validName reports whether s is a host name in lower case.
func validName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	letter := false
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for _, c := range []byte(label) {
			switch {
			case c >= 'a' && c <= 'z' || c == '_' || c == '-':
				letter = true
			case c >= '0' && c <= '9':
			default:
				return false
			}
		}
	}
	return letter
}

// matchName reports whether a rule is about a name; port 0 is any port.
func (r *rules) matchName(name string, port uint16) bool {
	return slices.ContainsFunc(r.names, func(n nameRule) bool {
		if n.port != 0 && port != 0 && n.port != port {
			return false
		}
		if n.sub {
			return strings.HasSuffix(name, "."+n.name)
		}
		return name == n.name
	})
}

// matchWritten reports whether a rule says just this name.
func (r *rules) matchWritten(name string, port uint16) bool {
	return slices.ContainsFunc(r.names, func(n nameRule) bool { return !n.sub && n.name == name && (n.port == 0 || n.port == port) })
}

func (r *rules) matchAddr(ip netip.Addr, port uint16) bool {
	return slices.ContainsFunc(r.nets, func(n netRule) bool {
		return n.net.Contains(ip) && (n.port == 0 || n.port == port)
	})
}

// resolve says why a name may not be resolved, "" if it may.
func (r *rules) resolve(name string) string {
	switch {
	case r.mode == None:
		return "the network is off"
	case r.mode == AllowList && !r.matchName(name, 0):
		return "not on the allow-list"
	}
	return ""
}

// connect says why an address may not be reached, "" if it may. names are the
// names that this guest was told have this address.
func (r *rules) connect(ip netip.Addr, port uint16, names []string) string {
	if r.mode == None {
		return "the network is off"
	}
	ip = ip.Unmap()
	never, private := classify(ip)
	if never != "" {
		return never
	}
	if slices.Contains(r.own, ip) {
		return "an address of the host itself"
	}
	listed := r.matchAddr(ip, port) || !r.publicNames && slices.ContainsFunc(names, func(n string) bool { return r.matchWritten(n, port) })
	if private != "" && !listed {
		return private
	}
	if r.mode == AllowList && !listed && !slices.ContainsFunc(names, func(n string) bool { return r.matchName(n, port) }) {
		return "not on the allow-list"
	}
	return ""
}

// ranges are the special-purpose IPv4 blocks (IANA registry). Those that are
// never reachable come first; private ones can be opened by a policy.
var neverRanges, privateRanges = []specialRange{
	{netip.MustParsePrefix("0.0.0.0/8"), "\"this network\" address"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback address"},
	{netip.MustParsePrefix("169.254.169.254/32"), "metadata service"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local address"},
	{netip.MustParsePrefix("168.63.129.16/32"), "metadata service"},   // Azure
	{netip.MustParsePrefix("100.100.100.200/32"), "metadata service"}, // Alibaba
	{netip.MustParsePrefix("192.0.0.0/24"), "reserved address"},       // with Oracle's metadata
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast address"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved address"}, // with broadcast
}, []specialRange{
	{netip.MustParsePrefix("10.0.0.0/8"), "private address"},
	{netip.MustParsePrefix("172.16.0.0/12"), "private address"},
	{netip.MustParsePrefix("192.168.0.0/16"), "private address"},
	{netip.MustParsePrefix("100.64.0.0/10"), "private (carrier-grade NAT) address"},
	{netip.MustParsePrefix("192.0.2.0/24"), "documentation address"},
	{netip.MustParsePrefix("192.88.99.0/24"), "reserved address"},
	{netip.MustParsePrefix("198.18.0.0/15"), "benchmark address"},
	{netip.MustParsePrefix("198.51.100.0/24"), "documentation address"},
	{netip.MustParsePrefix("203.0.113.0/24"), "documentation address"},
}

type specialRange struct {
	net  netip.Prefix
	name string
}

// classify says why an address is never reached, or why not by default.
func classify(ip netip.Addr) (never, private string) {
	if !ip.Is4() {
		return "not an IPv4 address", ""
	}
	if Subnet.Contains(ip) {
		// Not on the gateway or the name server: they were served already.
		return "no such machine on this network", ""
	}
	for _, r := range neverRanges {
		if r.net.Contains(ip) {
			return r.name, ""
		}
	}
	for _, r := range privateRanges {
		if r.net.Contains(ip) {
			return "", r.name
		}
	}
	return "", ""
}
