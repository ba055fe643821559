// Package web is the pages that people look at: the runs, and one run with its
// jobs, steps and live log, its predictions and explanations beside what
// happened.
//
// Pages are rendered on the server from [Source] (html/template escapes whatever
// came out of a machine) and work without JavaScript. A script of one small file
// follows a run that is under way: one EventSource gives the run's board, as a
// rendered fragment, whenever it has changed, and the log lines of the job that
// is open. There is no build step and nothing from another host: the policy in
// the headers allows none.
//
// Logs can be large and jobs can be fast: a page holds the last [maxLines] lines
// and says how many came before, the stream sends what was written since in
// batches, and a slow reader slows nobody but itself.
package web

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
)

const (
	maxLines   = 5000
	maxStreams = 256 // EventSources at once
	maxRecords = 20000
)

// ErrNotFound is what a [Source] returns for what does not exist.
var ErrNotFound = errors.New("not found")

// Line is one log line and the offset behind it.
type Line struct {
	Record ci.Record
	Number int64 // its place in the log, from 1; only in a Window
	End    int64
}

// Window is some lines of a job's log, out of Total. First is the number of the
// first of them, from 1; where to go on with Source.Log is End.
type Window struct {
	Lines        []Line
	First, Total int64
	End          int64
}

// Event is a delivery and what came of it.
type Event struct {
	ci.Event
	State  string // pending, taken, done, failed, noted
	Detail string
	Tries  int
}

// Source is where the pages' facts come from.
type Source interface {
	Runs(ctx context.Context, limit int) ([]ci.Run, error)
	Run(ctx context.Context, id string) (ci.Run, error)
	// Records returns a run's records without log lines, after a sequence number.
	Records(ctx context.Context, runID string, after int64, limit int) ([]ci.Record, error)
	// Log returns at most limit lines of a job's log from an offset.
	Log(ctx context.Context, runID, jobKey string, offset int64, limit int) ([]Line, error)
	// Events returns the newest deliveries, without payloads.
	Events(ctx context.Context, limit int) ([]Event, error)
	// Watch receives after the run has changed.
	Watch(runID string) (changed <-chan struct{}, stop func())
}

//go:embed templates/*.html
var templates embed.FS

//go:embed static
var static embed.FS

// Server serves the pages.
type Server struct {
	source  Source
	log     *slog.Logger
	pages   *template.Template
	streams chan struct{}
	version string
}

// New returns the pages' server.
func New(source Source, version string, log *slog.Logger) *Server {
	pages := template.Must(template.New("").Funcs(template.FuncMap{
		"clean":   board.Clean,
		"short":   board.Short,
		"percent": board.Percent,
		"word":    func(s ci.Status, c ci.Conclusion, infra bool) string { _, w := board.Mark(s, c, infra); return w },
		"sign":    func(s ci.Status, c ci.Conclusion, infra bool) string { s2, _ := board.Mark(s, c, infra); return s2 },
		"class":   class,
		"ms":      func(n int64) string { return board.Short(time.Duration(n) * time.Millisecond) },
		"took": func(from, to time.Time) string {
			if from.IsZero() || to.IsZero() {
				return ""
			}
			return board.Short(to.Sub(from))
		},
		"bar":   func(p *ci.Prediction, width float64) bar { return bar{p, width} },
		"log":   func(lines []row, j *board.Job) []section { return sections(lines, j) },
		"tone":  tone,
		"parts": parts,
		"scale": func(p, width float64) float64 { return min(max(p, 0), 1) * width },
		"minus": func(a, b float64) float64 { return a - b },
		"when":  func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
		"iso":   func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"sha": func(s string) string {
			if len(s) > 8 {
				return s[:8]
			}
			return s
		},
		"ref": func(s string) string {
			for _, p := range []string{"refs/heads/", "refs/tags/"} {
				if t, ok := strings.CutPrefix(s, p); ok {
					return t
				}
			}
			return s
		},
	}).ParseFS(templates, "templates/*.html"))
	return &Server{source: source, log: log, pages: pages, streams: make(chan struct{}, maxStreams), version: version}
}

