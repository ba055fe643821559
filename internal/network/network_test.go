package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// world is what is outside in a test: real servers on loopback that stand for
// public addresses, and a resolver.
type world struct {
	mu      sync.Mutex
	servers map[string]string // "tcp 93.184.216.34:80" → a real address
	names   map[string][]netip.Addr
	dialled []string
}

func (w *world) dial(ctx context.Context, network, address string) (net.Conn, error) {
	w.mu.Lock()
	w.dialled = append(w.dialled, network+" "+address)
	real, ok := w.servers[network+" "+address]
	w.mu.Unlock()
	if !ok {
		return nil, errors.New("connection refused")
	}
	return new(net.Dialer).DialContext(ctx, network, real)
}

func (w *world) resolve(_ context.Context, name string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ips, ok := w.names[name]; ok {
		return ips, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

// records collects connections and lets a test wait for one.
type records struct {
	mu   sync.Mutex
	list []Connection
	more chan struct{}
}

func newRecords() *records { return &records{more: make(chan struct{}, 1)} }

func (r *records) add(c Connection) {
	r.mu.Lock()
	r.list = append(r.list, c)
	r.mu.Unlock()
	select {
	case r.more <- struct{}{}:
	default:
	}
}

func (r *records) all() []Connection {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.list)
}

// wait returns the first record that fits.
func (r *records) wait(t *testing.T, fits func(Connection) bool) Connection {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		if all := r.all(); slices.ContainsFunc(all, fits) {
			return all[slices.IndexFunc(all, fits)]
		}
		select {
		case <-r.more:
		case <-deadline:
			t.Fatalf("no such record among %+v", r.all())
		}
	}
}

// guest is the machine's side: a second network stack at the cable.
type guest struct {
	t     testing.TB
	stack *stack.Stack
	ep    *channel.Endpoint
	link  *streamLink
}

// plug connects a guest to a network by a socket pair.
func plug(t testing.TB, n *Network) *guest {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := [2]net.Conn{}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "cable")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	ours, theirs := ends[0], ends[1]
	served := make(chan error, 1)
	go func() { served <- n.ServeFrames(ours) }()
	g := newGuest(t, theirs)
	t.Cleanup(func() {
		theirs.Close()
		if err := <-served; err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("ServeFrames: %v", err)
		}
	})
	return g
}

func newGuest(t testing.TB, cable net.Conn) *guest {
	t.Helper()
	g := &guest{t: t, link: newStreamLink(cable)}
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	g.ep = channel.New(4096, 1500, "\x52\x54\x00\x12\x34\x56")
	must := func(err tcpip.Error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(g.stack.CreateNIC(1, ethernet.New(g.ep)))
	must(g.stack.AddProtocolAddress(1, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(Guest.As4()), PrefixLen: 24}}, stack.AddressProperties{}))
	subnet := tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4([4]byte{10, 0, 2, 0}), PrefixLen: 24}.Subnet()
	g.stack.SetRouteTable([]tcpip.Route{
		{Destination: subnet, NIC: 1},
		{Destination: header.IPv4EmptySubnet, Gateway: tcpip.AddrFrom4(Gateway.As4()), NIC: 1},
	})
	sack := tcpip.TCPSACKEnabled(true)
	must(g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			pkt := g.ep.ReadContext(ctx)
			if pkt == nil {
				return
			}
			err := g.link.writeFrame(pkt.AsSlices()...)
			pkt.DecRef()
			if err == nil {
				err = g.link.flush()
			}
			if err != nil {
				return
			}
		}
	})
	wg.Go(func() {
		for {
			frame, err := g.link.readFrame()
			if err != nil {
				return
			}
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
			g.ep.InjectInbound(0, pkt)
			pkt.DecRef()
		}
	})
	t.Cleanup(func() {
		cancel()
		cable.Close()
		g.stack.Close()
		wg.Wait()
		g.ep.Close()
		g.stack.Wait()
	})
	return g
}

func full(address string) tcpip.FullAddress {
	ap := netip.MustParseAddrPort(address)
	return tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4(ap.Addr().As4()), Port: ap.Port()}
}

func (g *guest) dial(address string) (*gonet.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return gonet.DialContextTCP(ctx, g.stack, full(address), ipv4.ProtocolNumber)
}

func (g *guest) http() *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			if _, err := netip.ParseAddr(host); err != nil {
				ips, code := g.lookup(host, dnsmessage.TypeA)
				if len(ips) == 0 {
					return nil, fmt.Errorf("%s: %v", host, code)
				}
				host = ips[0].String()
			}
			return gonet.DialContextTCP(ctx, g.stack, full(net.JoinHostPort(host, port)), ipv4.ProtocolNumber)
		},
	}}
}

func question(name string, kind dnsmessage.Type) []byte {
	msg := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name + "."), Type: kind, Class: dnsmessage.ClassINET}}}
	b, err := msg.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

