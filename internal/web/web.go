// Package web is the pages that people look at: the runs, and one run with its
// jobs, steps and live log, its predictions and explanations beside what
// happened.
//
// Pages are rendered on the server from [Source] (html/template escapes whatever
// came out of a machine) and work without JavaScript: pictures are SVG that is part of
// the page (picture.go), what folds is <details>, what is searched is a form, and a link
// to lines of a log shows them wherever in it they are. Small scripts add what lives:
// one EventSource gives a run's overview and board, as rendered fragments, whenever they
// have changed, and the log lines of the job that is open; keys go through what can be
// opened. There is no build step and nothing from another host: the policy in the
// headers allows none.
//
// A run that failed begins with its failure: what it said, whether that was seen
// before, what ended it then, what is suspect; and the same stands beside the line of
// the log that says it.
//
// # What a page costs
//
// Logs can be large and jobs can be fast, and whoever may look may look often. So
// what a request costs does not depend on how much there is: a page reads the
// window of the log that it shows ([maxLines] lines, [maxText] bytes) and links to
// those before and after, a search reads a bounded part of a log and lists the first of
// what it found, a picture has so many parts, the stream sends what was written since in batches and
// leaves out what it cannot keep up with, a run's board is kept and goes on from
// the last record it has seen. The plain text of a log is read as the client takes
// it, [maxRaw] lines in one piece, which says where the next begins. What one client
// has going at once is bounded, and what all have; a slow reader slows nobody but
// itself, and not for ever.
//
// # Who may look
//
// Everybody, or whoever has logged in ([Config].Login; package door). Without a
// login every page, stream and log is the one page that says how to get one, and
// goes on from there to where it stands.
package web

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/door"
)

const (
	maxLines     = 2000
	maxText      = 256 << 10 // bytes of a log's text on one page
	maxLine      = 8 << 10   // bytes of one line of it
	maxRaw       = 500_000   // lines of one piece of plain text
	maxRecords   = 20000     // that one request adds to a board
	maxDocuments = 256 << 10 // bytes of a run's summaries that its board keeps
	maxNotes     = 200
	maxWords     = 200 // bytes of a search
	maxHits      = 100 // lines that a page lists of it
	maxBoards    = 32  // kept
	writeTime    = 30 * time.Second
	readAhead    = 500 // lines of one batch
)

// What all clients may have going at once, and one of them.
const (
	maxStreams, clientStreams = 256, 24
	maxPages, clientPages     = 48, 24
	maxLogs, clientLogs       = 8, 3
)

// ErrNotFound is what a [Source] returns for what does not exist.
var ErrNotFound = errors.New("not found")

// Line is one log line and its place in the log, from 1.
type Line struct {
	Record ci.Record
	Number int64
}

// Window is some lines of a job's log, out of Total. First is the number of the
// first of them, from 1.
type Window struct {
	Lines        []Line
	First, Total int64
}

// Matches is what a search in a log found.
type Matches struct {
	Lines []Line // the first of Total
	Total int64
	Next  int64
}

// Event is a delivery and what came of it.
type Event struct {
	ci.Event
	State  string // pending, taken, done, failed, refused, noted
	Detail string
	Tries  int
}

// Source is where the pages' facts come from.
type Source interface {
	// Runs lists runs, the newest first.
	Runs(ctx context.Context, q RunQuery) ([]ci.Run, error)
	// Repositories lists those that have had runs, by name.
	Repositories(ctx context.Context, limit int) ([]string, error)
	Run(ctx context.Context, id string) (ci.Run, error)
	// Records returns a run's records without log lines, after a sequence number.
	Records(ctx context.Context, runID string, after int64, limit int) ([]ci.Record, error)
	// LogTail returns the last n lines of a job's log, LogFrom n lines from a
	// number on, from 1: fewer where they are long. What either costs does not
	// depend on how long the log is. Without such a log the window is empty.
	LogTail(ctx context.Context, runID, jobKey string, n int) (Window, error)
	LogFrom(ctx context.Context, runID, jobKey string, from int64, n int) (Window, error)
	// LogFind returns the first n lines of a job's log, from a number on, that have the
	// words, and how many do; Next is where the search goes on if the log is longer than
	// one search reads, 0 if it is not.
	LogFind(ctx context.Context, runID, jobKey, words string, from int64, n int) (Matches, error)
	// Events returns the newest deliveries, without payloads.
	Events(ctx context.Context, limit int) ([]Event, error)
	// Watch receives after the run has changed.
	Watch(runID string) (changed <-chan struct{}, stop func())
}

