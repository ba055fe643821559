package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// The addresses, the same in every machine.
var (
	Subnet  = netip.MustParsePrefix("10.0.2.0/24")
	Gateway = netip.MustParseAddr("10.0.2.2") // also HostName: our services
	DNS     = netip.MustParseAddr("10.0.2.3")
	Guest   = netip.MustParseAddr("10.0.2.15")
)

// GatewayMAC is the gateway's Ethernet address. The guest's is the driver's choice.
const GatewayMAC = "52:55:0a:00:02:02"

// Config is everything about a network. The zero Config is a working network
// under the default policy.
type Config struct {
	// Policy says what the guest may reach.
	Policy Policy
	// Services are served to the guest, and to nobody else, on the gateway's
	// address, by port. Plain HTTP: the wire never leaves this process.
	Services map[uint16]http.Handler
	// Resolve looks up a name's IPv4 addresses; nil is the host's resolver. A
	// *net.DNSError with IsNotFound becomes NXDOMAIN.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)
	// Dial makes a connection out ("tcp" or "udp", an IP address and a port
	// that the policy has passed); nil is net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Record, if set, gets each connection when it has ended or was refused,
	// one call at a time. It must not call back into the Network.
	Record func(Connection)
	// Limits bound what one guest can occupy; zero fields take their default.
	Limits Limits
	// Log hears what is odd, at debug level mostly: a guest must not be able
	// to fill the log. nil is silence.
	Log *slog.Logger
}

// Limits bound what one guest can occupy.
type Limits struct {
	Connections int           // at once, TCP and UDP; 256
	Buffer      int           // bytes buffered per TCP connection and direction; 1 MiB
	Records     int           // connections recorded per step; 1000
	Names       int           // addresses whose names are remembered; 4096
	Queries     int           // DNS queries under way at once; 32
	DNSTimeout  time.Duration // of one query; 10 s
	DialTimeout time.Duration // of one connection out; 30 s
	UDPIdle     time.Duration // after which a UDP flow is forgotten; 60 s
	MTU         int           // largest IP packet sent to the guest, bytes; 1500
}

func (l Limits) withDefaults() Limits {
	l.Connections = cmp.Or(l.Connections, 256)
	l.Buffer = cmp.Or(l.Buffer, 1<<20)
	l.Records = cmp.Or(l.Records, 1000)
	l.Names = cmp.Or(l.Names, 4096)
	l.Queries = cmp.Or(l.Queries, 32)
	l.DNSTimeout = cmp.Or(l.DNSTimeout, 10*time.Second)
	l.DialTimeout = cmp.Or(l.DialTimeout, 30*time.Second)
	l.UDPIdle = cmp.Or(l.UDPIdle, 60*time.Second)
	l.MTU = cmp.Or(l.MTU, 1500)
	return l
}

// nic is the number of the stack's only interface.
const nic = 1

// Network is one machine's network.
type Network struct {
	cfg      Config
	rules    *rules
	record   *recorder
	names    *nameTable
	step     atomic.Int64
	stack    *stack.Stack
	ep       *channel.Endpoint // the stack's end of the cable
	services map[uint16]*connListener
	servers  []*http.Server
	slots    chan struct{} // a token for each connection
	queries  chan struct{} // a token for each DNS query
	buffers  sync.Pool     // *[]byte of relayBuffer bytes

	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // every goroutine of ours

	mu      sync.Mutex // guards what follows
	closed  bool
	link    link
	cables  int              // how many were unplugged
	closers map[*func()]bool // what Close has to interrupt; true: unplugging too
}

var errClosed = errors.New("network is closed")

// New starts a network that no machine is connected to yet. It fails if the
// policy makes no sense. Close it.
func New(cfg Config) (*Network, error) {
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Resolve == nil {
		cfg.Resolve = func(ctx context.Context, name string) ([]netip.Addr, error) {
			// The final dot: no search domains of the host's.
			return net.DefaultResolver.LookupNetIP(ctx, "ip4", name+".")
		}
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	r, err := compile(cfg.Policy)
	if err != nil {
		return nil, err
	}
	if r.own, err = hostAddresses(); err != nil {
		return nil, fmt.Errorf("network: reading this host's addresses: %w", err)
	}
	n := &Network{
		cfg:      cfg,
		rules:    r,
		record:   newRecorder(cfg.Record, cfg.Limits.Records),
		names:    newNameTable(cfg.Limits.Names),
		services: map[uint16]*connListener{},
		slots:    make(chan struct{}, cfg.Limits.Connections),
		queries:  make(chan struct{}, cfg.Limits.Queries),
		closers:  map[*func()]bool{},
	}
	n.buffers.New = func() any { b := make([]byte, relayBuffer); return &b }
	n.ctx, n.cancel = context.WithCancelCause(context.Background())
	if err := n.startStack(); err != nil {
		n.Close()
		return nil, fmt.Errorf("network: %w", err)
	}
	n.startServices()
	return n, nil
}

// hostAddresses returns the addresses that are this host.
func hostAddresses() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out, nil
}