func parseAnswer(t testing.TB, b []byte) ([]netip.Addr, dnsmessage.RCode) {
	t.Helper()
	var msg dnsmessage.Message
	if err := msg.Unpack(b); err != nil {
		t.Fatal(err)
	}
	if msg.ID != 7 || !msg.Response || len(msg.Questions) != 1 {
		t.Fatalf("answer %+v", msg.Header)
	}
	var ips []netip.Addr
	for _, a := range msg.Answers {
		ips = append(ips, netip.AddrFrom4(a.Body.(*dnsmessage.AResource).A))
	}
	return ips, msg.RCode
}

// lookup asks the network's name server over UDP.
func (g *guest) lookup(name string, kind dnsmessage.Type) ([]netip.Addr, dnsmessage.RCode) {
	g.t.Helper()
	server := full("10.0.2.3:53")
	conn, err := gonet.DialUDP(g.stack, nil, &server, ipv4.ProtocolNumber)
	if err != nil {
		g.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write(question(name, kind)); err != nil {
		g.t.Fatal(err)
	}
	buf := make([]byte, 1500)
	n, err := conn.Read(buf)
	if err != nil {
		g.t.Fatal(err)
	}
	return parseAnswer(g.t, buf[:n])
}

// newNetwork starts a network with a world and checks at the end that nothing
// of it runs any more.
func newNetwork(t testing.TB, cfg Config, w *world) (*Network, *records) {
	t.Helper()
	checkGoroutines(t)
	r := newRecords()
	cfg.Record = r.add
	cfg.Dial, cfg.Resolve = w.dial, w.resolve
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n, r
}

// checkGoroutines fails the test if it ends with goroutines of this package or
// of netstack that were not there before.
func checkGoroutines(t testing.TB) {
	t.Helper()
	count := func() (n int, stacks string) {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		for g := range strings.SplitSeq(string(buf), "\n\n") {
			if (strings.Contains(g, "internal/network.") || strings.Contains(g, "gvisor")) && !strings.Contains(g, "testing.tRunner") {
				n++
				stacks += g + "\n\n"
			}
		}
		return n, stacks
	}
	before, _ := count()
	t.Cleanup(func() {
		for i := 0; ; i++ {
			after, stacks := count()
			if after <= before {
				return
			}
			if i > 100 {
				t.Errorf("%d goroutines more than before:\n%s", after-before, stacks)
				return
			}
			time.Sleep(10 * time.Millisecond) // goroutines that have done their work still have to exit
		}
	})
}

const site = "93.184.216.34" // stands for a public server

// serveTCP starts a real server and lets it stand for a public address.
func (w *world) serveTCP(t testing.TB, address string, handle func(net.Conn)) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); handle(c) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.servers == nil {
		w.servers = map[string]string{}
	}
	w.servers["tcp "+address] = l.Addr().String()
}

func echo(c net.Conn) {
	_, _ = io.Copy(c, c)
	_ = c.(*net.TCPConn).CloseWrite()
}

func TestTCPThrough(t *testing.T) {
	w := &world{names: map[string][]netip.Addr{"example.com": {netip.MustParseAddr(site)}}}
	n, rec := newNetwork(t, Config{}, w)
	w.serveTCP(t, site+":7", echo)
	n.SetStep(7)
	g := plug(t, n)
	if ips, code := g.lookup("Example.COM", dnsmessage.TypeA); len(ips) != 1 || ips[0].String() != site {
		t.Fatalf("%v %v", ips, code)
	}
	c, err := g.dial(site + ":7")
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789"), 300_000) // 3 MB each way, at the same time
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := c.Write(data)
		if err == nil {
			err = c.CloseWrite()
		}
		if err != nil {
			t.Error(err)
		}
	})
	got, err := io.ReadAll(c)
	wg.Wait()
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes back: %v", len(got), err)
	}
	n.SetStep(8)
	c.Close()
	r := rec.wait(t, func(c Connection) bool { return c.Port == 7 })
	if r.Step != 7 || r.Host != "example.com" || r.IP.String() != site || r.Proto != "tcp" || r.Refused ||
		r.BytesOut != int64(len(data)) || r.BytesIn != int64(len(data)) || r.Duration <= 0 {
		t.Errorf("%+v", r)
	}
}

