package guest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
)

// agent plays an agent by hand: it answers the hello and hands over to act.
func agent(t testing.TB, act func(conn net.Conn, br *bufio.Reader, tag uint32)) (*Client, error) {
	t.Helper()
	host, guest := net.Pipe()
	var done sync.WaitGroup
	done.Go(func() {
		defer guest.Close()
		br := bufio.NewReader(guest)
		h, err := seekHello(br)
		if err != nil {
			return
		}
		guest.Write(appendWelcome(nil, h.nonce, ProtocolVersion, Info{Version: 1}.encode()))
		act(guest, br, h.nonce.tag())
	})
	c, err := New(t.Context(), host)
	if err != nil {
		guest.Close()
		done.Wait()
		return nil, err
	}
	t.Cleanup(func() { c.Close(); done.Wait() })
	return c, nil
}

func frame(tag, stream uint32, k kind, ch uint8, p []byte) []byte {
	return appendFrame(nil, header{tag: tag, stream: stream, kind: k, ch: ch, length: uint32(len(p))}, p)
}

// Whatever an agent does wrong, Exec reports an error: never a success, never for ever.
func TestHostileAgent(t *testing.T) {
	ok := Exit{}.encode()
	credit := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	for name, say := range map[string]func(w io.Writer, tag uint32){
		"nothing":           func(w io.Writer, tag uint32) {},
		"garbage":           func(w io.Writer, tag uint32) { w.Write(bytes.Repeat([]byte("garbage "), 1000)) },
		"zeros":             func(w io.Writer, tag uint32) { w.Write(make([]byte, 100_000)) },
		"half a header":     func(w io.Writer, tag uint32) { w.Write(frame(tag, 1, kindResult, 0, ok)[:7]) },
		"half a result":     func(w io.Writer, tag uint32) { w.Write(frame(tag, 1, kindResult, 0, ok)[:20]) },
		"output, no result": func(w io.Writer, tag uint32) { w.Write(frame(tag, 1, kindData, chanOut, []byte("done, all fine\n"))) },
		"wrong tag":         func(w io.Writer, tag uint32) { w.Write(frame(tag+1, 1, kindResult, 0, ok)) },
		"wrong stream":      func(w io.Writer, tag uint32) { w.Write(frame(tag, 2, kindResult, 0, ok)) },
		"stream 0":          func(w io.Writer, tag uint32) { w.Write(frame(tag, 0, kindResult, 0, ok)) },
		"huge frame": func(w io.Writer, tag uint32) {
			w.Write(header{tag: tag, stream: 1, kind: kindData, ch: chanOut, length: 1 << 31}.bytes())
		},
		"frame a byte too big": func(w io.Writer, tag uint32) { w.Write(frame(tag, 1, kindData, chanOut, make([]byte, MaxPayload+1))) },
		"unknown kind":         func(w io.Writer, tag uint32) { w.Write(frame(tag, 1, 99, 0, nil)) },
		"a host's kind":        func(w io.Writer, tag uint32) { w.Write(frame(tag, 1, kindOpen, 1, nil)) },
		"data on channel 0":    func(w io.Writer, tag uint32) { w.Write(frame(tag, 1, kindData, 0, []byte("x"))) },
		"data on channel 7":    func(w io.Writer, tag uint32) { w.Write(frame(tag, 1, kindData, 7, []byte("x"))) },
		"empty result":         func(w io.Writer, tag uint32) { w.Write(frame(tag, 1, kindResult, 0, nil)) },
		"result cut off":       func(w io.Writer, tag uint32) { w.Write(frame(tag, 1, kindResult, 0, ok[:len(ok)-1])) },
		"result and more":      func(w io.Writer, tag uint32) { w.Write(frame(tag, 1, kindResult, 0, append(ok[:len(ok):len(ok)], 1))) },
		"killed with code 0":   func(w io.Writer, tag uint32) { w.Write(frame(tag, 1, kindResult, 0, Exit{Signal: "SIGKILL"}.encode())) },
		"malformed error":      func(w io.Writer, tag uint32) { w.Write(frame(tag, 1, kindError, 0, []byte{0xff})) },
		"error with long text": func(w io.Writer, tag uint32) {
			var e encoder
			e.uint(0)
			e.bool(false)
			e.string(strings.Repeat("x", maxErrorText+1))
			w.Write(frame(tag, 1, kindError, 0, e.b))
		},
		"credit of 3 bytes":   func(w io.Writer, tag uint32) { w.Write(frame(tag, 1, kindCredit, 0, []byte{1, 2, 3})) },
		"credit not taken":    func(w io.Writer, tag uint32) { w.Write(frame(tag, 1, kindCredit, 0, credit(1))) },
		"credit wraps around": func(w io.Writer, tag uint32) { w.Write(frame(tag, 1, kindCredit, 0, credit(1<<32-1))) },
	} {
		t.Run(name, func(t *testing.T) {
			c, err := agent(t, func(conn net.Conn, br *bufio.Reader, tag uint32) {
				(&frameReader{r: br, tag: tag}).next()
				say(conn, tag)
			})
			if err != nil {
				t.Fatal(err)
			}
			exit, err := c.Exec(t.Context(), Cmd{Argv: []string{"true"}, Stdin: nil})
			if !errors.Is(err, ErrLost) {
				t.Errorf("exit %+v, error %v", exit, err)
			}
			<-c.Done()
			if _, err := c.Exec(t.Context(), Cmd{Argv: []string{"true"}}); !errors.Is(err, ErrLost) {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

func (h header) bytes() []byte {
	b := make([]byte, headerSize)
	h.put(b)
	return b
}

// An agent that ignores the window is cut off before it fills memory.
func TestHostileFlood(t *testing.T) {
	for name, size := range map[string]int{"full frames": MaxPayload, "empty frames": 0, "one byte each": 1} {
		t.Run(name, func(t *testing.T) {
			sent := 0
			c, err := agent(t, func(conn net.Conn, br *bufio.Reader, tag uint32) {
				(&frameReader{r: br, tag: tag}).next()
				f := frame(tag, 1, kindData, chanOut, make([]byte, size))
				for i := range f[headerSize:] {
					f[headerSize+i] = byte(i)
				}
				for ; sent < 10*Window; sent += len(f) {
					f[13] = chanOut + uint8(sent/len(f)%2) // no two frames make one segment
					if _, err := conn.Write(f); err != nil {
						return
					}
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			stuck := make(chan struct{})
			t.Cleanup(func() { close(stuck) })
			_, err = c.Exec(t.Context(), Cmd{Argv: []string{"true"}, Stdout: writerFunc(func(p []byte) (int, error) {
				<-c.Done() // takes nothing until the connection is over
				return len(p), nil
			})})
			if !errors.Is(err, ErrProtocol) || !errors.Is(err, ErrLost) {
				t.Error(err)
			}
			if sent > 2*Window+Window/2 { // one window held, one being consumed
				t.Errorf("took %d bytes", sent)
			}
		})
	}
}

// Text from the guest cannot play with the terminal.
func TestErrorTextIsPrintable(t *testing.T) {
	c, err := agent(t, func(conn net.Conn, br *bufio.Reader, tag uint32) {
		(&frameReader{r: br, tag: tag}).next()
		conn.Write(frame(tag, 1, kindError, 0, encodeError(errors.New("\x1b[2J\xff\u202e evil\n"), false)))
		io.Copy(io.Discard, br)
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Exec(t.Context(), Cmd{Argv: []string{"x"}})
	if _, ok := errors.AsType[*Error](err); !ok || strings.ContainsAny(err.Error(), "\x1b\u202e\n") || !utf8.ValidString(err.Error()) {
		t.Errorf("%q", err)
	}
}

func TestUnresponsiveAgent(t *testing.T) {
	for name, tt := range map[string]struct {
		cmd  Cmd
		pong bool
		most time.Duration
	}{
		"says nothing":                {Cmd{Argv: []string{"x"}}, false, 2 * time.Minute},
		"answers pings, never ends":   {Cmd{Argv: []string{"x"}, Timeout: time.Hour, Grace: time.Minute}, true, time.Hour + 3*time.Minute},
		"says nothing during timeout": {Cmd{Argv: []string{"x"}, Timeout: time.Hour}, false, 2 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, err := agent(t, func(conn net.Conn, br *bufio.Reader, tag uint32) {
					fr := &frameReader{r: br, tag: tag}
					for {
						h, _, err := fr.next()
						if err != nil {
							return
						}
						if h.kind == kindPing && tt.pong {
							conn.Write(frame(tag, 0, kindPong, 0, nil))
						}
					}
				})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(24 * time.Hour) // nothing is asked: it may be silent
				start := time.Now()
				exit, err := c.Exec(t.Context(), tt.cmd)
				if !errors.Is(err, ErrUnresponsive) || !errors.Is(err, ErrLost) {
					t.Error(exit, err)
				}
				if d := time.Since(start); d > tt.most {
					t.Errorf("after %v", d)
				}
				if d := time.Since(start); tt.pong && d < tt.cmd.Timeout {
					t.Errorf("after %v, before the timeout", d)
				}
			})
		})
	}
}

// An agent that ignores the end of a context does not keep Exec for ever.
func TestUnresponsiveToCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := agent(t, func(conn net.Conn, br *bufio.Reader, tag uint32) {
			fr := &frameReader{r: br, tag: tag}
			for {
				h, _, err := fr.next()
				if err != nil {
					return
				}
				if h.kind == kindPing {
					conn.Write(frame(tag, 0, kindPong, 0, nil))
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if exit, err := c.Exec(ctx, Cmd{Argv: []string{"x"}}); !errors.Is(err, ErrLost) {
			t.Error(exit, err)
		}
	})
}

func TestConnectRetries(t *testing.T) {
	good := serverHere(t, Options{})
	tries := 0
	c, err := Connect(t.Context(), func(ctx context.Context) (net.Conn, error) {
		tries++
		switch tries {
		case 1:
			return nil, errors.New("no such socket")
		case 2: // accepted, and gone: Firecracker's vsock after a restore
			a, b := net.Pipe()
			b.Close()
			return a, nil
		case 3: // gone after the hello
			a, b := net.Pipe()
			go func() { io.ReadFull(b, make([]byte, helloSize)); b.Close() }()
			return a, nil
		case 4: // gone in the middle of the answer
			a, b := net.Pipe()
			go func() {
				h, _ := seekHello(bufio.NewReader(b))
				b.Write(appendWelcome(nil, h.nonce, ProtocolVersion, Info{}.encode())[:30])
				b.Close()
			}()
			return a, nil
		case 5: // not an agent at all
			a, b := net.Pipe()
			go func() {
				io.ReadFull(b, make([]byte, helloSize))
				b.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
				b.Close()
			}()
			return a, nil
		}
		return good(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if tries != 6 {
		t.Error(tries)
	}
	if out, _ := run(t, c, "echo hi"); out != "hi\n" {
		t.Error(out)
	}
}

func TestConnectGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("the machine has ended")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Minute, func() { cancel(why) })
		_, err := Connect(ctx, func(context.Context) (net.Conn, error) {
			a, b := net.Pipe()
			go func() { io.Copy(io.Discard, b); b.Close() }() // an agent that hangs
			return a, nil
		})
		if !errors.Is(err, why) {
			t.Error(err)
		}
	})
}

func TestVersion(t *testing.T) {
	_, err := Connect(t.Context(), func(context.Context) (net.Conn, error) {
		a, b := net.Pipe()
		go func() {
			h, _ := seekHello(bufio.NewReader(b))
			b.Write(appendWelcome(nil, h.nonce, ProtocolVersion+1, []byte("whatever it says then")))
			b.Close()
		}()
		return a, nil
	})
	if !errors.Is(err, ErrVersion) {
		t.Error(err)
	}
}

// On a channel without connections each host begins in the middle of something.
func TestHostsFollowEachOther(t *testing.T) {
	for name, left := range map[string]func(tag uint32) []byte{
		"nothing":             func(uint32) []byte { return nil },
		"noise":               func(uint32) []byte { return bytes.Repeat([]byte("noise"), 12345) },
		"half a header":       func(tag uint32) []byte { return frame(tag, 1, kindData, 0, make([]byte, 100))[:9] },
		"half a frame":        func(tag uint32) []byte { return frame(tag, 1, kindData, 0, make([]byte, MaxPayload))[:headerSize+100] },
		"a frame but a byte":  func(tag uint32) []byte { f := frame(tag, 1, kindData, 0, make([]byte, 10)); return f[:len(f)-1] },
		"an unfinished hello": func(uint32) []byte { return hello{version: 1}.append(nil)[:30] },
		"half a request": func(tag uint32) []byte {
			return appendFrame(nil, header{tag: tag, stream: 9, kind: kindOpen, ch: 1, flags: flagMore, length: 3}, []byte("abc"))
		},
		"another's frames": func(tag uint32) []byte { return bytes.Repeat(frame(tag^0x5a5a, 1, kindOpen, uint8(opPing), nil), 100) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host, agent, err := socketPair()
			if err != nil {
				t.Fatal(err)
			}
			s := NewServer(Options{})
			var served sync.WaitGroup
			served.Go(func() {
				s.Serve(context.Background(), agent)
				agent.Close()
			})
			defer func() { host.Close(); served.Wait(); s.Close() }()

			// The first host goes away in the middle of an exec that is printing.
			first, err := New(t.Context(), keepOpen{host})
			if err != nil {
				t.Fatal(err)
			}
			tag := first.tag
			file := t.TempDir() + "/pids"
			p, err := first.Start(t.Context(), Cmd{Argv: []string{"sh", "-c", "echo $$ >" + file + "; exec yes"}})
			if err != nil {
				t.Fatal(err)
			}
			waitFor(t, func() bool { b, err := io.ReadAll(openOrEmpty(file)); return err == nil && len(b) > 0 })
			first.fail(errors.New("host dies"))
			host.SetReadDeadline(time.Unix(1, 0)) // its reader ends, the channel stays
			first.wg.Wait()
			if _, err := p.Wait(); !errors.Is(err, ErrLost) {
				t.Error(err)
			}
			host.SetDeadline(time.Time{})
			host.Write(left(tag))

			second, err := New(t.Context(), keepOpen{host})
			if err != nil {
				t.Fatal(err)
			}
			if out, _ := run(t, second, "echo hi"); out != "hi\n" {
				t.Error(out)
			}
			// It was killed before the second host was heard, which does not wait until it is dead.
			waitFor(t, func() bool { return len(alive(t, file)) == 0 })
			second.Close()
		})
	}
}

// keepOpen is a channel that a client's end does not close.
type keepOpen struct{ net.Conn }

func (k keepOpen) Close() error { return k.Conn.SetReadDeadline(time.Unix(1, 0)) }

func TestMessagesRoundTrip(t *testing.T) {
	exit := Exit{Code: 137, Signal: "SIGKILL", TimedOut: true, Cancelled: true, Duration: 5, UserTime: 6, SysTime: 7, MaxRSS: 8}
	if got, err := decodeExit(exit.encode()); err != nil || got != exit {
		t.Error(got, err)
	}
	info := Info{1, "r", "k", "b", "h", 2, 3, 4}
	if got, err := decodeInfo(info.encode()); err != nil || got != info {
		t.Error(got, err)
	}
	spec := execSpec{[]string{"a", ""}, []string{"A=b"}, "/", "u", true, true, 1, 2, 3, 4, "SIGINT", 9}
	if got, err := decodeExecSpec(spec.encode()); err != nil || !reflect.DeepEqual(got, spec) {
		t.Error(got, err)
	}
	file := FileInfo{1, 0o755, time.Unix(5, 6), 7, 8, "t"}
	if got, err := decodeFileInfo(file.encode()); err != nil || got != file {
		t.Error(got, err)
	}
	id := Identity{"h", time.Unix(1, 2), []byte("e"), "m", "b", "i", "g", "d", "a"}
	if got, err := decodeIdentity(id.encode()); err != nil || fmt.Sprint(got) != fmt.Sprint(id) {
		t.Error(got, err)
	}
	usage := Usage{1, 2, 3, 4, 5, 6, 7, 8, 9, 1.25, 11, 12, 13}
	if got, err := decodeUsage(usage.encode()); err != nil || got != usage {
		t.Error(got, err)
	}
}

func FuzzFrameReader(f *testing.F) {
	f.Add(frame(7, 1, kindData, 1, []byte("abc")))
	f.Add(frame(7, 1, kindData, 1, make([]byte, MaxPayload)))
	f.Add(append(frame(7, 1, kindPing, 0, nil), frame(8, 1, kindPing, 0, nil)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &frameReader{r: bufio.NewReader(bytes.NewReader(b)), tag: 7}
		total := 0
		for {
			h, p, err := r.next()
			if err != nil {
				if err == io.EOF && total != len(b) {
					t.Error("a clean end in the middle")
				}
				return
			}
			if h.tag != 7 || len(p) != int(h.length) || len(p) > MaxPayload {
				t.Error(h, len(p))
			}
			total += headerSize + len(p)
		}
	})
}

func FuzzSeekHello(f *testing.F) {
	h := hello{nonce: nonce{1, 2, 3, 4}, version: 1}
	f.Add([]byte("noise"))
	f.Add(h.append([]byte(hostMagic)))
	f.Add(h.append(nil)[:30])
	f.Fuzz(func(t *testing.T, noise []byte) {
		// Whatever comes before it, a hello is found, unless it is the rest of what came before.
		b := h.append(append(noise[:len(noise):len(noise)], make([]byte, helloSize)...))
		r := bufio.NewReader(bytes.NewReader(b))
		for {
			got, err := seekHello(r)
			if err != nil {
				t.Fatalf("not found: %v", err)
			}
			if got == h {
				return
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(execSpec{argv: []string{"a"}}.encode())
	f.Add(Identity{Hostname: "x"}.encode())
	f.Add(encodeError(io.EOF, true))
	f.Fuzz(func(t *testing.T, b []byte) {
		decodeInfo(b)
		decodeExit(b)
		decodeUsage(b)
		decodeFileInfo(b)
		decodeIdentity(b)
		decodeError(opExec, b)
		if s, err := decodeExecSpec(b); err == nil {
			if again, err := decodeExecSpec(s.encode()); err != nil || !reflect.DeepEqual(s, again) {
				t.Error(s, again, err)
			}
		}
	})
}

// FuzzClient plays an agent that says anything after the hello. An Exec must end, and with an error unless
// the bytes hold a whole final message for it.
func FuzzClient(f *testing.F) {
	const tag = 0x01020304
	result := frame(tag, 1, kindResult, 0, Exit{Code: 1}.encode())
	f.Add(result)
	f.Add(append(frame(tag, 1, kindData, chanOut, []byte("hi")), result...))
	f.Add(append(frame(tag, 1, kindCredit, 0, []byte{0, 0, 0, 16}), result...))
	f.Add(frame(tag, 1, kindError, 0, encodeError(io.EOF, true)))
	f.Add(frame(tag, 1, kindPong, 0, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		host, guest := net.Pipe()
		c := &Client{conn: host, tag: tag, slots: make(chan struct{}, MaxStreams), streams: map[uint32]*stream{}, start: time.Now(), dead: make(chan struct{})}
		var wg sync.WaitGroup
		wg.Go(func() {
			(&frameReader{r: bufio.NewReader(guest), tag: tag}).next()
			guest.SetDeadline(time.Now().Add(5 * time.Second))
			go io.Copy(io.Discard, guest)
			guest.Write(b)
			guest.Close()
		})
		var taken int
		p, err := c.Start(t.Context(), Cmd{Argv: []string{"x"}, Stdout: writerFunc(func(p []byte) (int, error) { taken += len(p); return len(p), nil })})
		if err != nil {
			t.Fatal(err)
		}
		c.wg.Go(func() { c.fail(c.read(bufio.NewReaderSize(host, 64<<10))) })
		exit, err := p.Wait()
		final := bytes.Contains(b, []byte{0, 0, 0, 1}) // the stream's number must be somewhere in it
		if err == nil && !final {
			t.Error(exit)
		}
		if taken > len(b) {
			t.Error(taken)
		}
		c.Close()
		wg.Wait()
	})
}

// openOrEmpty opens a file that may not exist yet.
func openOrEmpty(path string) io.Reader {
	b, _ := os.ReadFile(path)
	return bytes.NewReader(b)
}

func TestInHome(t *testing.T) {
	for p, want := range map[string]string{"": Home, ".": Home, "a/": Home + "/a", "~/a": Home + "/a", "/a/../b": "/b", "../..": "/", "~": Home + "/~"} {
		if got := InHome(p); got != want {
			t.Errorf("%q: %s, want %s", p, got, want)
		}
	}
}
