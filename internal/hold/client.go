package hold

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/history"
	"github.com/hearth-ci/hearth/internal/vm"
)

// Client talks to one holder.
type Client struct {
	id, path string
	http     *http.Client
}

// ErrNone says that there is no such machine.
var ErrNone = errors.New("no such VM")

// ErrGone says that the holder of a machine is gone, and the machine with it.
var ErrGone = errors.New("its holder is gone, and the machine with it")

// Open finds the machine with the id, or the only one whose id begins so, among
// the sockets in dir. It does not talk to it yet.
func Open(dir, id string) (*Client, error) {
	ids, err := sockets(dir)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, have := range ids {
		if have == id {
			found = []string{have}
			break
		}
		if id != "" && strings.HasPrefix(have, id) {
			found = append(found, have)
		}
	}
	switch len(found) {
	case 1:
		return dial(dir, found[0]), nil
	case 0:
		return nil, fmt.Errorf("%w: %q", ErrNone, id)
	}
	return nil, fmt.Errorf("%w: %q could be %s", ErrNone, id, strings.Join(found, ", "))
}

func dial(dir, id string) *Client {
	c := &Client{id: id, path: Socket(dir, id)}
	c.http = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return vm.DialUnix(ctx, c.path) },
	}}
	return c
}

func sockets(dir string) ([]string, error) {
	all, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range all {
		if id, ok := strings.CutSuffix(e.Name(), suffix); ok && e.Type() == os.ModeSocket {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// List asks every holder in dir. What a dead holder left is removed, and in the
// list once more, as Dead. A holder that does not answer within the time of ctx is
// listed with an empty state.
func List(ctx context.Context, dir string) ([]Status, error) {
	ids, err := sockets(dir)
	if err != nil {
		return nil, err
	}
	out := make([]Status, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() {
			c := dial(dir, id)
			st, err := c.Status(ctx)
			switch {
			case errors.Is(err, ErrGone):
				st = Status{ID: id, State: Dead, Said: c.bury()}
			case err != nil:
				st = Status{ID: id}
			}
			out[i] = st
		})
	}
	wg.Wait()
	slices.SortFunc(out, func(a, b Status) int { return a.Created.Compare(b.Created) })
	return out, nil
}

// ID is the machine's.
func (c *Client) ID() string { return c.id }

// fail says which machine an error is about, and that a holder is gone where that
// is what it means.
func (c *Client) fail(err error) error {
	var f *Fault
	switch {
	case err == nil:
		return nil
	case errors.As(err, &f):
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		err = ErrGone
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return fmt.Errorf("VM %s: %w", c.id, err)
}

func (c *Client) do(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://vm"+path+"?"+query.Encode(), body)
	if err != nil {
		return nil, err
	}
	return c.http.Do(req)
}

func (c *Client) call(ctx context.Context, method, path string, query url.Values, body io.Reader, into any) error {
	r, err := c.do(ctx, method, path, query, body)
	if err != nil {
		return c.fail(err)
	}
	defer r.Body.Close()
	return c.fail(open(r.Body, into))
}

func open(r io.Reader, into any) error {
	var e envelope
	if err := json.NewDecoder(io.LimitReader(r, 8<<20)).Decode(&e); err != nil {
		return err
	}
	if e.Fault != nil {
		return e.Fault
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(e.Value, into)
}

// Status asks how the machine is.
func (c *Client) Status(ctx context.Context) (st Status, err error) {
	err = c.call(ctx, "GET", "/", nil, nil, &st)
	return st, err
}

// Remove ends the machine and its holder, and waits for it. A machine that is dead
// already is removed.
func (c *Client) Remove(ctx context.Context) error {
	err := c.call(ctx, "DELETE", "/", nil, nil, nil)
	if errors.Is(err, ErrGone) {
		c.bury()
		return nil
	}
	return err
}

// bury removes what a dead holder left here, and returns its last words.
func (c *Client) bury() string {
	os.Remove(c.path)
	log := strings.TrimSuffix(c.path, suffix) + ".log"
	f, err := os.Open(log)
	if err != nil {
		return ""
	}
	defer f.Close()
	defer os.Remove(log)
	if st, err := f.Stat(); err == nil && st.Size() > 4<<10 {
		f.Seek(-4<<10, io.SeekEnd)
	}
	b, _ := io.ReadAll(io.LimitReader(f, 4<<10))
	return vm.LastLines(string(b), 5)
}

// Snapshot writes the machine down under a name, which it returns; "" chooses one.
func (c *Client) Snapshot(ctx context.Context, name string) (given string, err error) {
	err = c.call(ctx, "POST", "/snapshots", url.Values{"name": {name}}, nil, &given)
	return given, err
}

// Rollback puts the machine back to a snapshot.
func (c *Client) Rollback(ctx context.Context, name string) error {
	return c.call(ctx, "POST", "/rollback", url.Values{"name": {name}}, nil, nil)
}

// Stat says what a path in the machine is.
func (c *Client) Stat(ctx context.Context, path string) (st guest.FileInfo, err error) {
	err = c.call(ctx, "GET", "/stat", url.Values{"path": {path}}, nil, &st)
	return st, err
}

// TarIn unpacks an archive below dir in the machine, as guest.Client.TarIn does.
func (c *Client) TarIn(ctx context.Context, dir string, r io.Reader, user string) error {
	return c.call(ctx, "PUT", "/tar", url.Values{"dir": {dir}, "user": {user}}, io.NopCloser(r), nil)
}

// TarOut writes an archive of paths, relative to dir in the machine, to w. It is
// the guest's word: see archive.Unpack.
func (c *Client) TarOut(ctx context.Context, dir string, paths []string, w io.Writer) error {
	r, err := c.do(ctx, "GET", "/tar", url.Values{"dir": {dir}, "path": paths}, nil)
	if err != nil {
		return c.fail(err)
	}
	defer r.Body.Close()
	if r.Header.Get("Content-Type") == "application/json" {
		return c.fail(open(r.Body, nil))
	}
	if _, err := io.Copy(w, r.Body); err != nil {
		return c.fail(err)
	}
	var f *Fault
	if err := json.Unmarshal([]byte(r.Trailer.Get(ended)), &f); err != nil {
		return c.fail(io.ErrUnexpectedEOF)
	}
	if f != nil {
		return c.fail(f)
	}
	return nil
}

// Exec runs a command as guest.Client.Exec does; resize, if not nil, tells the new
// sizes of its terminal. When ctx is done the connection is closed, and the holder
// ends the command.
func (c *Client) Exec(ctx context.Context, cmd guest.Cmd, resize <-chan guest.TTY) (guest.Exit, error) {
	end, _, err := c.run(ctx, cmd, resize, request{})
	return end, err
}

// ExecInStep is Exec where the failed step of a paused job stood: in its directory,
// if the command has none, and with its environment, over which goes the command's.
func (c *Client) ExecInStep(ctx context.Context, cmd guest.Cmd, resize <-chan guest.TTY) (guest.Exit, error) {
	end, _, err := c.run(ctx, cmd, resize, request{InStep: true})
	return end, err
}

// Answer ends the pause of a job.
func (c *Client) Answer(ctx context.Context, a Answer) error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return c.call(ctx, "POST", "/answer", nil, bytes.NewReader(b), nil)
}

// Learning has a command learned from.
type Learning struct {
	Repository string   // whose memory it is
	Secrets    []string // values that must not be remembered
	// Expected, if set, hears what is expected before the command runs.
	Expected func(history.Expectation)
}

// ExecLearned is Exec, and the command is learned from. A failure is explained; nil
// if the holder learns nothing.
func (c *Client) ExecLearned(ctx context.Context, cmd guest.Cmd, l Learning) (guest.Exit, *ci.Explanation, error) {
	return c.run(ctx, cmd, nil, request{Learn: l.Repository, Secrets: l.Secrets, expected: l.Expected})
}

// run runs cmd, in the way that r says.
func (c *Client) run(ctx context.Context, cmd guest.Cmd, resize <-chan guest.TTY, r request) (guest.Exit, *ci.Explanation, error) {
	r.Argv, r.Env, r.Dir, r.User, r.Timeout, r.Stdin, r.TTY = cmd.Argv, cmd.Env, cmd.Dir, cmd.User, cmd.Timeout, cmd.Stdin != nil, cmd.TTY
	res, err := c.exec(ctx, cmd, resize, r)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return res.Exit, res.Explained, c.fail(err)
}

func (c *Client) exec(ctx context.Context, cmd guest.Cmd, resize <-chan guest.TTY, r request) (result, error) {
	var none result
	body, err := json.Marshal(r)
	if err != nil {
		return none, err
	}
	conn, err := vm.DialUnix(ctx, c.path)
	if err != nil {
		return none, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	req, err := http.NewRequest("POST", "http://vm/exec", bytes.NewReader(body))
	if err != nil {
		return none, err
	}
	if err := req.Write(conn); err != nil {
		return none, err
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, req)
	if err != nil {
		return none, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		return none, cmpErr(open(resp.Body, nil), errors.New("the holder speaks another protocol"))
	}
	out := &frames{w: conn}
	credit := newCredit(window)
	defer credit.close()
	if cmd.Stdin != nil {
		// Not waited for: a Read of a terminal cannot be interrupted. It ends with
		// the input, or at its next byte.
		go send(out, cmd.Stdin, credit)
	}
	done := make(chan struct{})
	defer close(done)
	if resize != nil {
		go func() {
			for {
				select {
				case t := <-resize:
					b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, t.Rows), t.Cols)
					if out.send(frameResize, b) != nil {
						return
					}
				case <-done:
					return
				}
			}
		}()
	}
	var buf []byte
	for {
		kind, p, grown, err := next(in, buf)
		if err != nil {
			return none, err
		}
		buf = grown
		w := cmd.Stdout
		switch kind {
		case frameStdout:
		case frameStderr:
			w = cmd.Stderr
		case frameCredit:
			if len(p) == 4 {
				credit.add(int(binary.BigEndian.Uint32(p)))
			}
			continue
		case frameResult:
			var res result
			if err := json.Unmarshal(p, &res); err != nil {
				return none, err
			}
			if res.Fault != nil {
				return res, res.Fault
			}
			return res, nil
		case frameExpect:
			var e history.Expectation
			if err := json.Unmarshal(p, &e); err != nil {
				return none, err
			}
			if r.expected != nil {
				r.expected(e)
			}
			continue
		default:
			return none, fmt.Errorf("hold: a frame of kind %q", kind)
		}
		if w != nil {
			if _, err := w.Write(p); err != nil {
				return none, fmt.Errorf("writing the command's output: %w", err)
			}
		}
	}
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func send(out *frames, in io.Reader, c *credit) {
	buf := make([]byte, maxFrame/2)
	for {
		n, err := in.Read(buf)
		for p := buf[:n]; len(p) > 0; {
			k := c.take(len(p))
			if k == 0 || out.send(frameStdin, p[:k]) != nil {
				return
			}
			p = p[k:]
		}
		if err != nil {
			out.send(frameEOF, nil)
			return
		}
	}
}

// credit is how much may be sent.
type credit struct {
	mu     sync.Mutex
	cond   *sync.Cond
	n      int
	closed bool
}

func newCredit(n int) *credit {
	c := &credit{n: n}
	c.cond = sync.NewCond(&c.mu)
	return c
}

func (c *credit) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += n
	c.cond.Signal()
}

func (c *credit) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.cond.Broadcast()
}

// take waits for credit and takes at most n of it; 0 says that there will be none.
func (c *credit) take(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.n == 0 && !c.closed {
		c.cond.Wait()
	}
	if c.closed {
		return 0
	}
	n = min(n, c.n)
	c.n -= n
	return n
}

// Litter removes files of dead holders in dir that are older than a minute: logs
// without a socket.
func Litter(dir string) {
	logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	for _, f := range logs {
		st, err := os.Stat(f)
		if err != nil || time.Since(st.ModTime()) < time.Minute {
			continue
		}
		if _, err := os.Stat(strings.TrimSuffix(f, ".log") + suffix); errors.Is(err, os.ErrNotExist) {
			os.Remove(f)
		}
	}
}