// bar is a prediction to be drawn.
type bar struct {
	*ci.Prediction
	Width float64
}

// section is the lines of one step, with its name where that is known.
type section struct {
	Step  int
	Name  string
	Lines []row
}

func sections(lines []row, j *board.Job) []section {
	var out []section
	for _, l := range lines {
		if n := len(out); n == 0 || out[n-1].Step != l.Step {
			out = append(out, section{Step: l.Step, Name: stepName(j, l.Step)})
		}
		out[len(out)-1].Lines = append(out[len(out)-1].Lines, l)
	}
	return out
}

func stepName(j *board.Job, n int) string {
	if j != nil {
		for _, s := range j.Steps {
			if s.Number == n {
				return s.Name
			}
		}
	}
	return ""
}

// tone is the CSS class of an event's state.
func tone(state string) string {
	switch state {
	case "failed":
		return "bad"
	case "taken":
		return "running"
	case "pending":
		return "waiting"
	}
	return "" // handled is not succeeded
}

// part is a piece of an event's detail; Run is set where it names one.
type part struct{ Text, Run string }

// parts finds the runs that a text names.
func parts(s string) []part {
	var out []part
	for _, word := range strings.SplitAfter(board.Clean(s), " ") {
		id := strings.TrimRight(word, "; ")
		if !ci.ValidID(id) {
			if n := len(out); n > 0 && out[n-1].Run == "" {
				out[n-1].Text += word
			} else {
				out = append(out, part{Text: word})
			}
			continue
		}
		out = append(out, part{Text: id, Run: id}, part{Text: word[len(id):]})
	}
	return out
}

// class is the CSS class of a state. Nothing that did not succeed gets "ok".
func class(s ci.Status, c ci.Conclusion, infra bool) string {
	switch {
	case infra:
		return "lost"
	case s == ci.InProgress:
		return "running"
	case s != ci.Completed:
		return "waiting"
	case c == ci.Success:
		return "ok"
	case c == ci.Failure, c == ci.TimedOut:
		return "bad"
	}
	return "off"
}

// Register adds the pages to a mux.
func (s *Server) Register(mux *http.ServeMux) {
	files, err := fs.Sub(static, "static")
	if err != nil {
		panic(err) // the embedded folder is part of the program
	}
	mux.Handle("GET /static/", http.StripPrefix("/static/", secure(http.FileServerFS(files))))
	mux.Handle("GET /{$}", secure(http.HandlerFunc(s.runs)))
	mux.Handle("GET /events", secure(http.HandlerFunc(s.deliveries)))
	mux.Handle("GET /runs/{id}", secure(http.HandlerFunc(s.run)))
	mux.Handle("GET /runs/{id}/events", secure(http.HandlerFunc(s.events)))
	mux.Handle("GET /runs/{id}/log", secure(http.HandlerFunc(s.rawLog)))
}

func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		next.ServeHTTP(w, r)
	})
}