func (n *Network) startStack() error {
	n.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
		// HandleLocal stays off: with it, packets between two addresses that
		// are both ours would never come up the cable.
	})
	mac, err := tcpip.ParseMACAddress(GatewayMAC)
	if err != nil {
		return err
	}
	// The queue towards the guest. A guest that does not read loses packets.
	n.ep = channel.New(1024, uint32(n.cfg.Limits.MTU), mac)
	if err := n.stack.CreateNIC(nic, ethernet.New(n.ep)); err != nil {
		return errors.New(err.String())
	}
	for _, ip := range []netip.Addr{Gateway, DNS} {
		addr := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber,
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(ip.As4()), PrefixLen: Subnet.Bits()}}
		if err := n.stack.AddProtocolAddress(nic, addr, stack.AddressProperties{}); err != nil {
			return errors.New(err.String())
		}
	}
	n.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}})
	// Take packets for every address, and answer in its name.
	if err := n.stack.SetPromiscuousMode(nic, true); err != nil {
		return errors.New(err.String())
	}
	if err := n.stack.SetSpoofing(nic, true); err != nil {
		return errors.New(err.String())
	}
	// The cable loses nothing: a guest that does not answer does not want to.
	retries := tcpip.TCPSynRetriesOption(3)
	sack := tcpip.TCPSACKEnabled(true)
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: min(256<<10, n.cfg.Limits.Buffer), Max: n.cfg.Limits.Buffer}
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: min(256<<10, n.cfg.Limits.Buffer), Max: n.cfg.Limits.Buffer}
	for _, opt := range []tcpip.SettableTransportProtocolOption{&retries, &sack, &rcv, &snd} {
		if err := n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, opt); err != nil {
			return errors.New(err.String())
		}
	}
	tcpForwarder := tcp.NewForwarder(n.stack, 0, n.cfg.Limits.Connections, n.handleTCP)
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcpForwarder.HandlePacket)
	udpForwarder := udp.NewForwarder(n.stack, n.handleUDP)
	n.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udpForwarder.HandlePacket)
	return n.startDNS()
}

// SetStep says which step, by its number, the connections opened from now on
// belong to.
func (n *Network) SetStep(number int) { n.step.Store(int64(number)) }

// ServeFrames is the cable: frames, each behind its length in four bytes
// (big-endian), both ways, until the other side or the Network closes it. It
// closes conn. Only one cable can be plugged in at a time. It returns nil when
// the other side closed between two frames, or the Network was closed.
func (n *Network) ServeFrames(conn net.Conn) error { return n.serve(newStreamLink(conn)) }

// ServeTap is ServeFrames for an open tap interface (IFF_TAP | IFF_NO_PI), one
// frame a read. It takes the descriptor over.
func (n *Network) ServeTap(fd int) error {
	if err := syscall.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("network: tap: %w", err)
	}
	f := os.NewFile(uintptr(fd), "tap")
	if f == nil {
		return errors.New("network: tap: bad descriptor")
	}
	return n.serve(&datagramLink{rw: f, in: make([]byte, maxFrame)})
}

func (n *Network) serve(l link) error {
	if !n.enter() {
		l.Close()
		return errClosed
	}
	defer n.wg.Done()
	n.mu.Lock()
	busy := n.link != nil
	if !busy {
		n.link = l
	}
	n.mu.Unlock()
	if busy {
		l.Close()
		return errors.New("network: a machine is connected already")
	}
	var once sync.Once
	closeLink := func() { once.Do(func() { l.Close() }) }
	done, err := n.onClose(closeLink)
	if err != nil {
		return err // onClose closed it
	}
	defer done()
	n.ep.Drain() // meant for the machine before this one

	ctx, cancel := context.WithCancel(n.ctx)
	writer := make(chan error, 1)
	go func() {
		err := n.writeFrames(ctx, l)
		closeLink() // so that the reader ends too
		writer <- err
	}()
	readErr := n.readFrames(l)
	cancel()
	closeLink()
	writeErr := <-writer

	n.mu.Lock()
	n.link = nil
	n.cables++
	var interrupt []func()
	for f, unplug := range n.closers {
		if unplug {
			interrupt = append(interrupt, *f)
		}
	}
	n.mu.Unlock()
	for _, f := range interrupt {
		f()
	}
	n.abortTCP()
	if n.ctx.Err() != nil || readErr == nil {
		return nil
	}
	if errors.Is(readErr, net.ErrClosed) && writeErr != nil {
		return fmt.Errorf("network: sending to the machine: %w", writeErr)
	}
	return fmt.Errorf("network: receiving from the machine: %w", readErr)
}

// writeFrames sends what the stack has for the guest until ctx ends.
func (n *Network) writeFrames(ctx context.Context, l link) error {
	for {
		pkt := n.ep.Read()
		if pkt == nil {
			// Nothing waits: now is the time to send, and to sleep.
			if err := l.flush(); err != nil {
				return err
			}
			if pkt = n.ep.ReadContext(ctx); pkt == nil {
				return nil
			}
		}
		err := l.writeFrame(pkt.AsSlices()...)
		pkt.DecRef()
		if err != nil {
			return err
		}
	}
}

