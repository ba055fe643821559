package guest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Options are what a Server may and should do. The zero value serves on a host:
// it runs commands as the user it runs as, and can neither resume nor power off.
type Options struct {
	// Release is the program's version, for Info.
	Release string
	// Runner is the user of commands and files that name none; "" or a name that does not exist is
	// the server's own user.
	Runner string
	// Environment is a file with what every command's environment has beside what it
	// is given, NAME=value a line; "" is none. It is read each time.
	Environment string
	// Sockets are the Unix sockets that the host may open a stream to (Client.Dial):
	// paths by name. nil is what our images have: see Engine.
	Sockets map[string]string
	// System changes the machine; nil refuses that.
	System System
	// ReapAll is for the first process of a machine: the server waits for every
	// child, also those it inherits. Nothing else in the process may wait for one then.
	ReapAll bool
	// Logf takes what goes wrong without a request to report it to; nil discards.
	Logf func(format string, args ...any)
}

// System is what only the first process of a machine can do.
type System interface {
	// Resume applies what is set in the Identity.
	Resume(Identity) error
	// Poweroff ends the machine. It is called after the answer was sent.
	Poweroff()
}

// Server is the agent: it serves connections until it is closed. Processes that
// outlive the command that started them go on; the server keeps emptying
// the pipes they inherited, so that they do not die of them.
type Server struct {
	opts    Options
	procs   *processes
	users   userTable
	drains  drains
	buffers sync.Pool              // of *[headerSize + MaxPayload]byte
	bootID  atomic.Pointer[string] // as last read; nil after a Resume
}

// NewServer returns a server; Close ends it.
func NewServer(opts Options) *Server {
	if opts.Logf == nil {
		opts.Logf = func(string, ...any) {}
	}
	if opts.Sockets == nil {
		opts.Sockets = map[string]string{Engine: engineSocket}
	}
	s := &Server{opts: opts, procs: newProcesses(opts.ReapAll)}
	s.buffers.New = func() any { return new([headerSize + MaxPayload]byte) }
	return s
}

// Close stops emptying the pipes of what commands left running. The connections
// must have ended (their contexts are done).
func (s *Server) Close() {
	s.drains.close()
	s.procs.close()
}

// Serve serves one connection with a server of its own; see Server.Serve.
func Serve(ctx context.Context, conn net.Conn, opts Options) error {
	s := NewServer(opts)
	defer s.Close()
	return s.Serve(ctx, conn)
}

// Serve answers on conn until it ends (nil), breaks, or ctx is done. Several
// hosts may follow each other on it: a new hello ends what the former one left.
// Serve does not close conn; when it returns nothing uses it any more. After ctx, the deadlines of conn are in the past.
func (s *Server) Serve(ctx context.Context, conn net.Conn) error {
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	br := bufio.NewReaderSize(conn, 32<<10)
	for {
		h, err := seekHello(br)
		for err == nil {
			sess := &session{
				server:  s,
				conn:    conn,
				tag:     h.nonce.tag(),
				streams: map[uint32]*serving{},
				pending: map[uint32][]byte{},
			}
			err = sess.serve(br, h)
			sess.close()
			if !errors.Is(err, errResync) {
				break
			}
			// Another host's hello may begin right here; if not, it is looked for.
			h, err = seekHello(br)
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == io.EOF:
			return nil
		case errors.Is(err, ErrProtocol):
			s.opts.Logf("connection: %v", err)
		default:
			return err
		}
	}
}

// info is what the hello is answered with. In a clone that is being emulated
// nothing is translated yet, and each file read adds milliseconds to the first
// reply; so names come from one system call, and the boot's is remembered.
func (s *Server) info() Info {
	i := Info{Version: ProtocolVersion, Release: s.opts.Release, CPUs: runtime.NumCPU(), PID: os.Getpid()}
	var u syscall.Utsname
	if syscall.Uname(&u) == nil {
		i.Kernel, i.Hostname = utsname(u.Release[:]), utsname(u.Nodename[:])
	}
	if id := s.bootID.Load(); id != nil {
		i.BootID = *id
	} else {
		i.BootID = line("/proc/sys/kernel/random/boot_id")
		s.bootID.Store(&i.BootID)
	}
	var si syscall.Sysinfo_t
	if syscall.Sysinfo(&si) == nil {
		i.Memory = int64(si.Totalram) * int64(si.Unit)
	}
	return i
}

