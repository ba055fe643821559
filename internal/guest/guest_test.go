package guest

import (
	"bytes"
	"context"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// connectTo returns a client of a server on this host, both ended with the test.
func serveHere(t testing.TB, opts Options) *Client {
	t.Helper()
	s := NewServer(opts)
	ctx, cancel := context.WithCancel(context.Background())
	host, agent := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, agent) }()
	c, err := New(ctx, host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		cancel()
		<-served
		agent.Close()
		s.Close()
	})
	return c
}

func TestExec(t *testing.T) {
	c := serveHere(t, Options{Release: "test"})
	if c.Hello().Release != "test" || c.Hello().PID != os.Getpid() {
		t.Errorf("Hello = %+v", c.Hello())
	}
	var out, errs bytes.Buffer
	exit, err := c.Exec(t.Context(), Cmd{
		Argv: []string{"sh", "-c", `cat; echo "$A" >&2; pwd; exit 3`}, Env: []string{"A=b c"}, Dir: "/tmp",
		Stdin: strings.NewReader("hello\n"), Stdout: &out, Stderr: &errs, Timeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	if exit.Code != 3 || exit.Signal != "" || exit.OK() || exit.Duration <= 0 || exit.MaxRSS <= 0 {
		t.Errorf("exit = %+v", exit)
	}
	if out.String() != "hello\n/tmp\n" || errs.String() != "b c\n" {
		t.Errorf("out %q, err %q", &out, &errs)
	}
}