//go:embed templates/*.html
var templates embed.FS

//go:embed static
var static embed.FS

// Artifact is something that a run has left for people.
type Artifact struct {
	ID        int64
	Name, Job string
	File      string // as it is downloaded
	Size      int64
}

// Artifacts is where those of runs come from.
type Artifacts interface {
	Artifacts(ctx context.Context, run ci.Run) ([]Artifact, error)
	// OpenArtifact returns ErrNotFound where the run has no such one.
	OpenArtifact(ctx context.Context, run ci.Run, id int64) (Artifact, io.ReadSeekCloser, error)
}

// Config says what a Server shows, and to whom.
type Config struct {
	Source Source
	// Artifacts are shown with their runs; nil is none.
	Artifacts Artifacts
	// Replay has an event that has ended handled again, by its id; ErrNotFound where there
	// is nothing to handle. nil: nobody can.
	Replay func(ctx context.Context, event string) error
	// Insight makes pages about repositories; nil is none.
	Insight Insight
	Login   *door.Login // nil asks nobody who they are
	Version string
	Log     *slog.Logger
}

// Server serves the pages.
type Server struct {
	source    Source
	artifacts Artifacts
	insight   Insight
	again     func(ctx context.Context, event string) error
	login     *door.Login
	log       *slog.Logger
	pages     *template.Template
	version   string
	boards    boards

	streams, rendered, logs *door.Slots
	raw                     int64 // maxRaw, less in tests
}

