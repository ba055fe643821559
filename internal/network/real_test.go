package network_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/image/imagetest"
	"github.com/hearth-ci/hearth/internal/network"
	"github.com/hearth-ci/hearth/internal/vm"
	"github.com/hearth-ci/hearth/internal/vm/qemu"
)

// TestFromInsideAGuest asks a real Linux in a real machine what it can reach.
func TestFromInsideAGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED, NOT TESTED: -short")
	}
	driver := qemu.New(qemu.Config{})
	if err := driver.Probe(t.Context()); err != nil {
		t.Skipf("SKIPPED, NOT TESTED: no machine can be started here: %v", err)
	}
	img := imagetest.Build(t, imagetest.Agent(t))
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute)
	defer cancel()

	// A server on this host's loopback: what a guest must not reach, and, by
	// the dial hook, what stands for a public site.
	loopback, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const total = 64 << 20
	site := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprintf(w, "got %d", n)
			return
		}
		if r.URL.Path == "/big" {
			_, _ = w.Write(make([]byte, total))
			return
		}
		fmt.Fprint(w, "the public site")
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = site.Serve(loopback) })
	defer wg.Wait()
	defer site.Close()

	var mu sync.Mutex
	var records []network.Connection
	n, err := network.New(network.Config{
		Policy:   network.Policy{Refuse: true}, // the guest does not wait for what it may not reach
		Services: map[uint16]http.Handler{80: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "the runner's service") })},
		Record:   func(c network.Connection) { mu.Lock(); records = append(records, c); mu.Unlock() },
		Resolve: func(_ context.Context, name string) ([]netip.Addr, error) {
			ip, ok := map[string]string{"site.example": "93.184.216.34", "rebind.example": "127.0.0.1", "inside.example": "192.168.1.1"}[name]
			if !ok {
				return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
			}
			return []netip.Addr{netip.MustParseAddr(ip)}, nil
		},
		Dial: func(ctx context.Context, proto, address string) (net.Conn, error) {
			if address != "93.184.216.34:80" {
				return nil, errors.New("unreachable in this test")
			}
			return new(net.Dialer).DialContext(ctx, proto, loopback.Addr().String())
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	dir := t.TempDir()
	socket := filepath.Join(dir, "net.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if cable, err := l.Accept(); err == nil {
			n.ServeFrames(cable)
		}
	}()
	empty, err := image.Scratch(ctx, imagetest.Dir(t), 2<<30)
	if err != nil {
		t.Fatal(err)
	}
	scratch := filepath.Join(dir, "scratch.img")
	if err := vm.CopySparse(ctx, scratch, empty); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var console bytes.Buffer
	m, err := driver.Start(ctx, vm.Spec{ID: "network-test", Kernel: img.Kernel, Initrd: img.Initrd, CPUs: 1, MemoryMiB: 768, Net: socket, Dir: t.TempDir(),
		Console: &console,
		Cmdline: fmt.Sprintf("quiet hearth.host=hearth hearth.net=%s/%d,%s,%s hearth.base=base hearth.tools=tools hearth.scratch=scratch",
			network.Guest, network.Subnet.Bits(), network.Gateway, network.DNS),
		Disks: []vm.Disk{{ID: "base", Path: img.Base, ReadOnly: true}, {ID: "tools", Path: img.Tools, ReadOnly: true}, {ID: "scratch", Path: scratch}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Close(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("console:\n%s", console.String())
		}
	}()
	c, err := guest.Connect(ctx, m.Dial)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Logf("the agent answered after %v", time.Since(began).Round(time.Millisecond))

	run := func(script string) (string, int) {
		t.Helper()
		var out bytes.Buffer
		exit, err := c.Exec(ctx, guest.Cmd{Argv: []string{"bash", "-c", script}, Stdout: &out, Stderr: &out, Timeout: 3 * time.Minute})
		if err != nil {
			t.Fatalf("%s: %v", script, err)
		}
		return strings.TrimSpace(out.String()), exit.Code
	}
	n.SetStep(1)
	const curl = "curl -sS --max-time 20 "
	for script, want := range map[string]string{
		curl + "http://site.example/":                                       "the public site",
		curl + "http://93.184.216.34/":                                      "the public site",
		curl + "http://hearth.internal/":                                    "the runner's service",
		curl + "http://10.0.2.2/":                                           "the runner's service",
		"ping -c 1 -W 5 10.0.2.2 | grep -c ttl":                             "1",
		"getent hosts site.example":                                         "93.184.216.34   site.example",
		"head -c 1000000 /dev/zero | " + curl + "-T - http://site.example/": "got 1000000",
	} {
		if out, code := run(script); out != want || code != 0 {
			t.Errorf("%s: %q, exit %d; want %q", script, out, code, want)
		}
	}
	n.SetStep(2)
	_, port, _ := net.SplitHostPort(loopback.Addr().String())
	for _, address := range []string{"10.0.2.2:" + port, "10.0.2.2:22", "rebind.example:" + port, "inside.example", "192.168.1.1", "172.16.0.1",
		"10.1.1.1", "100.64.0.1", "169.254.169.254/latest/meta-data/", "nowhere.example"} {
		if out, code := run(curl + "http://" + address); code == 0 {
			t.Errorf("%s can be reached: %q", address, out)
		}
	}
	n.SetStep(3)
	const bulk = "curl -sS --max-time 150 " // an emulated guest on a busy machine is slow
	for _, mtu := range []int{1500, 9000} {
		if out, code := run(fmt.Sprintf("sudo ip link set dev $(ls /sys/class/net | grep -v lo | head -1) mtu %d", mtu)); code != 0 {
			t.Log(out)
			continue
		}
		began = time.Now()
		if out, code := run(bulk + "-o /dev/null -w '%{size_download}' http://site.example/big"); code != 0 || out != fmt.Sprint(total) {
			t.Errorf("download: %q, exit %d", out, code)
		}
		down := time.Since(began)
		began = time.Now()
		if out, code := run(fmt.Sprintf("head -c %d /dev/zero | %s -T - http://site.example/", total, bulk)); code != 0 || out != fmt.Sprint("got ", total) {
			t.Errorf("upload: %q, exit %d", out, code)
		}
		t.Logf("mtu %d: %d MB down in %v, up in %v", mtu, total>>20, down.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	}
	_ = c.Close()
	_ = m.Close(ctx)
	n.Close()
	mu.Lock()
	defer mu.Unlock()
	var seen []string
	var bytesIn int64
	for _, r := range records {
		if r.Step == 3 {
			bytesIn += r.BytesIn
			continue
		}
		seen = append(seen, fmt.Sprintf("%d: %s %v:%d refused %v %s", r.Step, r.Host, r.IP, r.Port, r.Refused, r.Reason))
	}
	t.Log(strings.Join(seen, "\n"))
	for _, want := range []string{"1: site.example 93.184.216.34:80 refused false", "2: rebind.example 127.0.0.1",
		"2: inside.example 192.168.1.1:80 refused true private", "169.254.169.254:80 refused true metadata"} {
		if strings.HasPrefix(want, "2: rebind") {
			continue // the guest's own loopback: it never leaves the machine
		}
		if !strings.Contains(strings.Join(seen, "\n"), want) {
			t.Errorf("no record of %s", want)
		}
	}
	if bytesIn < 2*total {
		t.Errorf("%d bytes recorded", bytesIn)
	}
}