func (s *Server) render(w http.ResponseWriter, status int, page string, data any) {
	var b bytes.Buffer
	if err := s.pages.ExecuteTemplate(&b, page, data); err != nil {
		s.log.Error("page", "page", page, "error", err)
		http.Error(w, "the page could not be made", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	w.Write(b.Bytes())
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, ErrNotFound) {
		s.render(w, http.StatusNotFound, "error.html", map[string]any{"Title": "Not found", "Text": "There is no such run, or it is not on record any more.", "Version": s.version})
		return
	}
	s.log.Error("page", "path", r.URL.Path, "error", err)
	s.render(w, http.StatusInternalServerError, "error.html", map[string]any{"Title": "Error", "Text": "The record could not be read. The server's log says why.", "Version": s.version})
}

func (s *Server) runs(w http.ResponseWriter, r *http.Request) {
	runs, err := s.source.Runs(r.Context(), 100)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	moving := false
	for _, run := range runs {
		moving = moving || run.Status != ci.Completed
	}
	s.render(w, http.StatusOK, "runs.html", map[string]any{"Title": "Runs", "Runs": runs, "Refresh": moving, "Version": s.version})
}

// deliveries lists what GitHub delivered, and what came of it: where to look
// when nothing ran.
func (s *Server) deliveries(w http.ResponseWriter, r *http.Request) {
	events, err := s.source.Events(r.Context(), 100)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	moving := false
	for _, e := range events {
		moving = moving || e.State == "pending" || e.State == "taken"
	}
	s.render(w, http.StatusOK, "events.html", map[string]any{"Title": "Events", "Events": events, "Refresh": moving, "Version": s.version})
}

// view is one run as a page shows it.
type view struct {
	Title, Version string
	Refresh        bool
	Run            ci.Run
	Board          board.Board
	Open           *board.Job // the job whose log is shown
	Lines          []row
	Skipped        int
	Offset         int64
	Seq            int64
	Now            time.Time
}

type row struct {
	N      int
	Step   int
	Stream string
	Text   string
	Group  string // start, end
}

func (s *Server) board(ctx context.Context, id string, b *board.Board, after int64) (int64, error) {
	for range maxRecords / 500 {
		records, err := s.source.Records(ctx, id, after, 500)
		if err != nil {
			return after, err
		}
		for _, r := range records {
			b.Apply(r)
			after = r.Seq
		}
		if len(records) < 500 {
			break
		}
	}
	return after, nil
}

func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	ctx, id := r.Context(), r.PathValue("id")
	if !ci.ValidID(id) {
		s.fail(w, r, ErrNotFound)
		return
	}
	run, err := s.source.Run(ctx, id)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	v := view{Title: run.Workflow, Version: s.version, Run: run, Now: time.Now()}
	if v.Seq, err = s.board(ctx, id, &v.Board, 0); err != nil {
		s.fail(w, r, err)
		return
	}
	v.Open = open(&v.Board, r.URL.Query().Get("job"))
	if v.Open != nil {
		if err := s.lines(ctx, &v); err != nil {
			s.fail(w, r, err)
			return
		}
	}
	s.render(w, http.StatusOK, "run.html", v)
}

// open picks the job to show: the one asked for, else the first that failed,
// runs, or is there.
func open(b *board.Board, key string) *board.Job {
	var best *board.Job
	rank := func(j *board.Job) int {
		switch {
		case j.Key == key && key != "":
			return 4
		case j.Infrastructure || j.Conclusion == ci.Failure || j.Conclusion == ci.TimedOut:
			return 3
		case j.Status == ci.InProgress:
			return 2
		case j.Status == ci.Completed && j.Conclusion != ci.Skipped:
			return 1
		}
		return 0
	}
	for _, j := range b.Jobs {
		if best == nil || rank(j) > rank(best) {
			best = j
		}
	}
	return best
}

func (s *Server) lines(ctx context.Context, v *view) error {
	n := 0
	for {
		lines, err := s.source.Log(ctx, v.Run.ID, v.Open.Key, v.Offset, 2000)
		if err != nil {
			return err
		}
		for _, l := range lines {
			n++
			v.Offset = l.End
			v.Lines = append(v.Lines, rowOf(n, l.Record))
		}
		if over := len(v.Lines) - maxLines; over > 0 {
			v.Lines = append(v.Lines[:0], v.Lines[over:]...)
			v.Skipped += over
		}
		if len(lines) < 2000 {
			return nil
		}
	}
}

func rowOf(n int, r ci.Record) row {
	o := row{N: n, Step: r.Step, Stream: r.Stream, Text: board.Clean(r.Text)}
	if r.Type == ci.Group {
		o.Group = r.Stream
	}
	if r.Stream == "system" && strings.HasPrefix(o.Text, "##[error]") {
		o.Stream, o.Text = "error", strings.TrimPrefix(o.Text, "##[error]")
	}
	return o
}