func TestRefused(t *testing.T) {
	// Every private range leads to a server that would answer.
	w := &world{names: map[string][]netip.Addr{"rebind.example": {netip.MustParseAddr("192.168.1.1")},
		"metadata.example": {netip.MustParseAddr("169.254.169.254")}}}
	n, rec := newNetwork(t, Config{Policy: Policy{Refuse: true}}, w)
	g := plug(t, n)
	short := func(address string) (net.Conn, error) {
		// Where the guest's own stack gets no answer it would try for long.
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		return gonet.DialContextTCP(ctx, g.stack, full(address), ipv4.ProtocolNumber)
	}
	for address, reason := range map[string]string{
		"127.0.0.1:80": "loopback", "10.1.2.3:80": "private", "172.16.0.1:80": "private", "172.31.255.255:80": "private",
		"192.168.1.1:80": "private", "100.64.1.1:80": "carrier", "169.254.169.254:80": "metadata", "169.254.1.1:80": "link-local",
		"168.63.129.16:80": "metadata", "0.1.2.3:80": "this network", "224.0.0.1:80": "", "240.1.2.3:80": "reserved",
		"10.0.2.4:80": "no such machine", "198.18.0.1:80": "benchmark", "192.0.0.192:80": "reserved",
	} {
		w.serveTCP(t, address, echo)
		c, err := short(address)
		if err == nil {
			c.Close()
			t.Errorf("%s can be reached", address)
			continue
		}
		if reason == "" || strings.HasPrefix(address, "127.") || strings.HasPrefix(address, "0.") || strings.HasPrefix(address, "10.0.2.") ||
			strings.HasPrefix(address, "240.") {
			continue // the guest's own stack does not send these; the policy's table test has them
		}
		if !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: %v; want a reset, at once", address, err)
		}
		r := rec.wait(t, func(c Connection) bool { return netip.AddrPortFrom(c.IP, c.Port).String() == address })
		if !r.Refused || !strings.Contains(r.Reason, reason) {
			t.Errorf("%s: %+v; want %q", address, r, reason)
		}
	}
	// A public name for a private address gets nowhere either.
	if _, err := g.http().Get("http://rebind.example/"); err == nil {
		t.Error("DNS rebinding works")
	}
	if _, err := g.http().Get("http://metadata.example/"); err == nil {
		t.Error("the metadata service can be reached by a name")
	}
	if r := rec.wait(t, func(c Connection) bool { return c.Host == "metadata.example" }); !r.Refused {
		t.Errorf("%+v", r)
	}
	if len(w.dialled) != 0 {
		t.Errorf("dialled: %v", w.dialled)
	}
}

// What may not be reached does not answer, as behind a firewall.
func TestDropped(t *testing.T) {
	w := &world{}
	n, rec := newNetwork(t, Config{}, w)
	g := plug(t, n)
	w.serveTCP(t, "10.1.2.3:80", echo)
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	_, err := gonet.DialContextTCP(ctx, g.stack, full("10.1.2.3:80"), ipv4.ProtocolNumber)
	if err == nil || strings.Contains(err.Error(), "refused") || ctx.Err() == nil {
		t.Errorf("%v; want no answer", err)
	}
	if r := rec.wait(t, func(c Connection) bool { return c.Port == 80 }); !r.Refused || r.Reason != "private address" {
		t.Errorf("%+v", r)
	}
	if all := rec.all(); len(all) != 1 {
		t.Errorf("%d records of one refusal", len(all))
	}
}

// A name that is written out is let through whatever it resolves to, but for what never
// is; one that somebody else asked for is not.
func TestWrittenNames(t *testing.T) {
	ip := netip.MustParseAddr
	for _, c := range []struct {
		policy string
		public bool
		name   string
		ip     string
		port   uint16
		want   bool
	}{
		{"allow:registry.lan", false, "registry.lan", "10.1.1.1", 443, true},
		{"allow:registry.lan:443", false, "registry.lan", "10.1.1.1", 80, false},
		{"allow:registry.lan", false, "other.lan", "10.1.1.1", 443, false},
		{"allow:*.lan", false, "registry.lan", "10.1.1.1", 443, false},
		{"allow:registry.lan", true, "registry.lan", "10.1.1.1", 443, false},
		{"allow:registry.lan", false, "registry.lan", "127.0.0.1", 443, false},
		{"allow:registry.lan", false, "registry.lan", "169.254.169.254", 80, false},
		{"public,registry.lan", false, "registry.lan", "192.168.1.1", 443, true},
		{"public,10.0.0.0/8", false, "", "10.1.1.1", 443, true},
		{"public,10.0.0.0/8", false, "", "192.168.1.1", 443, false},
		{"public,10.0.0.0/8", false, "", "1.1.1.1", 443, true},
	} {
		p, err := ParsePolicy(c.policy)
		if err != nil {
			t.Fatal(err)
		}
		p.PublicNames = c.public
		r, err := compile(p)
		if err != nil {
			t.Fatal(err)
		}
		if reason := r.connect(ip(c.ip), c.port, []string{c.name}); (reason == "") != c.want {
			t.Errorf("%+v: %q", c, reason)
		}
	}
}

