// Package metrics is what machines ask a server: how it is (GET /healthz, GET /readyz),
// how much waits (GET /api/v1/queue, for autoscalers), and the figures of both and of what
// it has done (GET /metrics, in Prometheus's text format).
//
// # Who may ask
//
// Whether it is well everybody, who learns nothing else. The figures are for whoever
// brings the token of the settings; without one in the settings they are there for
// nobody, or, if the settings say so, for everybody.
//
// # What it costs
//
// What a scrape shows is read at most once a second, however many ask. The values of
// labels come from settings and from code, but for the labels of jobs, which workflows
// name: the most frequent sets of those are shown, and the others as one.
package metrics

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxSets is how many sets of labels are shown by themselves.
	maxSets = 50
	// maxSet is how long the name of one may be.
	maxSet = 200
	// fresh is how long what was read is shown.
	fresh = time.Second
	// patience is how long the store may take to answer.
	patience = 5 * time.Second
)

// Open is the setting by which everybody may read the figures.
const Open = "open"

// Waiting is how many jobs with the same labels are at the same point.
type Waiting struct {
	Labels []string // [other] of those that are not shown by themselves
	State  string   // queued or claimed
	Jobs   int64
	Oldest time.Duration // since the first of them was put in
}

// Sample is one figure. Names and labels are from code.
type Sample struct {
	Name, Help string // of one name the help is the same
	Kind       string // counter or gauge
	Label      string // its name; "" is none
	Of         string // its value
	Value      float64
}

// Config is what a server has to say.
type Config struct {
	// Queue reads what waits and what runs.
	Queue func(ctx context.Context) ([]Waiting, error)
	// Slots is how many jobs this server's own machines run at once.
	Slots int
	// Samples are its other figures.
	Samples func() []Sample
	// Ready says why nothing should be sent to this server; nil is nothing.
	Ready func(ctx context.Context) error
	// Token is what a client brings; "" is for nobody, Open for everybody.
	Token string
	Log   *slog.Logger
}

// Server answers.
type Server struct {
	cfg Config

	mu    sync.Mutex
	read  time.Time
	queue []Waiting
	err   error
}

// New makes a server of it.
func New(c Config) *Server {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: c}
}

// Register adds the paths.
func (s *Server) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { plain(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("GET /readyz", s.ready)
	mux.Handle("GET /metrics", s.allowed(s.metrics))
	mux.Handle("GET /api/v1/queue", s.allowed(s.waiting))
}

func plain(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	fmt.Fprint(w, text)
}

func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	if err := s.cfg.Ready(ctx); err != nil {
		s.cfg.Log.Warn("not ready", "err", err)
		plain(w, http.StatusServiceUnavailable, "not ready\n") // why is in the log: anybody may ask
		return
	}
	plain(w, http.StatusOK, "ok\n")
}

// allowed lets those in who bring the token.
func (s *Server) allowed(next http.HandlerFunc) http.Handler {
	want := sha256.Sum256([]byte(s.cfg.Token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch s.cfg.Token {
		case Open:
		case "":
			plain(w, http.StatusForbidden, "nobody may read this: metrics_token_file, or \"metrics\": \"open\", in the server's settings\n")
			return
		default:
			token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			got := sha256.Sum256([]byte(token))
			if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
				w.Header().Set("WWW-Authenticate", "Bearer")
				plain(w, http.StatusUnauthorized, "this wants the token of the server's settings (metrics_token_file)\n")
				return
			}
		}
		next(w, r)
	})
}

// now reads the queue, or what was read of it a moment ago.
func (s *Server) now(ctx context.Context) ([]Waiting, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.read) < fresh {
		return s.queue, s.err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience) // others get the answer, too
	defer cancel()
	all, err := s.cfg.Queue(ctx)
	s.queue, s.err, s.read = fold(all), err, time.Now()
	return s.queue, s.err
}