// New returns the pages' server.
func New(cfg Config) *Server {
	pages := template.Must(template.New("").Funcs(template.FuncMap{
		"known":    board.Known,
		"says":     board.WhatItSays,
		"failing":  board.FailedTests,
		"clean":    func(text string) string { return clip(board.Clean(clip(text, 2*maxLine)), maxLine) },
		"short":    board.Short,
		"size":     board.Amount,
		"percent":  board.Percent,
		"suspects": board.Suspects,
		"marked": func(v interface{ Mark() (string, string) }) string {
			sign, word := v.Mark()
			return sign + " " + word
		},
		"word":  func(s ci.Status, c ci.Conclusion, infra bool) string { _, w := board.Mark(s, c, infra); return w },
		"sign":  func(s ci.Status, c ci.Conclusion, infra bool) string { s2, _ := board.Mark(s, c, infra); return s2 },
		"class": class,
		"ms":    func(n int64) string { return board.Short(time.Duration(n) * time.Millisecond) },
		"took": func(from, to time.Time) string {
			if from.IsZero() || to.IsZero() {
				return ""
			}
			return board.Short(to.Sub(from))
		},
		"link":      board.Link,
		"markdown":  (&documents{}).html,
		"bar":       func(p *ci.Prediction, width float64) bar { return bar{p, width} },
		"stepclass": stepClass,
		"jobclass":  jobClass,
		"percents":  func(thousandth float64) string { return strconv.FormatFloat(thousandth/10, 'f', 2, 64) + "%" },
		"mul":       func(a, b int) int { return a * b },
		"add":       func(a, b int) int { return a + b },
		"plot":      func(share, from, by float64) float64 { return from + min(max(share, 0), 1)*by },
		"share":     func(n, of int) float64 { return float64(n) / float64(max(of, 1)) },
		"seconds":   func(n float64) string { return board.Short(time.Duration(min(max(n, 0), 1e8) * float64(time.Second))) },
		"jobid":     func(key string) string { id, _, _ := strings.Cut(key, " ("); return id },
		"recentOf":  recentOf,
		"recentSays": func(s string) string {
			return fmt.Sprintf("%d of the last %d failed", len(slices.DeleteFunc(recentOf(s), func(c string) bool { return c != "bad" })), len(recentOf(s)))
		},
		"ago":   func(t time.Time) string { return ago(t, time.Now()) },
		"line":  func(r row, job string, times bool) lineView { return lineView{r, job, times} },
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
	return &Server{
		source: cfg.Source, artifacts: cfg.Artifacts, insight: cfg.Insight, again: cfg.Replay, login: cfg.Login, log: cfg.Log, pages: pages, version: cfg.Version,
		streams: door.NewSlots(maxStreams, clientStreams), rendered: door.NewSlots(maxPages, clientPages), logs: door.NewSlots(maxLogs, clientLogs),
		raw: maxRaw,
	}
}

// bar is a prediction to be drawn.
type bar struct {
	*ci.Prediction
	Width float64
}

// recentOf are the classes of how a test ended lately, the newest at the end.
func recentOf(s string) (out []string) {
	for _, c := range s[max(0, len(s)-31):] {
		class := "ok"
		if c == 'F' {
			class = "bad"
		}
		out = append(out, class)
	}
	return out
}

// lineView is a line of a job's log to be shown.
type lineView struct {
	Row   row
	Job   string
	Times bool
}

// tone is the CSS class of an event's state.
func tone(state string) string {
	switch state {
	case "failed", "refused":
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
	page := func(h http.HandlerFunc) http.Handler { return secure(s.member(s.bounded(s.rendered, h))) }
	mux.Handle("GET /{$}", page(s.runs))
	mux.Handle("GET /runs/events", secure(s.member(s.bounded(s.streams, s.runsLive))))
	mux.Handle("GET /events", page(s.deliveries))
	if s.again != nil {
		mux.Handle("POST /events/{id}/replay", page(s.replay))
	}
	mux.Handle("GET /repositories", page(s.repositories))
	mux.Handle("GET /repository", page(s.repository))
	mux.Handle("GET /runs/{id}", page(s.run))
	mux.Handle("GET /runs/{id}/events", secure(s.member(s.bounded(s.streams, s.events))))
	mux.Handle("GET /runs/{id}/log", secure(s.member(s.bounded(s.logs, s.rawLog))))
	mux.Handle("GET /runs/{id}/artifacts/{artifact}", secure(s.member(s.bounded(s.logs, s.artifact))))
	if s.login != nil {
		mux.Handle("GET /login", secure(http.HandlerFunc(s.loginPage)))
		mux.Handle("POST /login", secure(http.HandlerFunc(s.logIn)))
		mux.Handle("POST /logout", secure(http.HandlerFunc(s.logOut)))
	}
}

func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy",
			"default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		next.ServeHTTP(w, r)
	})
}

// bounded lets only so many requests at once through to a handler.
func (s *Server) bounded(slots *door.Slots, next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		release, mine := slots.Take(s.client(r))
		if release == nil {
			w.Header().Set("Retry-After", "10")
			if mine {
				http.Error(w, "you have too many of these open: close some, or wait a moment", http.StatusTooManyRequests)
			} else {
				http.Error(w, "too many people look at this at the moment", http.StatusServiceUnavailable)
			}
			return
		}
		defer release()
		// The server's time for reading the request would end what takes longer.
		http.NewResponseController(w).SetReadDeadline(time.Time{})
		next(w, r)
	})
}

func (s *Server) render(w http.ResponseWriter, status int, page string, data any) {
	var b bytes.Buffer
	if err := s.pages.ExecuteTemplate(&b, page, data); err != nil {
		s.log.Error("page", "page", page, "err", err)
		http.Error(w, "the page could not be made", http.StatusInternalServerError)
		return
	}
	s.send(w, status, &b)
}

func (s *Server) send(w http.ResponseWriter, status int, page *bytes.Buffer) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTime))
	w.WriteHeader(status)
	w.Write(page.Bytes())
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, ErrNotFound) {
		s.render(w, http.StatusNotFound, "error.html", map[string]any{"Title": "Not found", "Text": "There is no such run, or it is not on record any more.",
			"Version": s.version, "Login": s.login != nil})
		return
	}
	s.log.Error("page", "path", r.URL.Path, "err", err)
	s.render(w, http.StatusInternalServerError, "error.html",
		map[string]any{"Title": "Error", "Text": "The record could not be read. The server's log says why.", "Version": s.version, "Login": s.login != nil})
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
	f := s.frame(r, "Events")
	f.Refresh = moving
	s.render(w, http.StatusOK, "events.html", struct {
		frame
		Events []Event
		Replay bool
	}{f, events, s.again != nil})
}