func TestHostsOwnAddresses(t *testing.T) {
	own, err := hostAddresses()
	if err != nil || len(own) == 0 {
		t.Fatalf("%v %v", own, err)
	}
	r, err := compile(Policy{})
	if err != nil {
		t.Fatal(err)
	}
	r.own = []netip.Addr{netip.MustParseAddr("198.41.0.4")}
	if reason := r.connect(netip.MustParseAddr("198.41.0.4"), 22, nil); !strings.Contains(reason, "host itself") {
		t.Errorf("the host's own public address: %q", reason)
	}
}

func TestUpstreamRefuses(t *testing.T) {
	w := &world{}
	n, rec := newNetwork(t, Config{}, w)
	g := plug(t, n)
	_, err := g.dial(site + ":81")
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Fatalf("%v; want connection refused", err)
	}
	if r := rec.wait(t, func(c Connection) bool { return c.Port == 81 }); r.Refused || !strings.Contains(r.Reason, "could not connect") {
		t.Errorf("%+v", r)
	}
}

func TestServices(t *testing.T) {
	w := &world{}
	hello := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(rw, "%s %s %s %d", r.Method, r.Host, r.RemoteAddr[:9], len(body))
	})
	n, rec := newNetwork(t, Config{Policy: Policy{Mode: None}, Services: map[uint16]http.Handler{80: hello, 8080: hello}}, w)
	g := plug(t, n)
	for url, want := range map[string]string{
		"http://hearth.internal/x":                  "POST hearth.internal 10.0.2.15 100000",
		"http://results.hearth.internal:8080/twirp": "POST results.hearth.internal:8080 10.0.2.15 100000",
		"http://10.0.2.2:8080/":                     "POST 10.0.2.2:8080 10.0.2.15 100000",
	} {
		resp, err := g.http().Post(url, "text/plain", strings.NewReader(strings.Repeat("x", 100_000)))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != strings.Replace(want, "10.0.2.15", "10.0.2.15"[:9], 1) {
			t.Errorf("%s: %q, want %q", url, body, want)
		}
	}
	if _, err := g.dial("10.0.2.2:81"); err == nil {
		t.Error("a port without a service answers")
	}
	if got := rec.all(); len(got) != 0 {
		t.Errorf("our own services are recorded as connections: %+v", got)
	}
}

func TestPolicyNone(t *testing.T) {
	w := &world{names: map[string][]netip.Addr{"example.com": {netip.MustParseAddr(site)}}}
	n, rec := newNetwork(t, Config{Policy: Policy{Mode: None, Refuse: true}}, w)
	w.serveTCP(t, site+":7", echo)
	g := plug(t, n)
	if ips, code := g.lookup("example.com", dnsmessage.TypeA); len(ips) != 0 || code != dnsmessage.RCodeRefused {
		t.Errorf("%v %v", ips, code)
	}
	if _, err := g.dial(site + ":7"); err == nil {
		t.Error("connected")
	}
	r := rec.wait(t, func(c Connection) bool { return c.Proto == "dns" })
	if !r.Refused || r.Host != "example.com" || r.Reason != "the network is off" {
		t.Errorf("%+v", r)
	}
	if len(w.dialled) != 0 {
		t.Errorf("dialled: %v", w.dialled)
	}
}

func TestAllowList(t *testing.T) {
	ip := func(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }
	w := &world{names: map[string][]netip.Addr{"example.com": ip(site), "api.example.com": ip("93.184.216.35"), "evil.test": ip("93.184.216.36"),
		"rebind.example.com": ip("192.168.1.1")}}
	n, _ := newNetwork(t, Config{Policy: Policy{Mode: AllowList, Refuse: true, Allow: []string{"*.example.com", "93.184.216.40:443", "10.9.0.0/16"}}}, w)
	for _, a := range []string{site + ":443", "93.184.216.35:443", "93.184.216.36:443", "93.184.216.40:443", "93.184.216.40:80", "192.168.1.1:443",
		"10.9.1.1:5000"} {
		w.serveTCP(t, a, echo)
	}
	g := plug(t, n)
	try := func(address string, want bool) {
		t.Helper()
		c, err := g.dial(address)
		if err == nil {
			c.Close()
		}
		if (err == nil) != want {
			t.Errorf("%s: %v; reachable should be %v", address, err, want)
		}
	}
	try("93.184.216.35:443", false) // not resolved yet: an address says nothing
	if ips, code := g.lookup("api.example.com", dnsmessage.TypeA); len(ips) != 1 {
		t.Fatal(code)
	}
	try("93.184.216.35:443", true)
	for _, name := range []string{"example.com", "evil.test", "evilexample.com", "api.example.com.evil.test"} {
		if ips, code := g.lookup(name, dnsmessage.TypeA); len(ips) != 0 || code != dnsmessage.RCodeRefused {
			t.Errorf("%s: %v %v", name, ips, code)
		}
	}
	try("93.184.216.36:443", false)
	try("93.184.216.40:443", true)
	try("93.184.216.40:80", false)
	g.lookup("rebind.example.com", dnsmessage.TypeA)
	try("192.168.1.1:443", false)
	try("10.9.1.1:5000", true) // named, though private
}

