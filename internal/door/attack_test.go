package door

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A page of another site under a name that resolves to this server (DNS
// rebinding): its browser takes both for one origin, and read the logs of a
// server on localhost.
func TestAttackForeignHost(t *testing.T) {
	base, _ := url.Parse("https://hearth.example.org")
	h, err := NewHosts(base, []string{"ci.internal", "Other.example:8080", "[2001:db8::1]:9"})
	if err != nil {
		t.Fatal(err)
	}
	local := &net.TCPAddr{IP: net.ParseIP("192.0.2.7"), Port: 8787}
	for host, want := range map[string]bool{
		"hearth.example.org": true, "HEARTH.example.org.": true, "hearth.example.org:8443": true, "localhost:8787": true, "localhost": true, "127.0.0.1:8787": true,
		"127.1.2.3:1": true, "[::1]:8787": true, "[::1]": true, "192.0.2.7:8787": true, "ci.internal": true, "ci.internal:99": true, "other.example:8080": true,
		"[2001:db8::1]:9": true,

		"attacker.example": false, "attacker.example:8787": false, "hearth.example.org.attacker.example": false, "xhearth.example.org": false,
		"localhost.attacker.example": false, "127.0.0.1.attacker.example": false, "other.example": false, "192.0.2.8:8787": false, "0.0.0.0:8787": false,
		"": false, ":8787": false,
		"localhost@attacker.example": false, "attacker.example#localhost": false, "[::1": false, "[::1]x:1": false, "2130706433": false, "[::ffff:192.0.2.8]": false,
	} {
		if got := h.Allowed(host, local); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
	reached := false
	s := httptest.NewServer(h.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true })))
	defer s.Close()
	req, _ := http.NewRequest("GET", s.URL, nil)
	req.Host = "attacker.example"
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusMisdirectedRequest || reached || !strings.Contains(string(text), "hosts") ||
		!strings.Contains(string(text), "attacker.example") {
		t.Errorf("%s %s", resp.Status, text)
	}
	for _, bad := range []string{"https://x", "a b", "", "a:b:c", "*.example.org"} {
		if _, err := NewHosts(nil, []string{bad}); err == nil {
			t.Errorf("hosts %q is taken", bad)
		}
	}
	any, _ := url.Parse("http://[::]:8787")
	if h, _ := NewHosts(any, nil); h.Allowed("[::]:8787", nil) {
		t.Error("an address that is none")
	}
}

// What another site's page has a browser do (CSRF): logging somebody out, or in.
func TestAttackOtherSite(t *testing.T) {
	base, _ := url.Parse("https://hearth.example.org")
	h, err := SameOrigin(base, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), "/api/")
	if err != nil {
		t.Fatal(err)
	}
	do := func(method, path string, kv ...string) int {
		r := httptest.NewRequest(method, path, nil)
		r.Host = "127.0.0.1:8787" // as a proxy may have it
		for i := 0; i < len(kv); i += 2 {
			r.Header.Set(kv[i], kv[i+1])
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	for _, c := range []struct {
		code int
		kv   []string
	}{
		{403, []string{"Sec-Fetch-Site", "cross-site"}}, {403, []string{"Sec-Fetch-Site", "same-site"}}, {403, []string{"Origin", "https://attacker.example"}},
		{403, []string{"Origin", "null"}},
		{200, nil}, {200, []string{"Sec-Fetch-Site", "same-origin"}}, {200, []string{"Origin", "https://hearth.example.org"}},
		{200, []string{"Origin", "https://hearth.example.org", "Sec-Fetch-Site", "cross-site"}},
	} {
		if got := do("POST", "/logout", c.kv...); got != c.code {
			t.Errorf("%v: %d, want %d", c.kv, got, c.code)
		}
	}
	if do("GET", "/", "Sec-Fetch-Site", "cross-site") != 200 {
		t.Error("a link from another site is refused")
	}
}

// taker is a server that takes bodies in and answers how that went.
func taker(t *testing.T, b *Bodies, most int64, client func(*http.Request) string) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := b.Take(w, r, most, client(r), nil)
		if err != nil {
			status := 400
			if errors.Is(err, ErrFull) {
				status = 503
			} else if errors.Is(err, ErrSlow) {
				status = 408
			}
			http.Error(w, err.Error(), status)
			return
		}
		defer body.Close()
		all, err := body.Bytes(r.Context())
		if err != nil {
			http.Error(w, err.Error(), 500)
			return
		}
		fmt.Fprint(w, len(all))
	}))
	t.Cleanup(s.Close)
	return s
}