func utsname[T int8 | uint8](field []T) string {
	var b []byte
	for _, c := range field {
		if c == 0 {
			break
		}
		b = append(b, byte(c))
	}
	return string(b)
}

// line returns the first line of a small file, "" if it cannot be read.
func line(path string) string {
	b, _ := os.ReadFile(path)
	s, _, _ := strings.Cut(string(b), "\n")
	return s[:min(len(s), 256)]
}

// session is one host on a connection.
type session struct {
	server *Server
	conn   net.Conn
	tag    uint32

	writeMu sync.Mutex
	closed  bool // guarded by writeMu: the connection is another host's

	mu      sync.Mutex
	streams map[uint32]*serving

	pending map[uint32][]byte // requests in several frames; only the reader touches it

	wg sync.WaitGroup
}

// serving is one request being served.
type serving struct {
	sess *session
	id   uint32
	op   op
	in   inbox
	out  credits

	cancelled chan struct{}
	once      sync.Once
	exec      *execution // of an exec
}

var (
	errSessionOver = errors.New("guest: the host has gone")
	errCancelled   = errors.New("cancelled")
)

// serve answers the hello and reads frames until the connection ends or another host's begins.
func (s *session) serve(br *bufio.Reader, h hello) error {
	info := s.server.info().encode()
	if _, err := s.conn.Write(appendWelcome(nil, h.nonce, ProtocolVersion, info)); err != nil {
		return err
	}
	if h.version != ProtocolVersion {
		return violation("the host speaks version %d", h.version) // it has read ours and goes
	}
	fr := &frameReader{r: br, tag: s.tag}
	for {
		h, p, err := fr.next()
		if err != nil {
			return err
		}
		if err := s.dispatch(h, p); err != nil {
			return err
		}
	}
}

func (s *session) dispatch(h header, p []byte) error {
	switch h.kind {
	case kindPing:
		return s.write(header{kind: kindPong}, message())
	case kindOpen:
		if more := s.pending[h.stream]; more != nil || h.flags&flagMore != 0 {
			if len(more)+len(p) > MaxRequest {
				return violation("a request of more than %d bytes", MaxRequest)
			}
			p = append(more, p...)
			if h.flags&flagMore != 0 {
				s.pending[h.stream] = p
				return nil
			}
			delete(s.pending, h.stream)
		} else {
			p = append([]byte(nil), p...)
		}
		return s.open(h.stream, op(h.ch), p)
	}
	s.mu.Lock()
	v := s.streams[h.stream]
	s.mu.Unlock()
	if v == nil {
		return nil // it has ended, and the host did not know that yet
	}
	switch h.kind {
	case kindData:
		return v.in.put(h.ch, p, h.flags&flagEnd != 0)
	case kindCredit:
		if len(p) != 4 {
			return violation("credit of %d bytes", len(p))
		}
		return v.out.grant(binary.BigEndian.Uint32(p))
	case kindCancel:
		v.cancel()
	case kindSignal:
		if n, ok := signalNumber(string(p)); ok && v.exec != nil {
			v.exec.signal(n)
		}
	case kindStop:
		d := decoder{b: p}
		name, grace := d.string(), time.Duration(d.int())
		if err := d.end(); err != nil {
			return err
		}
		if v.exec != nil {
			v.exec.stop(name, grace, stopCancelled)
		}
	case kindResize:
		if len(p) == 4 && v.exec != nil {
			v.exec.resize(TTY{Rows: binary.BigEndian.Uint16(p), Cols: binary.BigEndian.Uint16(p[2:])})
		}
	default:
		return violation("a frame of kind %d from the host", h.kind)
	}
	return nil
}

func (s *session) open(id uint32, o op, request []byte) error {
	v := &serving{sess: s, id: id, op: o, cancelled: make(chan struct{})}
	v.in.init()
	v.out.init()
	s.mu.Lock()
	if s.streams[id] != nil || id == 0 || len(s.streams) >= MaxStreams {
		s.mu.Unlock()
		return violation("stream %d opened twice, or one too many", id)
	}
	s.streams[id] = v
	s.mu.Unlock()
	switch o {
	case opPing:
		v.result(nil)
		return nil
	case opExec:
		spec, err := decodeExecSpec(request)
		if err != nil {
			return err
		}
		v.exec = newExecution(v, spec)
		s.wg.Go(v.exec.run)
		return nil
	}
	s.wg.Go(func() {
		result, err := v.do(o, request)
		if err != nil {
			v.fail(err, false)
			return
		}
		v.result(result)
		if o == opPoweroff {
			s.server.opts.System.Poweroff()
		}
	})
	return nil
}

