package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// relayBuffer is how much is carried at a time, for each direction.
const relayBuffer = 32 << 10

func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	if a.Len() != 4 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(netip.AddrFrom4(a.As4()), port)
}

// isEnd reports whether a read ended because there is no more, properly.
func isEnd(err error) bool { return errors.Is(err, io.EOF) }

// slot takes one of the connections that a guest may have at once.
func (n *Network) slot() (release func(), ok bool) {
	select {
	case n.slots <- struct{}{}:
		return func() { <-n.slots }, true
	default:
		return nil, false
	}
}

// newFlow begins the record of a connection.
func (n *Network) newFlow(proto string, to netip.AddrPort) (*flow, []string) {
	names := n.names.lookup(to.Addr())
	f := &flow{c: Connection{Step: int(n.step.Load()), IP: to.Addr(), Port: to.Port(), Proto: proto, Start: time.Now()}}
	if len(names) > 0 {
		f.c.Host = names[len(names)-1]
	}
	return f, names
}

func (n *Network) refuse(f *flow, reason string) {
	c := f.end()
	c.Refused, c.Reason = true, reason
	n.record.add(c)
}

// handleTCP is called, in a goroutine of the stack's, for each first packet of
// a TCP connection that the guest makes.
func (n *Network) handleTCP(r *tcp.ForwarderRequest) {
	if !n.enter() {
		r.Complete(true)
		return
	}
	defer n.wg.Done()
	cable := n.cable()
	to := addrPort(r.ID().LocalAddress, r.ID().LocalPort)
	release, ok := n.slot()
	if !ok {
		f, _ := n.newFlow("tcp", to)
		n.refuse(f, "too many connections at once")
		r.Complete(true)
		return
	}
	switch to.Addr() {
	case Gateway:
		n.serveTCP(r, to.Port(), cable, release)
	case DNS:
		defer release()
		n.dnsTCP(r, to.Port(), cable)
	default:
		defer release()
		n.forwardTCP(r, to, cable)
	}
}

// accept finishes the guest's handshake.
func accept(r *tcp.ForwarderRequest) (*gonet.TCPConn, error) {
	var wq waiter.Queue
	ep, err := r.CreateEndpoint(&wq)
	r.Complete(err != nil)
	if err != nil {
		return nil, errors.New(err.String())
	}
	ep.SocketOptions().SetDelayOption(false)
	return gonet.NewTCPConn(&wq, ep), nil
}

// serveTCP hands a connection to the service at a port of the gateway.
func (n *Network) serveTCP(r *tcp.ForwarderRequest, port uint16, cable int, release func()) {
	l := n.services[port]
	if l == nil {
		release()
		r.Complete(true)
		return
	}
	conn, err := accept(r)
	if err != nil {
		release()
		return
	}
	counted := &countedConn{TCPConn: conn, release: release}
	if counted.done, err = n.onUnplug(cable, func() { interrupt(conn) }); err != nil {
		counted.Close()
		return
	}
	select {
	case l.conns <- counted:
	case <-l.done:
		counted.Close()
	case <-n.ctx.Done():
		counted.Close()
	}
}

// countedConn gives its slot back when it is closed.
type countedConn struct {
	*gonet.TCPConn
	once    sync.Once
	release func()
	done    func() // no longer of interest to Close
}

func (c *countedConn) Close() error {
	c.once.Do(func() {
		c.release()
		if c.done != nil {
			c.done()
		}
	})
	return c.TCPConn.Close()
}

// interrupt closes a connection and wakes up who reads or writes it, which
// closing alone does not promise with netstack.
func interrupt(c net.Conn) {
	_ = c.SetDeadline(time.Unix(1, 0))
	c.Close()
}

func (n *Network) dnsTCP(r *tcp.ForwarderRequest, port uint16, cable int) {
	if port != 53 {
		r.Complete(true)
		return
	}
	conn, err := accept(r)
	if err != nil {
		return
	}
	defer conn.Close()
	done, err := n.onUnplug(cable, func() { interrupt(conn) })
	if err != nil {
		return
	}
	defer done()
	n.serveDNSStream(n.ctx, conn)
}

// forwardTCP connects the guest with the world, if the policy allows. The
// world is dialled before the guest's handshake is finished, so that a guest
// sees "connection refused" and not a connection that ends at once.
func (n *Network) forwardTCP(r *tcp.ForwarderRequest, to netip.AddrPort, cable int) {
	f, names := n.newFlow("tcp", to)
	if reason := n.rules.connect(to.Addr(), to.Port(), names); reason != "" {
		n.refuse(f, reason)
		r.Complete(n.rules.refuse)
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.Limits.DialTimeout)
	out, err := n.cfg.Dial(ctx, "tcp", to.String())
	cancel()
	if err != nil {
		f.c.Reason = "could not connect: " + err.Error()
		n.record.add(f.end())
		// Who did not answer us has not answered the guest.
		silent, ok := errors.AsType[net.Error](err)
		r.Complete(!ok || !silent.Timeout())
		return
	}
	// The guest may leave its handshake unfinished for ever.
	done, err := n.onUnplug(cable, func() { out.Close() })
	if err != nil {
		r.Complete(true)
		return
	}
	in, err := accept(r)
	done()
	if err != nil {
		out.Close()
		f.c.Reason = "the guest gave up"
		n.record.add(f.end())
		return
	}
	n.relay(in, out, f, cable)
	n.record.add(f.end())
}