func TestPolicyTable(t *testing.T) {
	r, err := compile(Policy{Allow: []string{"10.5.0.0/16", "192.168.7.7:22"}})
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]bool{
		"1.1.1.1:53": true, "93.184.216.34:443": true, "172.15.0.1:1": true, "172.32.0.1:1": true, "100.128.0.1:1": true, "11.0.0.1:1": true,
		"10.5.1.1:80": true, "10.6.1.1:80": false, "192.168.7.7:22": true, "192.168.7.7:23": false,
		"127.0.0.1:1": false, "127.255.0.1:1": false, "0.0.0.0:1": false, "0.1.2.3:1": false, "10.0.2.4:1": false, "10.0.2.15:1": false,
		"169.254.169.254:80": false, "224.0.0.251:5353": false, "255.255.255.255:67": false, "240.0.0.1:1": false,
		"[::1]:80": false, "[2606:4700::1]:443": false, "[::ffff:127.0.0.1]:80": false, "[::ffff:10.6.0.1]:80": false,
		"100.100.100.200:80": false, "203.0.113.5:80": false,
	} {
		ap := netip.MustParseAddrPort(address)
		if got := r.connect(ap.Addr(), ap.Port(), nil) == ""; got != want {
			t.Errorf("%s: reachable %v, want %v", address, got, want)
		}
	}
	never, err := compile(Policy{Allow: []string{"127.0.0.0/8", "169.254.169.254", "0.0.0.0/0"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"127.0.0.1", "169.254.169.254", "224.0.0.1", "168.63.129.16"} {
		if never.connect(netip.MustParseAddr(a), 80, nil) == "" {
			t.Errorf("a policy opened %s", a)
		}
	}
}

func TestParsePolicy(t *testing.T) {
	for _, s := range []string{"", "default", "public", "none", "allow:", "allow:a.b, *.c.d:443,1.2.3.4,10.0.0.0/8:80",
		"public,10.0.0.0/8", "public,refuse", "public,drop,a.b:443", "none,refuse", "allow:a.b,refuse"} {
		p, err := ParsePolicy(s)
		if err != nil {
			t.Errorf("%q: %v", s, err)
		}
		if again, err := ParsePolicy(p.String()); err != nil || again.String() != p.String() {
			t.Errorf("%q → %q → %q, %v", s, p, again, err)
		}
	}
	for _, s := range []string{"off", "allow:http://x", "allow:a b", "allow:a.b:0", "allow:a.b:99999", "allow:a.b:08", "allow:*", "allow:a..b", "allow:*.*.a",
		"allow:::1", "allow:1.2.3",
		"none,10.0.0.0/8", "private", "public,http://x", "refuse"} {
		if p, err := ParsePolicy(s); err == nil {
			t.Errorf("%q: %+v", s, p)
		}
	}
	if _, err := New(Config{Policy: Policy{Mode: 9}}); err == nil {
		t.Error("an unknown mode")
	}
}

func TestDNS(t *testing.T) {
	many := make([]netip.Addr, 100)
	for i := range many {
		many[i] = netip.AddrFrom4([4]byte{93, 184, 216, byte(i)})
	}
	w := &world{names: map[string][]netip.Addr{"example.com": {netip.MustParseAddr("2606:4700::1"), netip.MustParseAddr(site)}, "many.example": many}}
	n, _ := newNetwork(t, Config{}, w)
	g := plug(t, n)
	for _, c := range []struct {
		name string
		kind dnsmessage.Type
		ips  int
		code dnsmessage.RCode
	}{
		{"example.com", dnsmessage.TypeA, 1, 0},
		{"example.com", dnsmessage.TypeAAAA, 0, 0},
		{"example.com", typeHTTPS, 0, 0},
		{"example.com", dnsmessage.TypeTXT, 0, dnsmessage.RCodeNotImplemented},
		{"many.example", dnsmessage.TypeA, maxAnswers, 0},
		{"nowhere.example", dnsmessage.TypeA, 0, dnsmessage.RCodeNameError},
		{"1.0.0.127.in-addr.arpa", dnsmessage.TypePTR, 0, dnsmessage.RCodeNameError},
		{"hearth.internal", dnsmessage.TypeA, 1, 0},
		{"hearth.internal", dnsmessage.TypeAAAA, 0, 0},
		{"a.b.hearth.internal", dnsmessage.TypeA, 1, 0},
		{"nothearth.internal", dnsmessage.TypeA, 0, dnsmessage.RCodeNameError},
		{"bad name.example", dnsmessage.TypeA, 0, dnsmessage.RCodeNameError},
	} {
		if ips, code := g.lookup(c.name, c.kind); len(ips) != c.ips || code != c.code {
			t.Errorf("%s %v: %v %v, want %d %v", c.name, c.kind, ips, code, c.ips, c.code)
		}
	}
	// The same over TCP, two questions on one connection.
	conn, err := g.dial("10.0.2.3:53")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 2 {
		q := question("many.example", dnsmessage.TypeA)
		if _, err := conn.Write(append([]byte{0, byte(len(q))}, q...)); err != nil {
			t.Fatal(err)
		}
		size := make([]byte, 2)
		if _, err := io.ReadFull(conn, size); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, int(size[0])<<8|int(size[1]))
		if _, err := io.ReadFull(conn, answer); err != nil {
			t.Fatal(err)
		}
		if ips, _ := parseAnswer(t, answer); len(ips) != maxAnswers || len(answer) > 512 {
			t.Errorf("%d answers in %d bytes", len(ips), len(answer))
		}
	}
	if _, err := g.dial("10.0.2.3:80"); err == nil {
		t.Error("the name server has a web page")
	}
}

