package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// monitor is a QEMU whose answers a test writes.
func monitor(t *testing.T, answer func(w io.Writer, c command)) (*qmp, *[]string) {
	t.Helper()
	ours, theirs := net.Pipe()
	var events []string
	q := newQMP(ours, func(e event) { events = append(events, e.Name) })
	var wg sync.WaitGroup
	wg.Go(q.serve)
	wg.Go(func() {
		defer theirs.Close()
		r := bufio.NewScanner(theirs)
		io.WriteString(theirs, `{"QMP": {"version": {}, "capabilities": []}}`+"\n")
		for r.Scan() {
			var c command
			if err := json.Unmarshal(r.Bytes(), &c); err != nil {
				t.Errorf("not a command: %s", r.Bytes())
			}
			answer(theirs, c)
		}
	})
	t.Cleanup(func() { ours.Close(); wg.Wait() })
	return q, &events
}

func TestCall(t *testing.T) {
	q, events := monitor(t, func(w io.Writer, c command) {
		line := func(m map[string]any) {
			b, _ := json.Marshal(m)
			w.Write(append(b, '\n'))
		}
		switch c.Execute {
		case "refuse":
			line(map[string]any{"id": c.ID, "error": map[string]any{"class": "GenericError", "desc": "no"}})
		case "vanish":
			w.(net.Conn).Close()
		case "ignore":
		default:
			line(map[string]any{"event": "STOP", "data": map[string]any{}})
			line(map[string]any{"id": c.ID + 1000, "return": "another's"})
			line(map[string]any{"id": c.ID, "return": c.Execute})
		}
	})
	ctx := t.Context()
	got, err := q.call(ctx, command{Execute: "one"}, command{Execute: "two"})
	if err != nil || string(got) != `"two"` {
		t.Errorf("got %s, %v", got, err)
	}
	_, err = q.call(ctx, command{Execute: "one"}, command{Execute: "refuse"}, command{Execute: "two"})
	if e := (*qmpError)(nil); !errors.As(err, &e) || e.Command != "refuse" || e.Desc != "no" {
		t.Errorf("refusal: %v", err)
	}
	cause := errors.New("enough")
	over, cancel := context.WithCancelCause(ctx)
	cancel(cause)
	if _, err := q.call(over, command{Execute: "ignore"}); !errors.Is(err, cause) {
		t.Errorf("no answer: %v", err)
	}
	if _, err := q.call(ctx, command{Execute: "vanish"}); err == nil || !strings.Contains(err.Error(), "monitor is gone") {
		t.Errorf("end: %v", err)
	}
	if _, err := q.call(ctx, command{Execute: "one"}); err == nil {
		t.Error("a call after the end succeeds")
	}
	if len(*events) == 0 || (*events)[0] != "STOP" {
		t.Errorf("events: %q", *events)
	}
	if len(q.pending) > 0 {
		t.Errorf("%d calls are still waited for", len(q.pending))
	}
}

func TestReadMessageIsBounded(t *testing.T) {
	endless := io.MultiReader(strings.NewReader(`{"return": "`), neverEnding('x'))
	if _, err := readMessage(bufio.NewReader(endless)); err == nil || !strings.Contains(err.Error(), "longer") {
		t.Errorf("a line without end: %v", err)
	}
	if _, err := readMessage(bufio.NewReader(strings.NewReader(`{"return"`))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("half a line: %v", err)
	}
}

type neverEnding byte

func (b neverEnding) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(b)
	}
	return len(p), nil
}

func FuzzReadMessage(f *testing.F) {
	for _, s := range []string{
		`{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}`,
		`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}`,
		`{"return": {}, "id": 3}`,
		`{"id": 4, "error": {"class": "GenericError", "desc": "State blocked"}}`,
		`{"id": -1}`, `[]`, `null`, `{"event": 5}`, "\n", "",
	} {
		f.Add([]byte(s + "\n"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		m := &machine{migration: make(chan string, 2)}
		for range 100 {
			msg, err := readMessage(r)
			if err != nil {
				return
			}
			m.event(msg.event) // what is in an event is no more to be trusted
		}
	})
}