// halfCloser is a connection that can be closed in one direction.
type halfCloser interface{ CloseWrite() error }

// relay carries bytes both ways until both ends are done, one fails, or the
// network closes. It closes both.
func (n *Network) relay(guest, world net.Conn, f *flow, cable int) {
	closeBoth := func() { interrupt(guest); world.Close() }
	defer closeBoth()
	done, err := n.onUnplug(cable, closeBoth)
	if err != nil {
		return
	}
	defer done()
	pipe := func(dst, src net.Conn, count *atomic.Int64) {
		if err := n.carry(dst, src, count); err != nil {
			closeBoth() // the other direction has no future either
			return
		}
		if half, ok := dst.(halfCloser); !ok || half.CloseWrite() != nil {
			closeBoth()
		}
	}
	var back sync.WaitGroup
	back.Go(func() { pipe(guest, world, &f.in) })
	pipe(world, guest, &f.out)
	back.Wait()
}

// carry copies until the end of src, which is no error.
func (n *Network) carry(dst io.Writer, src io.Reader, count *atomic.Int64) error {
	buf := n.buffers.Get().(*[]byte)
	defer n.buffers.Put(buf)
	for {
		size, readErr := src.Read(*buf)
		if size > 0 {
			written, err := dst.Write((*buf)[:size])
			count.Add(int64(written))
			if err != nil {
				return err
			}
		}
		if readErr != nil {
			if isEnd(readErr) {
				return nil
			}
			return readErr
		}
	}
}

// handleUDP is called in the path of packets, so it must not wait, for each
// first packet of a UDP flow. When it returns false the stack answers that the
// port is unreachable.
func (n *Network) handleUDP(r *udp.ForwarderRequest) bool {
	to := addrPort(r.ID().LocalAddress, r.ID().LocalPort)
	if to.Addr() == Gateway || to.Addr() == DNS {
		return false
	}
	f, names := n.newFlow("udp", to)
	if reason := n.rules.connect(to.Addr(), to.Port(), names); reason != "" {
		n.refuse(f, reason)
		return !n.rules.refuse
	}
	release, ok := n.slot()
	if !ok {
		n.refuse(f, "too many connections at once")
		return false
	}
	var wq waiter.Queue
	ep, err := r.CreateEndpoint(&wq)
	if err != nil {
		release()
		return true // a packet of a flow that another one is just opening
	}
	guest := gonet.NewUDPConn(&wq, ep)
	cable := n.cable()
	if !n.start(func() {
		defer release()
		defer guest.Close()
		n.forwardUDP(guest, to, f, cable)
		n.record.add(f.end())
	}) {
		guest.Close()
		release()
	}
	return true
}

func (n *Network) forwardUDP(guest net.Conn, to netip.AddrPort, f *flow, cable int) {
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.Limits.DialTimeout)
	world, err := n.cfg.Dial(ctx, "udp", to.String())
	cancel()
	if err != nil {
		f.c.Reason = "could not connect: " + err.Error()
		return
	}
	closeBoth := func() { interrupt(guest); world.Close() }
	defer closeBoth()
	done, err := n.onUnplug(cable, closeBoth)
	if err != nil {
		return
	}
	defer done()
	var last atomic.Int64 // when a packet last went either way
	last.Store(time.Now().UnixNano())
	idle := n.cfg.Limits.UDPIdle
	pipe := func(dst, src net.Conn, count *atomic.Int64) {
		defer closeBoth()
		buf := make([]byte, 65536)
		for {
			_ = src.SetReadDeadline(time.Unix(0, last.Load()).Add(idle))
			size, err := src.Read(buf)
			if err != nil {
				timeout, ok := errors.AsType[net.Error](err)
				if ok && timeout.Timeout() && time.Since(time.Unix(0, last.Load())) < idle {
					continue
				}
				return
			}
			last.Store(time.Now().UnixNano())
			// A packet that cannot be sent is a packet lost.
			if written, err := dst.Write(buf[:size]); err == nil {
				count.Add(int64(written))
			}
		}
	}
	var back sync.WaitGroup
	back.Go(func() { pipe(guest, world, &f.in) })
	pipe(world, guest, &f.out)
	back.Wait()
}