// stuck opens a connection that announces a body, sends some of it, and no more.
func stuck(t *testing.T, s *httptest.Server, client string, announce, send int) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\nX-Client: %s\r\nContent-Length: %d\r\n\r\n", client, announce)
	c.Write(bytes.Repeat([]byte{'x'}, send))
	return c
}

func byHeader(r *http.Request) string { return r.Header.Get("X-Client") }

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain until ", what)
		}
	}
}

func post(t *testing.T, url, client string, n int) (int, string) {
	t.Helper()
	req, _ := http.NewRequest("POST", url, bytes.NewReader(bytes.Repeat([]byte{'y'}, n)))
	req.Header.Set("X-Client", client)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, strings.TrimSpace(string(text))
}

// Bodies of which nobody knows whether they are signed: 1,500 of 1 MB took 3 GiB.
// What is held stays below the sum, in memory and on disk, however many there
// are; and nothing of them is left.
func TestAttackBodiesInSum(t *testing.T) {
	dir := t.TempDir()
	b := &Bodies{Count: 40, Memory: 1 << 20, Disk: 8 << 20, Dir: dir}
	s := taker(t, b, 1<<20, byHeader)
	var most, mostDisk atomic.Int64
	watching, stop := context.WithCancel(context.Background())
	var watch sync.WaitGroup
	watch.Go(func() {
		for watching.Err() == nil {
			n, mem, disk := b.Held()
			most.Store(max(most.Load(), mem))
			mostDisk.Store(max(mostDisk.Load(), disk))
			if n > 40 {
				t.Error(n, "bodies at once")
			}
			time.Sleep(time.Millisecond)
		}
	})
	for range 120 {
		stuck(t, s, "attacker", 1<<20, 300<<10)
	}
	// Somebody else's goes through beside them, small and large.
	for _, n := range []int{20 << 10, 900 << 10} {
		if code, text := post(t, s.URL, "github", n); code != 200 || text != fmt.Sprint(n) {
			t.Errorf("%d bytes beside them: %d %s", n, code, text)
		}
	}
	stop()
	watch.Wait()
	if m := most.Load(); m > 1<<20+1<<20 || m == 0 { // and one that was read back
		t.Errorf("%d bytes in memory", m)
	}
	if m := mostDisk.Load(); m > 8<<20 || m == 0 {
		t.Errorf("%d bytes on disk", m)
	}
	s.CloseClientConnections()
	until(t, "nothing is held", func() bool { n, mem, disk := b.Held(); return n == 0 && mem == 0 && disk == 0 })
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("files have names: %v", left)
	}
}

// Some slow bodies filled all the places there were for large ones, and every
// delivery after them was refused for as long as they liked. Now who moves least
// gives way, also where all come from one address (a proxy's).
func TestAttackSlowBodies(t *testing.T) {
	for _, who := range []string{"proxy", "github"} {
		b := &Bodies{Count: 16, Dir: t.TempDir()}
		s := taker(t, b, 4<<20, byHeader)
		for range 16 {
			stuck(t, s, "proxy", 2<<20, 70<<10)
		}
		until(t, "they are all there", func() bool { n, _, _ := b.Held(); return n == 16 })
		for range 3 {
			if code, text := post(t, s.URL, who, 1<<20); code != 200 {
				t.Errorf("a delivery by %s: %d %s", who, code, text)
			}
		}
	}
}

