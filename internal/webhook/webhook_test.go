package webhook

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
)

type memory struct {
	events   map[string]ci.Event
	verdicts map[string]Verdict
	err      error
}

func (m *memory) Record(_ context.Context, e ci.Event, v Verdict) (string, bool, error) {
	if m.err != nil {
		return "", false, m.err
	}
	if _, ok := m.events[e.Delivery]; ok {
		return "id", false, nil
	}
	m.events[e.Delivery], m.verdicts[e.Delivery] = e, v
	return "id", true, nil
}

const secret = "It's a Secret to Everybody"

func handler() (*Handler, *memory) {
	m := &memory{events: map[string]ci.Event{}, verdicts: map[string]Verdict{}}
	return &Handler{Secret: secret, MaxBody: 1 << 20, Recorder: m, Starts: func(e string) bool { return e == "push" },
		Log: slog.New(slog.NewTextHandler(io.Discard, nil))}, m
}

func deliver(h http.Handler, body []byte, change func(*http.Request)) (int, answer) {
	r := httptest.NewRequest("POST", "/webhooks/github", bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-GitHub-Event", "push")
	r.Header.Set("X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958")
	r.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(Sign(secret, body)))
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var a answer
	json.Unmarshal(w.Body.Bytes(), &a)
	return w.Code, a
}

var push = []byte(strings.ReplaceAll(bodies["push"], "o/r", "octo/hello"))

// The example of GitHub's documentation.
func TestSignOfTheDocumentation(t *testing.T) {
	if got := hex.EncodeToString(Sign(secret, []byte("Hello, World!"))); got != "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17" {
		t.Error(got)
	}
}

func TestDeliveries(t *testing.T) {
	sign := func(b []byte) string { return "sha256=" + hex.EncodeToString(Sign(secret, b)) }
	for _, c := range []struct {
		name   string
		body   []byte
		change func(*http.Request)
		status int
		word   string
		stored int
	}{
		{"good", push, nil, 202, "accepted", 1},
		{"no signature", push, func(r *http.Request) { r.Header.Del("X-Hub-Signature-256") }, 401, "not signed", 0},
		{"wrong signature", push, func(r *http.Request) { r.Header.Set("X-Hub-Signature-256", "sha256="+strings.Repeat("0", 64)) }, 401, "does not match", 0},
		{"sha1 signature", push, func(r *http.Request) { r.Header.Set("X-Hub-Signature-256", "sha1=00") }, 401, "not signed", 0},
		{"short signature", push, func(r *http.Request) { r.Header.Set("X-Hub-Signature-256", "sha256=00") }, 401, "malformed", 0},
		{"no hex", push, func(r *http.Request) { r.Header.Set("X-Hub-Signature-256", "sha256=zz") }, 401, "malformed", 0},
		{"signature of another body", push, func(r *http.Request) { r.Header.Set("X-Hub-Signature-256", sign([]byte("x"))) }, 401, "does not match", 0},
		{"not JSON", []byte("hello"), nil, 400, "not a JSON object", 0},
		{"half JSON", push[:20], nil, 400, "not a JSON object", 0},
		{"a JSON list", []byte("[]"), nil, 400, "not a JSON object", 0},
		{"invalid UTF-8", []byte("{\"a\":\"\xff\"}"), nil, 400, "not a JSON object", 0},
		{"too large", bytes.Repeat([]byte(" "), 1<<20+1), nil, 413, "larger", 0},
		{"too large, unannounced", bytes.Repeat([]byte(" "), 1<<20+1), func(r *http.Request) { r.ContentLength = -1 }, 413, "larger", 0},
		{"form", push, func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") }, 415, "application/json", 0},
		{"no event", push, func(r *http.Request) { r.Header.Del("X-GitHub-Event") }, 400, "X-GitHub-Event", 0},
		{"odd delivery id", push, func(r *http.Request) { r.Header.Set("X-GitHub-Delivery", "../../etc") }, 400, "malformed", 0},
		{"unknown event", push, func(r *http.Request) { r.Header.Set("X-GitHub-Event", "moonrise") }, 202, "moonrise", 1},
		{"no repository", bytes.ReplaceAll(push, []byte(`"full_name"`), []byte(`"name"`)), nil, 202, "ignored", 1},
		{"nothing in it", []byte("{}"), nil, 400, "has no ref", 1},
		{"ping", []byte(`{"zen":"x"}`), func(r *http.Request) { r.Header.Set("X-GitHub-Event", "ping") }, 202, "pong", 1},
		{"GET", push, func(r *http.Request) { r.Method = "GET" }, 405, "POST", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, m := handler()
			status, a := deliver(h, c.body, c.change)
			if status != c.status || !strings.Contains(a.Status+" "+a.Reason, c.word) || len(m.events) != c.stored {
				t.Errorf("%d %+v, %d stored", status, a, len(m.events))
			}
		})
	}
}

func TestReplayIsNotDoneTwice(t *testing.T) {
	h, m := handler()
	woken := 0
	h.Stored = func() { woken++ }
	deliver(h, push, nil)
	if status, a := deliver(h, push, nil); status != 202 || a.Status != "duplicate" || woken != 1 {
		t.Errorf("%d %+v, woken %d", status, a, woken)
	}
	if e := m.events["72d3162e-cc78-11e3-81ab-4c9367dc0958"]; e.Repository != "octo/hello" || !bytes.Equal(e.Payload, push) {
		t.Errorf("%+v", e)
	}
}

func TestWithoutSecretNothingIsTaken(t *testing.T) {
	h, m := handler()
	h.Secret = ""
	if status, _ := deliver(h, push, func(r *http.Request) {
		r.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(Sign("", push)))
	}); status != 401 || len(m.events) != 0 {
		t.Errorf("%d", status)
	}
}

func TestStoreFails(t *testing.T) {
	h, m := handler()
	m.err = errors.New("disk full at /var/secret/path")
	status, a := deliver(h, push, nil)
	if status != 503 || strings.Contains(a.Reason, "/var") {
		t.Errorf("%d %+v", status, a)
	}
}

func FuzzDelivery(f *testing.F) {
	f.Add([]byte(push), "push", "x-1")
	f.Add([]byte("{"), "", "")
	f.Fuzz(func(t *testing.T, body []byte, event, delivery string) {
		h, m := handler()
		status, _ := deliver(h, body, func(r *http.Request) {
			r.Header["X-Github-Event"] = []string{event}
			r.Header["X-Github-Delivery"] = []string{delivery}
		})
		if v := m.verdicts[delivery]; (status == 202) != (len(m.events) == 1 && v.Refused == "") {
			t.Errorf("status %d, %d stored, %+v", status, len(m.events), v)
		}
	})
}