func FuzzDNS(f *testing.F) {
	f.Add(question("example.com", dnsmessage.TypeA))
	f.Add(question("hearth.internal", dnsmessage.TypeAAAA))
	f.Add([]byte{0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 0x0c, 0, 1, 0, 1})
	w := &world{names: map[string][]netip.Addr{"example.com": {netip.MustParseAddr(site)}}}
	n, err := New(Config{Dial: w.dial, Resolve: w.resolve})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(n.Close)
	f.Fuzz(func(t *testing.T, query []byte) {
		answer := n.answerDNS(t.Context(), query)
		if answer == nil {
			return
		}
		var msg dnsmessage.Message
		if err := msg.Unpack(answer); err != nil {
			t.Fatalf("% x: answered something unreadable: %v", query, err)
		}
		if len(answer) > 600 {
			t.Fatalf("%d bytes", len(answer))
		}
	})
}

func TestUDPThrough(t *testing.T) {
	w := &world{servers: map[string]string{}}
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(append([]byte("echo "), buf[:n]...), from)
		}
	})
	defer wg.Wait()
	defer server.Close()
	w.servers["udp "+site+":123"] = server.LocalAddr().String()
	n, rec := newNetwork(t, Config{Limits: Limits{UDPIdle: 200 * time.Millisecond}}, w)
	n.SetStep(9)
	g := plug(t, n)
	to := full(site + ":123")
	conn, err := gonet.DialUDP(g.stack, nil, &to, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	for i := range 3 {
		msg := fmt.Sprint("packet ", i, strings.Repeat(" and more", 400*i)) // up to three fragments
		if _, err := conn.Write([]byte(msg)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 65536)
		size, err := conn.Read(buf)
		if err != nil || string(buf[:size]) != "echo "+msg {
			t.Fatalf("%d bytes, %v", size, err)
		}
	}
	r := rec.wait(t, func(c Connection) bool { return c.Proto == "udp" }) // after the idle time
	if r.Step != 9 || r.BytesOut == 0 || r.BytesIn != r.BytesOut+15 {
		t.Errorf("%+v", r)
	}
	bad := full("192.168.1.1:53")
	conn2, err := gonet.DialUDP(g.stack, nil, &bad, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer conn2.Close()
	for range 5 {
		_, _ = conn2.Write([]byte("x"))
	}
	rec.wait(t, func(c Connection) bool { return c.Refused && c.Proto == "udp" })
	n.Close()
	refused := 0
	for _, c := range rec.all() {
		if c.Refused {
			refused++
		}
	}
	if refused != 1 {
		t.Errorf("%d records of the same refusal", refused)
	}
}

// ping sends one echo request and reports whether it is answered.
func (g *guest) ping(address string, wait time.Duration) bool {
	g.t.Helper()
	var wq waiter.Queue
	ep, err := g.stack.NewEndpoint(icmp.ProtocolNumber4, ipv4.ProtocolNumber, &wq)
	if err != nil {
		g.t.Fatal(err)
	}
	defer ep.Close()
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	packet := header.ICMPv4(make([]byte, header.ICMPv4MinimumSize))
	packet.SetType(header.ICMPv4Echo)
	packet.SetSequence(1)
	packet.SetChecksum(^checksum.Checksum(packet, 0))
	to := full(address + ":0")
	if _, err := ep.Write(bytes.NewReader(packet), tcpip.WriteOptions{To: &to}); err != nil {
		return false
	}
	select {
	case <-ready:
		return true
	case <-time.After(wait):
		return false
	}
}

func TestPing(t *testing.T) {
	n, _ := newNetwork(t, Config{}, &world{})
	g := plug(t, n)
	for _, address := range []string{"10.0.2.2", "10.0.2.3"} {
		if !g.ping(address, 10*time.Second) {
			t.Errorf("%s does not answer", address)
		}
	}
	// It would be a lie: nothing was asked of the real one.
	if g.ping("8.8.8.8", 100*time.Millisecond) {
		t.Error("8.8.8.8 seems to answer")
	}
}

func TestCables(t *testing.T) {
	w := &world{}
	n, rec := newNetwork(t, Config{}, w)
	w.serveTCP(t, site+":7", echo)
	for i := range 2 { // a machine, and its successor after a restart
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			cable, ours := net.Pipe()
			served := make(chan error, 1)
			go func() { served <- n.ServeFrames(ours) }()
			g := newGuest(t, cable)
			c, err := g.dial(site + ":7")
			if err != nil {
				t.Fatal(err)
			}
			second, theirs := net.Pipe()
			if err := n.ServeFrames(theirs); err == nil {
				t.Error("a second cable at the same time")
			}
			_ = second.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := second.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("a second cable at the same time: %v", err)
			}
			fmt.Fprint(c, "hello")
			if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
				t.Fatal(err)
			}
			cable.Close()
			<-served // the next may only come when this one is unplugged
		})
	}
	n.Close()
	n.Close() // twice is fine
	if got := rec.all(); len(got) != 2 || got[0].BytesIn != 5 {
		t.Errorf("connections cut by Close are not recorded: %+v", got)
	}
	a, b := net.Pipe()
	defer b.Close()
	if err := n.ServeFrames(a); err == nil {
		t.Error("ServeFrames after Close")
	}
}

