package webhook

import (
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/door"
)

// watched serves a handler and hands out what it holds.
func watched(t *testing.T, b *door.Bodies) (*httptest.Server, *memory) {
	t.Helper()
	h, m := handler()
	h.MaxBody, h.Bodies = 25<<20, b
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s, m
}

func open(t *testing.T, s *httptest.Server, signature string, length int) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "POST /webhooks/github HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-GitHub-Event: push\r\nX-GitHub-Delivery: a\r\nX-Hub-Signature-256: %s\r\nContent-Length: %d\r\n\r\n", signature, length)
	return c
}

func wrong() string { return "sha256=" + strings.Repeat("0", 64) }

// real delivers a push of about n bytes as GitHub does.
func real(t *testing.T, s *httptest.Server, n int) int {
	t.Helper()
	body := []byte(`{"filler":"` + strings.Repeat("x", n) + `",` + string(push[1:]))
	req, _ := http.NewRequest("POST", s.URL+"/webhooks/github", strings.NewReader(string(body)))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-GitHub-Event", "push")
	req.Header.Set("X-GitHub-Delivery", fmt.Sprint("real-", n))
	req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(Sign(secret, body)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Error(err)
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// 1,500 connections with 1 MB bodies that nobody signed took a server from 51 MiB
// to 3 GiB before any signature was looked at. Here fewer of them, all open at
// once and all but whole: what is held is bounded, on disk too, real deliveries
// from the same address go through meanwhile, and nothing stays.
func TestAttackUnsignedBodies(t *testing.T) {
	n := 400
	if os.Getenv("HEARTH_SLOW") != "" {
		n = 1500
	}
	dir := t.TempDir()
	b := &door.Bodies{Count: 64, Memory: 4 << 20, Disk: 32 << 20, Dir: dir}
	s, m := watched(t, b)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var wg sync.WaitGroup
	most := make(chan int64, n)
	for range n {
		c := open(t, s, wrong(), 1<<20)
		wg.Go(func() {
			part := make([]byte, 64<<10)
			for range 15 {
				if _, err := c.Write(part); err != nil {
					break
				}
			}
			_, mem, _ := b.Held()
			most <- mem
		})
	}
	if code := real(t, s, 30<<10); code != http.StatusAccepted {
		t.Errorf("a real delivery beside them: %d", code)
	}
	if code := real(t, s, 2<<20); code != http.StatusAccepted {
		t.Errorf("a real, large delivery beside them: %d", code)
	}
	wg.Wait()
	close(most)
	for mem := range most {
		if mem > 4<<20+64<<20 {
			t.Fatalf("%d bytes are held in memory", mem)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 150<<20 {
		t.Errorf("the heap has grown by %d MiB", grown>>20)
	}
	s.CloseClientConnections()
	s.Close() // waits for all of them
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("files of unsigned bodies: %v", left)
	}
	if len(m.events) != 2 {
		t.Errorf("%d stored", len(m.events))
	}
}

// A signature that cannot be right is answered before the body is there at all.
func TestAttackBodyWithoutSignature(t *testing.T) {
	b := &door.Bodies{}
	s, _ := watched(t, b)
	for _, signature := range []string{"", "sha256=", "sha256=00", "sha1=" + strings.Repeat("0", 40), "sha256=" + strings.Repeat("0", 66)} {
		c := open(t, s, signature, 20<<20)
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		answer, err := io.ReadAll(c) // to the end: the connection is closed as well
		if err != nil || !strings.Contains(string(answer), " 401 ") {
			t.Errorf("%q: %v %.100s", signature, err, answer)
		}
	}
}

// Sixteen slow connections with large bodies locked out every large delivery for
// as long as they liked.
func TestAttackSlowDeliveries(t *testing.T) {
	b := &door.Bodies{Count: 16, Dir: t.TempDir()}
	s, _ := watched(t, b)
	for range 16 {
		open(t, s, wrong(), 20<<20).Write([]byte("{"))
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if n, _, _ := b.Held(); n == 16 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("they do not come")
		}
	}
	for _, n := range []int{10 << 10, 2 << 20} {
		if code := real(t, s, n); code != http.StatusAccepted {
			t.Errorf("%d bytes beside them: %d", n, code)
		}
	}
}