// fold keeps the most frequent sets of labels and makes one of the others.
func fold(all []Waiting) []Waiting {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b Waiting) int {
		return cmp.Or(cmp.Compare(b.Jobs, a.Jobs), strings.Compare(a.set(), b.set()), strings.Compare(a.State, b.State))
	})
	sets := map[string]bool{}
	rest := map[string]*Waiting{}
	var out []Waiting
	for _, w := range all {
		set := w.set()
		if sets[set] || len(sets) < maxSets && len(set) <= maxSet {
			sets[set] = true
			out = append(out, w)
			continue
		}
		o := rest[w.State]
		if o == nil {
			o = &Waiting{Labels: []string{"other"}, State: w.State}
			rest[w.State] = o
		}
		o.Jobs += w.Jobs
		o.Oldest = max(o.Oldest, w.Oldest)
	}
	for _, state := range []string{"queued", "claimed"} {
		if o := rest[state]; o != nil {
			out = append(out, *o)
		}
	}
	return out
}

func (w Waiting) set() string { return strings.Join(w.Labels, ",") }

func (s *Server) waiting(w http.ResponseWriter, r *http.Request) {
	type row struct {
		Labels  []string `json:"labels"`
		State   string   `json:"state"`
		Jobs    int64    `json:"jobs"`
		Seconds float64  `json:"oldest_seconds"`
	}
	out := struct {
		Queued  int64 `json:"queued"`
		Claimed int64 `json:"claimed"`
		Slots   int   `json:"slots"` // of this server's own machines
		Jobs    []row `json:"jobs"`
	}{Slots: s.cfg.Slots, Jobs: []row{}}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	queue, err := s.now(r.Context())
	if err != nil {
		s.cfg.Log.Error("the queue could not be read", "err", err)
		w.WriteHeader(http.StatusServiceUnavailable)
		json.NewEncoder(w).Encode(map[string]string{"error": "the queue could not be read", "code": "unavailable", "hint": "the server's log says why"})
		return
	}
	for _, v := range queue {
		if v.State == "queued" {
			out.Queued += v.Jobs
		} else {
			out.Claimed += v.Jobs
		}
		out.Jobs = append(out.Jobs, row{v.Labels, v.State, v.Jobs, v.Oldest.Seconds()})
	}
	json.NewEncoder(w).Encode(out)
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request) {
	var b strings.Builder
	queue, err := s.now(r.Context())
	up := 1.0
	if err != nil {
		s.cfg.Log.Error("the queue could not be read", "err", err)
		up = 0
	}
	samples := []Sample{{Name: "hearth_store_up", Help: "Whether the database answered.", Kind: "gauge", Value: up},
		{Name: "hearth_slots", Help: "Jobs that this server's own machines run at once.", Kind: "gauge", Value: float64(s.cfg.Slots)}}
	if s.cfg.Samples != nil {
		samples = append(samples, s.cfg.Samples()...)
	}
	write(&b, samples)
	if err == nil {
		b.WriteString("# HELP hearth_queue_jobs Jobs in the queue, by labels and state, of all servers.\n# TYPE hearth_queue_jobs gauge\n")
		for _, v := range queue {
			fmt.Fprintf(&b, "hearth_queue_jobs{labels=\"%s\",state=\"%s\"} %d\n", escape(v.set()), escape(v.State), v.Jobs)
		}
		b.WriteString("# HELP hearth_queue_oldest_seconds Age of the first of them.\n# TYPE hearth_queue_oldest_seconds gauge\n")
		for _, v := range queue {
			fmt.Fprintf(&b, "hearth_queue_oldest_seconds{labels=\"%s\",state=\"%s\"} %s\n", escape(v.set()), escape(v.State), number(v.Oldest.Seconds()))
		}
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	fmt.Fprint(w, b.String())
}

// write writes samples; those of one name stand together.
func write(b *strings.Builder, all []Sample) {
	said := ""
	for _, v := range all {
		if v.Name != said {
			fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", v.Name, v.Help, v.Name, v.Kind)
			said = v.Name
		}
		b.WriteString(v.Name)
		if v.Label != "" {
			fmt.Fprintf(b, "{%s=\"%s\"}", v.Label, escape(v.Of))
		}
		fmt.Fprintf(b, " %s\n", number(v.Value))
	}
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

var escapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func escape(s string) string { return escapes.Replace(strings.ToValidUTF8(s, "\uFFFD")) }