func TestTap(t *testing.T) {
	n, _ := newNetwork(t, Config{}, &world{})
	if err := n.ServeTap(-1); err == nil {
		t.Error("a bad descriptor")
	}
	// A tap is a descriptor that keeps frames apart; so is a socket pair of
	// datagrams, which needs no privilege.
	ours, theirs := datagramPair(t)
	served := make(chan error, 1)
	go func() { served <- n.ServeTap(ours) }()
	ask := arpRequest(Guest, Gateway)
	if _, err := theirs.Write(ask); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	_ = theirs.SetReadDeadline(time.Now().Add(10 * time.Second))
	size, err := theirs.Read(buf)
	if err != nil || size < 42 || buf[21] != 2 {
		t.Fatalf("% x %v", buf[:size], err)
	}
	if mac := net.HardwareAddr(buf[22:28]).String(); mac != GatewayMAC {
		t.Errorf("the gateway's address is %s", mac)
	}
	n.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestConnectionLimit(t *testing.T) {
	w := &world{}
	n, rec := newNetwork(t, Config{Limits: Limits{Connections: 3}}, w)
	w.serveTCP(t, site+":7", echo)
	g := plug(t, n)
	var open []net.Conn
	for range 3 {
		c, err := g.dial(site + ":7")
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	if _, err := g.dial(site + ":7"); err == nil {
		t.Fatal("a fourth connection")
	}
	rec.wait(t, func(c Connection) bool { return strings.Contains(c.Reason, "too many") })
	open[0].Close()
	rec.wait(t, func(c Connection) bool { return !c.Refused }) // the slot is free
	for i := 0; ; i++ {
		c, err := g.dial(site + ":7")
		if err == nil {
			c.Close()
			break
		}
		if i > 100 {
			t.Fatal(err)
		}
	}
	for _, c := range open {
		c.Close()
	}
}

func TestRecordsAreBounded(t *testing.T) {
	var got []Connection
	r := newRecorder(func(c Connection) { got = append(got, c) }, 3)
	for i := range 10 {
		r.add(Connection{Step: 1, IP: netip.MustParseAddr(site), Port: uint16(i), BytesIn: 1, Start: time.Now()})
	}
	r.add(Connection{Step: 2, Start: time.Now()})
	r.flush()
	if len(got) != 5 || got[4].Dropped != 7 || got[4].BytesIn != 7 || got[4].Step != 1 {
		t.Errorf("%+v", got)
	}
	names := newNameTable(2)
	ip := func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{1, 1, 1, i}) }
	names.add(ip(1), "one")
	names.add(ip(2), "two")
	names.add(ip(1), "uno")
	names.add(ip(3), "three")
	if len(names.lookup(ip(2))) != 0 || fmt.Sprint(names.lookup(ip(1))) != "[one uno]" || len(names.names) != 2 {
		t.Errorf("%v", names.names)
	}
	for i := range 100 {
		names.add(ip(1), fmt.Sprint(i))
	}
	if got := names.lookup(ip(1)); len(got) != maxNamesPerAddress || got[len(got)-1] != "99" {
		t.Errorf("%v", got)
	}
}