func (s *Server) rawLog(w http.ResponseWriter, r *http.Request) {
	ctx, id, key := r.Context(), r.PathValue("id"), r.URL.Query().Get("job")
	if !ci.ValidID(id) {
		s.fail(w, r, ErrNotFound)
		return
	}
	if _, err := s.source.Run(ctx, id); err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	for offset := int64(0); ; {
		lines, err := s.source.Log(ctx, id, key, offset, 2000)
		if err != nil || len(lines) == 0 {
			return
		}
		for _, l := range lines {
			offset = l.End
			if l.Record.Type == ci.LogLine {
				if _, err := fmt.Fprintln(w, board.Clean(l.Record.Text)); err != nil {
					return
				}
			}
		}
	}
}

// events streams what changes: "board" carries the rendered jobs, "log" new
// lines of one job as JSON, "end" that nothing more will come.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	ctx, id := r.Context(), r.PathValue("id")
	if !ci.ValidID(id) {
		s.fail(w, r, ErrNotFound)
		return
	}
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		w.Header().Set("Retry-After", "10")
		http.Error(w, "too many pages follow runs at the moment", http.StatusServiceUnavailable)
		return
	}
	if _, err := s.source.Run(ctx, id); err != nil {
		s.fail(w, r, err)
		return
	}
	key := r.URL.Query().Get("job")
	offset, _ := strconv.ParseInt(r.URL.Query().Get("offset"), 10, 64)
	n, _ := strconv.Atoi(r.URL.Query().Get("line"))
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	changed, stop := s.source.Watch(id)
	defer stop()
	var b board.Board
	seq := int64(-1)
	send := func(event string, data []byte) error {
		out.SetWriteDeadline(time.Now().Add(20 * time.Second))
		var e bytes.Buffer
		fmt.Fprintf(&e, "event: %s\n", event)
		for line := range bytes.Lines(data) {
			fmt.Fprintf(&e, "data: %s\n", bytes.TrimRight(line, "\r\n"))
		}
		e.WriteByte('\n')
		if _, err := w.Write(e.Bytes()); err != nil {
			return err
		}
		return out.Flush()
	}
	// Changes come in bursts: one look at the record serves all of a moment. And
	// a server on another host wakes nobody here, hence the slow second look.
	slow := time.NewTicker(2 * time.Second)
	defer slow.Stop()
	for {
		run, err := s.source.Run(ctx, id)
		if err != nil {
			return
		}
		done := run.Status == ci.Completed
		last := seq
		if seq, err = s.board(ctx, id, &b, max(seq, 0)); err != nil {
			return
		}
		if seq != last {
			v := view{Run: run, Board: b, Open: open(&b, key), Now: time.Now()}
			var fragment bytes.Buffer
			if err := s.pages.ExecuteTemplate(&fragment, "board", v); err != nil {
				s.log.Error("fragment", "error", err)
				return
			}
			if send("board", fragment.Bytes()) != nil {
				return
			}
		}
		for key != "" {
			lines, err := s.source.Log(ctx, id, key, offset, 500)
			if err != nil {
				return
			}
			if len(lines) == 0 {
				break
			}
			rows := make([]row, 0, len(lines))
			for _, l := range lines {
				n++
				offset = l.End
				rows = append(rows, rowOf(n, l.Record))
			}
			data, err := json.Marshal(map[string]any{"lines": rows, "offset": offset})
			if err != nil || send("log", data) != nil {
				return
			}
		}
		if done {
			send("end", []byte("{}"))
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-slow.C:
		case <-changed:
			pause := time.NewTimer(100 * time.Millisecond)
			select {
			case <-pause.C:
			case <-ctx.Done():
				pause.Stop()
				return
			}
		}
	}
}