// A body that comes a byte at a time is ended, whoever else is there.
func TestAttackDrip(t *testing.T) {
	b := &Bodies{Rate: 1 << 20, Grace: 200 * time.Millisecond}
	s := taker(t, b, 1<<20, byHeader)
	c := stuck(t, s, "a", 1<<20, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			if _, err := c.Write([]byte{'z'}); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	buf := make([]byte, 100)
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	n, err := c.Read(buf)
	if err != nil || !strings.Contains(string(buf[:n]), " 408 ") {
		t.Errorf("%q %v", buf[:n], err)
	}
	c.Close()
	<-done
}

// Bodies come whole, whatever their size and however it is announced.
func TestBodies(t *testing.T) {
	b := &Bodies{Dir: t.TempDir()}
	s := taker(t, b, 1<<20, byHeader)
	for _, n := range []int{0, 1, 511, 512, 4 << 10, 64<<10 - 1, 64 << 10, 64<<10 + 1, 1 << 20} {
		if code, text := post(t, s.URL, "a", n); code != 200 || text != fmt.Sprint(n) {
			t.Errorf("%d: %d %s", n, code, text)
		}
		req, _ := http.NewRequest("POST", s.URL, io.MultiReader(strings.NewReader(strings.Repeat("x", n)))) // chunked
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(text) != fmt.Sprint(n) {
			t.Errorf("%d, unannounced: %s", n, text)
		}
	}
	for _, length := range []int64{1<<20 + 1, -1} {
		r := httptest.NewRequest("POST", "/", bytes.NewReader(make([]byte, 1<<20+1)))
		r.ContentLength = length
		var tooLarge *http.MaxBytesError
		if _, err := b.Take(httptest.NewRecorder(), r, 1<<20, "a", nil); !errors.As(err, &tooLarge) {
			t.Error(err)
		}
	}
	for _, dir := range []string{"", t.TempDir()} {
		b := &Bodies{Dir: dir}
		want := bytes.Repeat([]byte("0123456789"), 10<<10)
		var seen bytes.Buffer
		body, err := b.Take(httptest.NewRecorder(), httptest.NewRequest("POST", "/", bytes.NewReader(want)), 1<<20, "a", &seen)
		if err != nil {
			t.Fatal(err)
		}
		read, err := io.ReadAll(body)
		all, berr := body.Bytes(t.Context())
		if err != nil || berr != nil || !bytes.Equal(read, want) || !bytes.Equal(all, want) || !bytes.Equal(seen.Bytes(), want) {
			t.Errorf("%v %v, %d bytes", err, berr, len(read))
		}
		body.Close()
		if n, mem, disk := b.Held(); n != 0 || mem != 0 || disk != 0 {
			t.Error(n, mem, disk)
		}
	}
}

// Connections that say nothing kept everybody else out, or took memory without end.
func TestAttackConnections(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := Limit(inner, 20)
	s := &http.Server{ConnState: l.State, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") })}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	defer func() { s.Close(); <-done }()
	for range 100 {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "GET / HT")
	}
	resp, err := http.Get("http://" + inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(text) != "hello" {
		t.Error(resp.Status, string(text))
	}
	if n := l.Open(); n > 20 {
		t.Errorf("%d connections", n)
	}
}

// One client took every slot for pages and streams that there was, by asking again.
func TestAttackSlotsOfOneClient(t *testing.T) {
	s := NewSlots(4, 2)
	var held []func()
	for range 2 {
		r, _ := s.Take("a")
		held = append(held, r)
	}
	if r, mine := s.Take("a"); r != nil || !mine {
		t.Error("one client takes more than its share")
	}
	for range 2 {
		if r, _ := s.Take("b"); r == nil {
			t.Error("another client gets none")
		}
	}
	if r, mine := s.Take("c"); r != nil || mine {
		t.Error("more than there are")
	}
	held[0]()
	held[0]() // once
	if r, _ := s.Take("c"); r == nil || s.Held() != 4 {
		t.Error("what was given back is not there")
	}
	if Client("[2001:db8::1]:5") != Client("[2001:db8::ffff]:6") || Client("192.0.2.1:5") != Client("[::ffff:192.0.2.1]:6") ||
		Client("192.0.2.1:5") == Client("192.0.2.2:5") {
		t.Error("who is one client")
	}
}

func TestPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "passes.json")
		cli, server := OpenPasses(path), OpenPasses(path)
		link, _, err := cli.Issue(Link, "ada", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := server.Check(link); !errors.Is(err, ErrNoPass) {
			t.Error("a link is a session:", err)
		}
		session, p, err := server.Redeem(link, time.Hour)
		if err != nil || p.Subject != "ada" {
			t.Fatal(p, err)
		}
		if _, _, err := server.Redeem(link, time.Hour); !errors.Is(err, ErrNoPass) {
			t.Error("a link works twice:", err)
		}
		if got, err := OpenPasses(path).Check(session); err != nil || got.ID != p.ID {
			t.Error("a restart forgets who is logged in:", err)
		}
		b, err := os.ReadFile(path)
		info, _ := os.Stat(path)
		if err != nil || bytes.Contains(b, []byte(session)) || bytes.Contains(b, []byte(link)) || info.Mode().Perm() != 0o600 {
			t.Errorf("%v %v %s", err, info.Mode(), b)
		}
		// Taken back by another process, and a token that nobody noted.
		if _, err := cli.Revoke(p.ID, time.Time{}); err != nil {
			t.Fatal(err)
		}
		if _, err := server.Check(session); !errors.Is(err, ErrNoPass) {
			t.Error("taken back and good:", err)
		}
		if _, err := cli.Revoke("unknown", time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if yes, err := server.Revoked("unknown"); err != nil || !yes {
			t.Error(yes, err)
		}
		if yes, err := server.Revoked("other"); err != nil || yes {
			t.Error(yes, err)
		}
		// Times end.
		late, _, _ := cli.Issue(Link, "ada", time.Minute)
		time.Sleep(2 * time.Minute)
		if _, _, err := server.Redeem(late, time.Hour); !errors.Is(err, ErrNoPass) {
			t.Error("a link that has expired:", err)
		}
		link, _, _ = cli.Issue(Link, "ada", time.Minute)
		session, _, err = server.Redeem(link, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if err := server.End(session); err != nil {
			t.Fatal(err)
		}
		if _, err := server.Check(session); !errors.Is(err, ErrNoPass) {
			t.Error("logged out and in:", err)
		}
		for range maxLinks + 20 {
			if _, _, err := cli.Issue(Link, "ada", time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		if all, err := server.List(); err != nil || len(all) > maxLinks+10 {
			t.Error(len(all), err)
		}
		time.Sleep(2 * time.Hour)
		if all, _ := server.List(); len(all) != 0 {
			t.Errorf("%+v", all)
		}
		// What cannot be read lets nobody in.
		os.WriteFile(path, []byte("{"), 0o600)
		if yes, err := server.Revoked("other"); err == nil || !yes {
			t.Error("a broken file takes nothing back")
		}
		os.WriteFile(path, []byte(`{"passes":[]}`), 0o600)
		os.Chmod(path, 0o644)
		if _, err := server.List(); err == nil || !strings.Contains(err.Error(), "chmod") {
			t.Error(err)
		}
	})
}

// Two exchanges of one link at once: one of them gets in.
func TestAttackLinkTwiceAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "passes.json")
	link, _, err := OpenPasses(path).Issue(Link, "ada", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var in atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, _, err := OpenPasses(path).Redeem(link, time.Hour); err == nil {
				in.Add(1)
			}
		})
	}
	wg.Wait()
	if in.Load() != 1 {
		t.Errorf("%d got in", in.Load())
	}
}

// A link to the login that leads on to somebody else's site (open redirect).
func TestAttackNextElsewhere(t *testing.T) {
	for next, want := range map[string]string{
		"/runs/x?job=a%2Fb&y=1": "/runs/x?job=a%2Fb&y=1", "/": "/",
		"": "/", "//attacker.example": "/", "https://attacker.example": "/", `/\attacker.example`: "/", "/%5cattacker.example": "/", "/\t/attacker.example": "/",
		"javascript:alert(1)": "/",
		"runs":                "/", "/%2Fattacker.example": "/", "///x": "/", "/\nx": "/", "http:/x": "/", "/" + strings.Repeat("x", 3000): "/",
	} {
		if got := Here(next); got != want {
			t.Errorf("%q: %q", next, got)
		}
	}
}
