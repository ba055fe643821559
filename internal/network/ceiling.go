package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Within says why a policy reaches further than another one, nil if it does not:
// whoever asks for a machine may narrow what it may reach, not widen it.
func (p Policy) Within(ceiling Policy) error {
	narrow, err := compile(p)
	if err != nil {
		return err
	}
	wide, err := compile(ceiling)
	if err != nil {
		return err
	}
	if p.Mode == None {
		return nil
	}
	if ceiling.Mode == None {
		return errors.New("no network is the most that may be had here")
	}
	if p.Mode == Public && ceiling.Mode != Public {
		return fmt.Errorf("public addresses are more than may be had here (%s)", ceiling)
	}
	for _, n := range narrow.nets {
		if slices.ContainsFunc(wide.nets, n.within) {
			continue
		}
		if ceiling.Mode != Public {
			return fmt.Errorf("%s is not on the list of what may be had here (%s)", n, ceiling)
		}
		for _, r := range slices.Concat(neverRanges, privateRanges) {
			if r.net.Overlaps(n.net) {
				return fmt.Errorf("%s is not all public: %s is a %s", n, r.net, r.name)
			}
		}
		if n.net.Overlaps(Subnet) {
			return fmt.Errorf("%s is not all public", n)
		}
	}
	if ceiling.Mode == Public {
		return nil // what a name stands for is looked at when it is connected to
	}
	for _, n := range narrow.names {
		if !slices.ContainsFunc(wide.names, n.within) {
			return fmt.Errorf("%s is not on the list of what may be had here (%s)", n, ceiling)
		}
	}
	return nil
}

func (n netRule) within(o netRule) bool {
	return o.net.Bits() <= n.net.Bits() && o.net.Contains(n.net.Addr()) && (o.port == 0 || o.port == n.port)
}

func (n netRule) String() string { return withPort(hostOf(n.net), n.port) }

func hostOf(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func (n nameRule) within(o nameRule) bool {
	if o.port != 0 && o.port != n.port {
		return false
	}
	if o.sub {
		return strings.HasSuffix(n.name, "."+o.name) || n.sub && n.name == o.name
	}
	return !n.sub && n.name == o.name
}

func (n nameRule) String() string {
	if n.sub {
		return withPort("*."+n.name, n.port)
	}
	return withPort(n.name, n.port)
}

func withPort(host string, port uint16) string {
	if port == 0 {
		return host
	}
	return fmt.Sprintf("%s:%d", host, port)
}