// write sends one frame; buf has headerSize bytes of room before the payload.
func (s *session) write(h header, buf []byte) error {
	h.tag = s.tag
	h.length = uint32(len(buf) - headerSize)
	h.put(buf)
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if s.closed {
		return errSessionOver
	}
	_, err := s.conn.Write(buf)
	return err
}

// close kills what the session runs and waits until nothing of it uses the connection. It does not wait
// for the processes: one that cannot die must not keep the next host away.
func (s *session) close() {
	// A write may be stuck for the want of a reader; the next host skips the rest of it.
	s.conn.SetWriteDeadline(time.Unix(1, 0))
	s.writeMu.Lock()
	s.closed = true
	s.writeMu.Unlock()
	s.mu.Lock()
	all := make([]*serving, 0, len(s.streams))
	for _, v := range s.streams {
		all = append(all, v)
	}
	s.mu.Unlock()
	for _, v := range all {
		v.cancel()
	}
	s.wg.Wait()
	s.conn.SetWriteDeadline(time.Time{})
}

// cancel ends a request nobody wants any more.
func (v *serving) cancel() {
	v.once.Do(func() {
		close(v.cancelled)
		v.out.close(errCancelled)
		if v.exec != nil {
			v.exec.stop("SIGKILL", 0, stopCancelled)
		}
	})
}

// end takes the stream off the session; after it the final frame is sent.
func (v *serving) end() {
	v.sess.mu.Lock()
	delete(v.sess.streams, v.id)
	v.sess.mu.Unlock()
	v.out.close(errStreamEnded)
}

func (v *serving) result(p []byte) {
	if len(p) > MaxPayload {
		v.fail(fmt.Errorf("a result of %d bytes", len(p)), false)
		return
	}
	v.end()
	v.sess.write(header{stream: v.id, kind: kindResult}, message(p...))
}

func (v *serving) fail(err error, start bool) {
	v.end()
	v.sess.write(header{stream: v.id, kind: kindError}, message(encodeError(err, start)...))
}

// send sends data as credit allows; buf has headerSize bytes of room before them.
func (v *serving) send(ch uint8, buf []byte) error {
	for len(buf) > headerSize {
		n, err := v.out.take(len(buf) - headerSize)
		if err != nil {
			return err
		}
		if err := v.sess.write(header{stream: v.id, kind: kindData, ch: ch}, buf[:headerSize+n]); err != nil {
			return err
		}
		buf = buf[n:]
	}
	return nil
}

// Write sends p as the data of a request's answer, for what writes archives.
func (v *serving) Write(p []byte) (int, error) {
	buf := make([]byte, headerSize+min(len(p), MaxPayload))
	done := 0
	for done < len(p) {
		n := copy(buf[headerSize:], p[done:])
		if err := v.send(chanOut, buf[:headerSize+n]); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// consume hands what the host sends to fn until the end mark, an error of fn, or the cancellation.
func (v *serving) consume(fn func(p []byte) error) error {
	var b batch
	for {
		select {
		case <-v.in.ready:
		case <-v.cancelled:
			return errCancelled
		}
		if _, ok := v.in.take(&b); !ok {
			continue
		}
		ended := false
		err := b.each(func(_ uint8, p []byte, end bool) error {
			ended = ended || end
			if len(p) == 0 {
				return nil
			}
			return fn(p)
		})
		if err != nil {
			return err
		}
		if ended {
			return nil
		}
		v.granted(b.cost)
	}
}

func (v *serving) granted(cost int) {
	if n := v.in.release(cost); n > 0 {
		v.sess.write(header{stream: v.id, kind: kindCredit}, binary.BigEndian.AppendUint32(message(), n))
	}
}

// Read makes a request's input an io.Reader (see input).
type input struct {
	v     *serving
	b     batch
	data  []byte
	ended bool
}

func (r *input) Read(p []byte) (int, error) {
	for len(r.data) == 0 {
		if r.ended {
			return 0, io.EOF
		}
		if r.b.cost > 0 {
			r.v.granted(r.b.cost)
		}
		select {
		case <-r.v.in.ready:
		case <-r.v.cancelled:
			return 0, errCancelled
		}
		r.v.in.take(&r.b)
		r.data = r.b.buf
		for _, s := range r.b.segs {
			r.ended = r.ended || s.end
		}
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}
