package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ErrPolicy is in every error of a Dialer that is the policy's doing.
var ErrPolicy = errors.New("may not be reached")

// Dialer returns what connects this host, on behalf of a guest, to what the policy
// lets that guest reach itself, and to nothing else: it goes by the name that is asked
// for and by the address that it stands for at that moment.
func (p Policy) Dialer() (func(ctx context.Context, network, address string) (net.Conn, error), error) {
	r, err := compile(p)
	if err != nil {
		return nil, err
	}
	if r.own, err = hostAddresses(); err != nil {
		return nil, err
	}
	var d net.Dialer
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, portText, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		port, err := strconv.ParseUint(portText, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%q is not a port", portText)
		}
		var ips []netip.Addr
		var names []string
		if ip, err := netip.ParseAddr(host); err == nil {
			ips = []netip.Addr{ip}
		} else {
			name := strings.TrimSuffix(strings.ToLower(host), ".")
			if reason := r.resolve(name); reason != "" {
				return nil, fmt.Errorf("%s %w: %s", host, ErrPolicy, reason)
			}
			if ips, err = net.DefaultResolver.LookupNetIP(ctx, "ip4", name); err != nil {
				return nil, err
			}
			names = []string{name}
		}
		var errs []error
		for _, ip := range slices.Compact(ips) {
			if reason := r.connect(ip, uint16(port), names); reason != "" {
				errs = append(errs, fmt.Errorf("%s %w: %s", host, ErrPolicy, reason))
				continue
			}
			c, err := d.DialContext(ctx, network, netip.AddrPortFrom(ip.Unmap(), uint16(port)).String())
			if err == nil {
				return c, nil
			}
			errs = append(errs, err)
		}
		return nil, errors.Join(errs...)
	}, nil
}
