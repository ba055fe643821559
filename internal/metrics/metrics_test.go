package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func ask(s *Server, path, token string) *httptest.ResponseRecorder {
	mux := http.NewServeMux()
	s.Register(mux)
	r := httptest.NewRequest("GET", path, nil)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	return w
}

func TestFigures(t *testing.T) {
	s := New(Config{Token: "t", Slots: 4, Ready: func(context.Context) error { return nil },
		Queue: func(context.Context) ([]Waiting, error) {
			return []Waiting{{[]string{"linux", "x\"\n\\"}, "queued", 3, 2500 * time.Millisecond}, {[]string{"gpu"}, "claimed", 1, time.Second}}, nil
		},
		Samples: func() []Sample {
			return []Sample{{"hearth_events_total", "Events.", "counter", "state", "done", 5}, {"hearth_events_total", "Events.", "counter", "state", "failed", 1}}
		}})
	want := `# HELP hearth_store_up Whether the database answered.
# TYPE hearth_store_up gauge
hearth_store_up 1
# HELP hearth_slots Jobs that this server's own machines run at once.
# TYPE hearth_slots gauge
hearth_slots 4
# HELP hearth_events_total Events.
# TYPE hearth_events_total counter
hearth_events_total{state="done"} 5
hearth_events_total{state="failed"} 1
# HELP hearth_queue_jobs Jobs in the queue, by labels and state, of all servers.
# TYPE hearth_queue_jobs gauge
hearth_queue_jobs{labels="linux,x\"\n\\",state="queued"} 3
hearth_queue_jobs{labels="gpu",state="claimed"} 1
# HELP hearth_queue_oldest_seconds Age of the first of them.
# TYPE hearth_queue_oldest_seconds gauge
hearth_queue_oldest_seconds{labels="linux,x\"\n\\",state="queued"} 2.5
hearth_queue_oldest_seconds{labels="gpu",state="claimed"} 1
`
	if w := ask(s, "/metrics", "t"); w.Code != 200 || w.Body.String() != want {
		t.Errorf("%d\n%s", w.Code, w.Body)
	}
	var got struct {
		Queued, Claimed, Slots int
		Jobs                   []map[string]any
	}
	if w := ask(s, "/api/v1/queue", "t"); json.Unmarshal(w.Body.Bytes(), &got) != nil || got.Queued != 3 || got.Claimed != 1 || got.Slots != 4 ||
		len(got.Jobs) != 2 || got.Jobs[0]["oldest_seconds"] != 2.5 {
		t.Errorf("%s", w.Body)
	}
}

func TestHealth(t *testing.T) {
	var err error
	s := New(Config{Ready: func(context.Context) error { return err }})
	for _, path := range []string{"/healthz", "/readyz"} {
		if w := ask(s, path, ""); w.Code != 200 || w.Body.String() != "ok\n" {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	err = errors.New("postgres://user:password@host is away")
	if w := ask(s, "/readyz", ""); w.Code != 503 || strings.Contains(w.Body.String(), "password") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := ask(s, "/healthz", ""); w.Code != 200 {
		t.Errorf("%d: it lives all the same", w.Code)
	}
}

// The figures are for whoever has the token.
func TestAttackFiguresWithoutToken(t *testing.T) {
	queue := func(context.Context) ([]Waiting, error) { return nil, nil }
	for _, path := range []string{"/metrics", "/api/v1/queue"} {
		for _, c := range []struct {
			set, brought string
			code         int
		}{{"t", "", 401}, {"t", "x", 401}, {"t", "t", 200}, {"", "", 403}, {"", "x", 403}, {Open, "", 200}, {"t", Open, 401}} {
			if w := ask(New(Config{Token: c.set, Queue: queue}), path, c.brought); w.Code != c.code {
				t.Errorf("%s with %q of %q: %d", path, c.brought, c.set, w.Code)
			}
		}
	}
}

// Workflows name labels: what a scrape shows does not grow with them, nor what it costs
// with how often it is asked for.
func TestAttackManyLabels(t *testing.T) {
	asked := 0
	s := New(Config{Token: Open, Queue: func(context.Context) ([]Waiting, error) {
		asked++
		var all []Waiting
		for i := range 5000 {
			all = append(all, Waiting{[]string{fmt.Sprint("l", i)}, "queued", 1, time.Duration(i) * time.Second})
		}
		return append(all, Waiting{[]string{strings.Repeat("x", 1<<20)}, "queued", 7, 0}), nil
	}})
	for range 100 {
		w := ask(s, "/metrics", "")
		if n := strings.Count(w.Body.String(), "hearth_queue_jobs{"); n != maxSets+1 || w.Body.Len() > 20_000 {
			t.Fatalf("%d sets, %d bytes", n, w.Body.Len())
		}
		if !strings.Contains(w.Body.String(), fmt.Sprintf(`hearth_queue_jobs{labels="other",state="queued"} %d`, 5000-maxSets+7)) {
			t.Fatalf("%s", w.Body)
		}
	}
	if asked > 3 {
		t.Errorf("the store was asked %d times", asked)
	}
}

func TestStoreAway(t *testing.T) {
	s := New(Config{Token: Open, Queue: func(context.Context) ([]Waiting, error) { return nil, errors.New("away") }})
	if w := ask(s, "/metrics", ""); w.Code != 200 || !strings.Contains(w.Body.String(), "hearth_store_up 0\n") ||
		strings.Contains(w.Body.String(), "queue_jobs{") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := ask(s, "/api/v1/queue", ""); w.Code != 503 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestCounts(t *testing.T) {
	var c Counts
	h := c.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bad" {
			w.WriteHeader(401)
		}
		fmt.Fprint(w, "x")
	}))
	for _, path := range []string{"/", "/bad", "/bad"} {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", path, nil))
	}
	c.Add(7)
	if got := fmt.Sprint(c.Samples("n", "h")); got != "[{n h counter code 0 1} {n h counter code 200 1} {n h counter code 401 2}]" {
		t.Error(got)
	}
}