// replay has an event handled again. That it is no other site's doing is checked where
// all requests are (package door).
func (s *Server) replay(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	err := ErrNotFound
	if ci.ValidID(id) {
		err = s.again(r.Context(), id)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.log.Info("an event is replayed", "event", id, "subject", s.client(r))
	http.Redirect(w, r, "/events", http.StatusSeeOther)
}

// frame is what is around every page.
type frame struct {
	Title, Version string
	Refresh, Login bool
	Icon           string // the state that the browser's tab shows: ok, bad, running; "" is none
}

func (s *Server) frame(_ *http.Request, title string) frame {
	return frame{Title: title, Version: s.version, Login: s.login != nil}
}

// view is one run as a page shows it.
type view struct {
	frame
	Run       ci.Run
	Board     *board.Board
	MoreNotes int // than the board shows
	Artifacts []Artifact
	Failures  []failure
	Graph     chart
	Timeline  timeline
	Open      *board.Job // the job whose log is shown
	Log       logView
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
	v := view{frame: s.frame(r, run.Name), Run: run, Artifacts: s.left(ctx, run)}
	v.Icon = class(run.Status, run.Conclusion, run.Infrastructure)
	q := r.URL.Query()
	ask := logAsk{Words: strings.TrimSpace(clip(q.Get("q"), maxWords)), Times: q.Get("times") == "1"}
	ask.From, _ = strconv.ParseInt(q.Get("from"), 10, 64)
	ask.Mark = markOf(q.Get("lines"))
	if ask.Words != "" { // which reads much: so many at once as plain text
		release, _ := s.logs.Take(s.client(r))
		if release == nil {
			w.Header().Set("Retry-After", "10")
			http.Error(w, "too many searches at the moment: wait a little", http.StatusServiceUnavailable)
			return
		}
		defer release()
	}
	// The log is read first: a board is nobody else's while it is shown.
	key := ""
	if err := s.boards.with(ctx, s.source, id, func(b *kept) error {
		if j := open(&b.board, q.Get("job")); j != nil {
			key = j.Key
		}
		return nil
	}); err != nil {
		s.fail(w, r, err)
		return
	}
	if key != "" {
		if v.Log, err = s.logOf(ctx, id, key, ask); err != nil {
			// What is known of the run is more than its log.
			s.log.Error("log", "run", id, "job", key, "err", err)
			v.Log = logView{logAsk: ask, Broken: true}
		}
	}
	var page bytes.Buffer
	err = s.boards.with(ctx, s.source, id, func(b *kept) error {
		if j := open(&b.board, key); j != nil && j.Key == key {
			v.Log.sections(j)
		}
		v.show(b, key)
		return s.pages.ExecuteTemplate(&page, "run.html", v)
	})
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.send(w, http.StatusOK, &page)
}

// show fills in what a board says.
func (v *view) show(b *kept, key string) {
	v.Board, v.MoreNotes, v.Open = &b.board, b.moreNotes, open(&b.board, key)
	v.Failures = failuresOf(v.Board)
	v.Graph, v.Timeline = graphOf(v.Board, v.Open), timelineOf(v.Board, v.Open, time.Now())
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
		case j.Status == ci.Completed && j.Conclusion != ci.Skipped && j.Conclusion != ci.NotRun:
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

// rawLog is a job's log as plain text, from a line on: read as the client takes it.
// Where it goes on is in a Link header, and for people at the end.
func (s *Server) rawLog(w http.ResponseWriter, r *http.Request) {
	ctx, id, key := r.Context(), r.PathValue("id"), r.URL.Query().Get("job")
	if !ci.ValidID(id) {
		s.fail(w, r, ErrNotFound)
		return
	}
	run, err := s.source.Run(ctx, id)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if r.URL.Query().Get("download") != "" {
		name := fmt.Sprintf("%s-%d-%s.txt", run.Workflow, run.Number, key)
		w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": fileName(name)}))
	}
	out := http.NewResponseController(w)
	from, _ := strconv.ParseInt(r.URL.Query().Get("from"), 10, 64)
	from = max(from, 1)
	next := from + s.raw
	for first := true; ; first = false {
		part, err := s.source.LogFrom(ctx, id, key, from, maxLines)
		if err != nil {
			s.log.Error("log", "run", id, "err", err)
			panic(http.ErrAbortHandler) // a cut log must not look like a short one
		}
		if len(part.Lines) == 0 {
			return
		}
		at := "?" + url.Values{"job": {key}, "from": {strconv.FormatInt(next, 10)}}.Encode()
		if first && part.Total >= next {
			w.Header().Set("Link", "<"+at+">; rel=\"next\"")
		}
		out.SetWriteDeadline(time.Now().Add(writeTime))
		for _, l := range part.Lines {
			if l.Number >= next {
				fmt.Fprintf(w, "… %d lines more: %s\n", part.Total-next+1, at)
				return
			}
			from = l.Number + 1
			if l.Record.Type == ci.LogLine {
				if _, err := fmt.Fprintln(w, board.Clean(l.Record.Text)); err != nil {
					return
				}
			}
		}
	}
}

// events streams what changes: "board" and "overview" carry the rendered jobs and pictures, "log" new
// lines of one job as JSON, "end" that nothing more will come. The lines are
// those after line; without that there are none. Of lines that come faster than
// they can be sent the last are, and their numbers show what was left out.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	ctx, id := r.Context(), r.PathValue("id")
	if !ci.ValidID(id) {
		s.fail(w, r, ErrNotFound)
		return
	}
	if _, err := s.source.Run(ctx, id); err != nil {
		s.fail(w, r, err)
		return
	}
	key := r.URL.Query().Get("job")
	n, err := strconv.ParseInt(r.URL.Query().Get("line"), 10, 64)
	follow := err == nil && n >= 0 && key != ""
	changed, stop := s.source.Watch(id)
	defer stop()
	send := sender(w)
	// Changes come in bursts: one look at the record serves all of a moment. And
	// a server on another host wakes nobody here, hence the slow second look.
	slow := time.NewTicker(2 * time.Second)
	defer slow.Stop()
	for seq := int64(-1); ; {
		if s.login != nil { // it may have ended meanwhile
			if _, err := s.login.Who(r); err != nil {
				return
			}
		}
		run, err := s.source.Run(ctx, id)
		if err != nil {
			return
		}
		done := run.Status == ci.Completed
		var fragment, overview bytes.Buffer
		err = s.boards.with(ctx, s.source, id, func(b *kept) error {
			if b.seq == seq {
				return nil
			}
			seq = b.seq
			v := view{Run: run, Artifacts: s.left(ctx, run)}
			v.show(b, key)
			if err := s.pages.ExecuteTemplate(&overview, "overview", v); err != nil {
				return err
			}
			return s.pages.ExecuteTemplate(&fragment, "board", v)
		})
		if err != nil {
			s.log.Error("fragment", "run", id, "err", err)
			return
		}
		if fragment.Len() > 0 && (send("board", fragment.Bytes()) != nil || send("overview", overview.Bytes()) != nil) {
			return
		}
		if follow {
			if n, err = s.follow(ctx, id, key, n, send); err != nil {
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

// sender begins an answer that is a stream of events, and returns what sends one.
func sender(w http.ResponseWriter) func(event string, data []byte) error {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	out := http.NewResponseController(w)
	return func(event string, data []byte) error {
		out.SetWriteDeadline(time.Now().Add(writeTime))
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
}

// follow sends the lines after n, at most a page of them, and returns the number
// of the last.
func (s *Server) follow(ctx context.Context, id, key string, n int64, send func(string, []byte) error) (int64, error) {
	for sent := 0; sent < maxLines; {
		w, err := s.source.LogFrom(ctx, id, key, n+1, readAhead)
		if err == nil && w.Total-n > maxLines { // more than anybody reads
			n = w.Total - readAhead
			w, err = s.source.LogFrom(ctx, id, key, n+1, readAhead)
		}
		if err != nil || len(w.Lines) == 0 {
			return n, err
		}
		rows := fit(w.Lines, false)
		data, err := json.Marshal(map[string]any{"lines": rows})
		if err == nil {
			err = send("log", data)
		}
		if err != nil {
			return n, err
		}
		n = rows[len(rows)-1].N
		sent += len(rows)
	}
	return n, nil
}