// TestSilentGuest: a guest that stops reading costs a bounded queue, and Close
// does not wait for it.
func TestSilentGuest(t *testing.T) {
	w := &world{}
	n, _ := newNetwork(t, Config{}, w)
	ours, theirs := net.Pipe()
	defer theirs.Close()
	served := make(chan error, 1)
	go func() { served <- n.ServeFrames(ours) }()
	link := newStreamLink(theirs)
	for range 3000 { // more answers than the queue holds, none of them read
		if err := link.writeFrame(arpRequest(Guest, Gateway)); err != nil {
			t.Fatal(err)
		}
		if err := link.flush(); err != nil {
			t.Fatal(err)
		}
	}
	n.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestCloseInHandshake: a guest that begins connections and never finishes
// them holds nobody up.
func TestCloseInHandshake(t *testing.T) {
	w := &world{}
	n, _ := newNetwork(t, Config{Services: map[uint16]http.Handler{80: http.NotFoundHandler()}}, w)
	w.serveTCP(t, site+":7", echo)
	ours, theirs := net.Pipe()
	defer theirs.Close()
	served := make(chan error, 1)
	go func() { served <- n.ServeFrames(ours) }()
	link := newStreamLink(theirs)
	frames := make(chan []byte, 1000)
	go func() {
		defer close(frames)
		for {
			f, err := link.readFrame()
			if err != nil {
				return
			}
			frames <- bytes.Clone(f)
		}
	}()
	send := func(f []byte) {
		if err := link.writeFrame(f); err != nil {
			t.Error(err)
		}
		if err := link.flush(); err != nil {
			t.Error(err)
		}
	}
	send(arpRequest(Guest, Gateway))
	for i, dst := range []string{"10.0.2.2", site, "10.0.2.3"} {
		port := map[string]uint16{"10.0.2.2": 80, site: 7, "10.0.2.3": 53}[dst]
		syn := header.TCP(make([]byte, 20))
		syn.Encode(&header.TCPFields{SrcPort: uint16(4000 + i), DstPort: port, SeqNum: 1, DataOffset: 20, Flags: header.TCPFlagSyn, WindowSize: 65535})
		sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, tcpip.AddrFrom4(Guest.As4()), tcpip.AddrFrom4(netip.MustParseAddr(dst).As4()), 20)
		syn.SetChecksum(^syn.CalculateChecksum(sum))
		send(ipFrame("10.0.2.15", dst, 6, syn))
		for f := range frames { // until its handshake has begun
			if len(f) >= 54 && f[23] == 6 && f[47] == byte(header.TCPFlagSyn|header.TCPFlagAck) {
				break
			}
			if len(f) >= 42 && f[13] == 6 && f[21] == 1 { // who is the guest?
				reply := arpRequest(Guest, Gateway)
				reply[21] = 2
				copy(reply[32:], f[22:28])
				send(reply)
			}
		}
	}
	n.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// BenchmarkDownload moves data from a real server into a guest; both stacks
// are in this process, so the real thing costs about half.
func BenchmarkDownload(b *testing.B) {
	for _, mtu := range []int{1500, 9000, 65520} {
		b.Run(fmt.Sprint("mtu", mtu), func(b *testing.B) {
			w := &world{}
			n, _ := newNetwork(b, Config{Limits: Limits{MTU: mtu}}, w)
			chunk := make([]byte, 1<<20)
			w.serveTCP(b, site+":7", func(c net.Conn) {
				for {
					if _, err := c.Write(chunk); err != nil {
						return
					}
				}
			})
			g := plug(b, n)
			g.ep.SetMTU(uint32(mtu))
			c, err := g.dial(site + ":7")
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			b.SetBytes(int64(len(chunk)))
			buf := make([]byte, len(chunk))
			for b.Loop() {
				if _, err := io.ReadFull(c, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkUpload is the other way: frames of the guest that the stack parses.
func BenchmarkUpload(b *testing.B) {
	for _, mtu := range []int{1500, 9000} {
		b.Run(fmt.Sprint("mtu", mtu), func(b *testing.B) {
			w := &world{}
			n, _ := newNetwork(b, Config{Limits: Limits{MTU: mtu}}, w)
			got := make(chan int, 1024)
			w.serveTCP(b, site+":7", func(c net.Conn) {
				buf := make([]byte, 1<<20)
				for {
					n, err := io.ReadFull(c, buf)
					if err != nil {
						return
					}
					got <- n
				}
			})
			g := plug(b, n)
			g.ep.SetMTU(uint32(mtu))
			c, err := g.dial(site + ":7")
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			chunk := make([]byte, 1<<20)
			b.SetBytes(int64(len(chunk)))
			for b.Loop() {
				if _, err := c.Write(chunk); err != nil {
					b.Fatal(err)
				}
				<-got
			}
		})
	}
}

func BenchmarkConnect(b *testing.B) {
	w := &world{}
	n, _ := newNetwork(b, Config{}, w)
	w.serveTCP(b, site+":7", echo)
	g := plug(b, n)
	for b.Loop() {
		c, err := g.dial(site + ":7")
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}
