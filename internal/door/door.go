// Package door is what stands between a connection and the handlers of `hearth
// serve`: what every request has to pass, whichever part of Hearth it is for.
//
//	Listener   how many connections there are; who gives way when there are too many
//	Hosts      under which names this server answers at all
//	Bodies     what requests carry, bounded one by one and in sum
//	Slots      what a client may hold of something that is scarce
//	Passes     who was let in: links, logins, tokens that were taken back
//
// # Names
//
// A page of anybody's site can make the browser of somebody who is near this
// server ask it things: under a name of that site which resolves to this
// server's address. The browser takes both for one origin and hands the answer
// over. What gives it away is the Host header, so [Hosts] lets in only the names
// that are this server's: the one people were told, those of the settings,
// loopback's, and the address that the connection came to.
//
// # Sums
//
// A limit on one request bounds nothing while the number of requests is the
// client's to choose. What is held for those of whom nothing is known yet is
// bounded in sum here, and when a sum is used up, who gives way is who holds most
// and moves least: a client that opens a thousand connections and sends a byte a
// minute pushes out its own, not the delivery that has just begun.
//
// # What is written down
//
// [Passes] is one file of the state directory, readable by its owner only. It
// holds no secret: of what opens a door only the SHA-256 is kept, and what is
// looked up is that sum, so that the time a comparison takes tells nothing.
package door

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// Hosts are the names that a server answers under.
type Hosts struct {
	exact map[string]bool // host:port, or host for any port; lower case
}

// NewHosts returns the name of base, the address that people were told, and
// more: HOST, of any port, or HOST:PORT, as the settings say them.
func NewHosts(base *url.URL, more []string) (*Hosts, error) {
	h := &Hosts{exact: map[string]bool{}}
	if base != nil && base.Host != "" {
		if ip, err := netip.ParseAddr(base.Hostname()); err != nil || !ip.IsUnspecified() {
			h.add(base.Hostname(), "")
		}
	}
	for _, m := range more {
		host, port, err := split(m)
		if err != nil || host == "" || strings.ContainsAny(host, "/*@ ") || strings.Trim(port, "0123456789") != "" {
			return nil, fmt.Errorf("hosts: %q: want a name or name:port, as browsers send it", m)
		}
		h.add(host, port)
	}
	return h, nil
}

func name(host string) string { return strings.TrimSuffix(strings.ToLower(host), ".") }

func (h *Hosts) add(host, port string) {
	n := name(host)
	if port != "" {
		n = net.JoinHostPort(n, port)
	}
	h.exact[n] = true
}

// split takes a Host header apart; an address of version 6 comes without its
// brackets.
func split(s string) (host, port string, err error) {
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		return s[1 : len(s)-1], "", nil
	}
	if !strings.Contains(s, ":") {
		return s, "", nil
	}
	return net.SplitHostPort(s)
}

// Allowed says whether a request may have come under this Host. local is the
// address at which its connection arrived, nil if that is not known.
func (h *Hosts) Allowed(hostport string, local net.Addr) bool {
	host, port, err := split(hostport)
	if err != nil || host == "" {
		return false
	}
	if LoopbackName(host) {
		return true // of any port: a tunnel has another than this server
	}
	n := name(host)
	if ip, err := netip.ParseAddr(n); err == nil {
		// An address is no name that somebody else could have point here.
		if a, ok := local.(*net.TCPAddr); ok && a.AddrPort().Addr().Unmap().WithZone("") == ip.Unmap() {
			return true
		}
	}
	return h.exact[n] || port != "" && h.exact[net.JoinHostPort(n, port)]
}

// Wrap refuses requests that came under another name, with 421, before anything
// else has looked at them.
func (h *Hosts) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if !h.Allowed(r.Host, local) {
			refuse(w, http.StatusMisdirectedRequest, fmt.Sprintf("this server does not answer under the name %q. If it should, set \"url\" to the address that people use, "+
				"or add the name to \"hosts\" (HEARTH_URL, HEARTH_HOSTS).", clip(r.Host, 100)))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// SameOrigin refuses what another site's page has a browser do here. Programs
// are not browsers and pass. base is the address that people use, which a proxy
// may have hidden from the Host header; requests below except answer for
// themselves.
func SameOrigin(base *url.URL, next http.Handler, except ...string) (http.Handler, error) {
	c := http.NewCrossOriginProtection()
	if base != nil && base.Host != "" {
		if err := c.AddTrustedOrigin(base.Scheme + "://" + base.Host); err != nil {
			return nil, fmt.Errorf("url: %w", err)
		}
	}
	for _, p := range except {
		c.AddInsecureBypassPattern(p)
	}
	c.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusForbidden, "this request was made by another site's page: refused")
	}))
	return c.Handler(next), nil
}

// refuse answers with words, and ends the connection: nothing more of the
// request is read.
func refuse(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Connection", "close")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	fmt.Fprintln(w, text)
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

// Loopback says whether a listener is reached from this machine alone.
func Loopback(a net.Addr) bool {
	t, ok := a.(*net.TCPAddr)
	return ok && t.IP.IsLoopback()
}

// LoopbackName says whether a host name is this machine's own.
func LoopbackName(host string) bool {
	ip, err := netip.ParseAddr(name(host))
	return err == nil && ip.IsLoopback() || name(host) == "localhost"
}

// Client is who a request is from, as far as an address can tell: that of
// version 4, the network (/64) of version 6, which is what one subscriber has.
func Client(remote string) string {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return remote
	}
	ip := ap.Addr().Unmap().WithZone("")
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}