// readFrames hands what comes from the guest to the stack; nil at a clean end.
func (n *Network) readFrames(l link) error {
	for {
		frame, err := l.readFrame()
		if err != nil {
			if isEnd(err) {
				return nil
			}
			return err
		}
		if !acceptFrame(frame) {
			continue
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
		n.ep.InjectInbound(0, pkt) // the Ethernet header says which protocol
		pkt.DecRef()
	}
}

// enter counts the caller among the goroutines that Close waits for; false
// when it is too late.
func (n *Network) enter() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	n.wg.Add(1)
	return true
}

// start runs f in a goroutine that Close waits for; false when it is too late.
func (n *Network) start(f func()) bool {
	if !n.enter() {
		return false
	}
	go func() {
		defer n.wg.Done()
		f()
	}()
	return true
}

// onClose has f called by Close, unless done was called before. When the
// network is closed already it calls f at once and returns an error.
func (n *Network) onClose(f func()) (done func(), err error) { return n.onEnd(f, -1) }

// onUnplug is onClose for what the machine at a cable started: the next
// machine has no part in it.
func (n *Network) onUnplug(cable int, f func()) (done func(), err error) { return n.onEnd(f, cable) }

// cable tells one machine's time at the cable from the next one's.
func (n *Network) cable() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cables
}

func (n *Network) onEnd(f func(), cable int) (done func(), err error) {
	n.mu.Lock()
	if n.closed || cable >= 0 && cable != n.cables {
		n.mu.Unlock()
		f()
		return nil, errClosed
	}
	n.closers[&f] = cable >= 0
	n.mu.Unlock()
	return func() {
		n.mu.Lock()
		delete(n.closers, &f)
		n.mu.Unlock()
	}, nil
}

// Close ends every connection and returns when nothing of the network runs any
// more and everything has been recorded. It may be called twice.
func (n *Network) Close() {
	n.mu.Lock()
	first := !n.closed
	n.closed = true
	var interrupt []func()
	for f := range n.closers {
		interrupt = append(interrupt, *f)
	}
	n.mu.Unlock()
	if first {
		n.cancel(errClosed)
		for _, f := range interrupt {
			f()
		}
		for _, s := range n.servers {
			s.Close()
		}
		if n.stack != nil {
			n.stack.Close()
		}
	}
	n.waitAll()
	if first {
		if n.ep != nil {
			n.ep.Close()
		}
		if n.stack != nil {
			n.stack.Wait()
		}
		n.record.flush()
	}
}

// waitAll waits for all goroutines. A handshake that the guest does not finish
// can only be interrupted by aborting its endpoint, and it may get its endpoint
// after everything else was closed, so this looks again until all is quiet.
func (n *Network) waitAll() {
	quiet := make(chan struct{})
	go func() {
		n.wg.Wait()
		close(quiet)
	}()
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		select {
		case <-quiet:
			return
		case <-time.After(wait):
		}
		n.abortTCP()
	}
}

// abortTCP ends what the stack has under way with the guest, handshakes
// included.
func (n *Network) abortTCP() {
	for _, e := range n.stack.RegisteredEndpoints() {
		if _, ok := e.(*tcp.Endpoint); ok {
			e.Abort()
		}
	}
}

// connListener is a net.Listener that connections are put into.
type connListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *connListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *connListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *connListener) Addr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(Gateway, 0))
}

func (n *Network) startServices() {
	for port, handler := range n.cfg.Services {
		l := &connListener{conns: make(chan net.Conn), done: make(chan struct{})}
		server := &http.Server{
			Handler:           handler,
			ReadHeaderTimeout: 30 * time.Second,
			IdleTimeout:       2 * time.Minute,
			MaxHeaderBytes:    64 << 10,
			BaseContext:       func(net.Listener) context.Context { return n.ctx },
			ErrorLog:          slog.NewLogLogger(n.cfg.Log.Handler(), slog.LevelDebug),
		}
		n.services[port] = l
		n.servers = append(n.servers, server)
		n.start(func() { _ = server.Serve(l) })
	}
}

// startDNS answers on the name server's address.
func (n *Network) startDNS() error {
	addr := &tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(DNS.As4()), Port: 53}
	conn, err := gonet.DialUDP(n.stack, addr, nil, ipv4.ProtocolNumber)
	if err != nil {
		return err
	}
	done, err := n.onClose(func() { conn.Close() })
	if err != nil {
		return err
	}
	n.start(func() {
		defer done()
		buf := make([]byte, maxQuery)
		// Queries wait for a token inside; this bounds how many wait.
		waiting := make(chan struct{}, 4*n.cfg.Limits.Queries)
		for {
			size, from, err := conn.ReadFrom(buf)
			if err != nil {
				if n.ctx.Err() != nil {
					return
				}
				continue
			}
			select {
			case waiting <- struct{}{}:
			default:
				continue // the guest asks again
			}
			query := append([]byte(nil), buf[:size]...)
			if !n.start(func() {
				defer func() { <-waiting }()
				if answer := n.answerDNS(n.ctx, query); answer != nil {
					_, _ = conn.WriteTo(answer, from)
				}
			}) {
				return
			}
		}
	})
	return nil
}
