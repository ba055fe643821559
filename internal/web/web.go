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
// # What a page costs
//
// Logs can be large and jobs can be fast, and whoever may look may look often. So
// what a request costs does not depend on how much there is: a page reads the
// window of the log that it shows ([maxLines] lines, [maxText] bytes) and links to
// those before and after, the stream sends what was written since in batches and
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
	maxBoards    = 32 // kept
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

// Event is a delivery and what came of it.
type Event struct {
	ci.Event
	State  string // pending, taken, done, failed, refused, noted
	Detail string
	Tries  int
}

// Source is where the pages' facts come from.
type Source interface {
	Runs(ctx context.Context, limit int) ([]ci.Run, error)
	Run(ctx context.Context, id string) (ci.Run, error)
	// Records returns a run's records without log lines, after a sequence number.
	Records(ctx context.Context, runID string, after int64, limit int) ([]ci.Record, error)
	// LogTail returns the last n lines of a job's log, LogFrom n lines from a
	// number on, from 1: fewer where they are long. What either costs does not
	// depend on how long the log is. Without such a log the window is empty.
	LogTail(ctx context.Context, runID, jobKey string, n int) (Window, error)
	LogFrom(ctx context.Context, runID, jobKey string, from int64, n int) (Window, error)
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
	Login     *door.Login // nil asks nobody who they are
	Version   string
	Log       *slog.Logger
}

// Server serves the pages.
type Server struct {
	source    Source
	artifacts Artifacts
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
		"link":     board.Link,
		"markdown": (&documents{}).html,
		"bar":      func(p *ci.Prediction, width float64) bar { return bar{p, width} },
		"log":      func(lines []row, j *board.Job) []section { return sections(lines, j) },
		"tone":     tone,
		"parts":    parts,
		"scale":    func(p, width float64) float64 { return min(max(p, 0), 1) * width },
		"minus":    func(a, b float64) float64 { return a - b },
		"when":     func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
		"iso":      func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
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
		source: cfg.Source, artifacts: cfg.Artifacts, login: cfg.Login, log: cfg.Log, pages: pages, version: cfg.Version,
		streams: door.NewSlots(maxStreams, clientStreams), rendered: door.NewSlots(maxPages, clientPages), logs: door.NewSlots(maxLogs, clientLogs),
		raw: maxRaw,
	}
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
	mux.Handle("GET /events", page(s.deliveries))
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
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'")
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
	s.render(w, http.StatusOK, "runs.html", map[string]any{"Title": "Runs", "Runs": runs, "Refresh": moving, "Version": s.version, "Login": s.login != nil})
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
	s.render(w, http.StatusOK, "events.html", map[string]any{"Title": "Events", "Events": events, "Refresh": moving, "Version": s.version,
		"Login": s.login != nil})
}

// view is one run as a page shows it.
type view struct {
	Title, Version string
	Refresh, Login bool
	Run            ci.Run
	Board          *board.Board
	MoreNotes      int // than the board shows
	Artifacts      []Artifact
	Open           *board.Job // the job whose log is shown
	Lines          []row
	First, Last    int64 // numbers of the lines shown
	Total          int64 // how many there are
	Earlier, Later int64 // from which line to look for them; 0 if there are none
	Tail           bool  // the end is shown, and may be followed
}

type row struct {
	N      int64
	Step   int
	Stream string
	Text   string
	Group  string // start, end
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
	v := view{Title: run.Workflow, Version: s.version, Login: s.login != nil, Run: run, Artifacts: s.left(ctx, run)}
	var page bytes.Buffer
	err = s.boards.with(ctx, s.source, id, func(b *kept) error {
		v.Board, v.MoreNotes, v.Open = &b.board, b.moreNotes, open(&b.board, r.URL.Query().Get("job"))
		if v.Open != nil {
			from, _ := strconv.ParseInt(r.URL.Query().Get("from"), 10, 64)
			if err := s.lines(ctx, &v, from); err != nil {
				return err
			}
		}
		return s.pages.ExecuteTemplate(&page, "run.html", v)
	})
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.send(w, http.StatusOK, &page)
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

// lines reads the part of the log that a page shows: from a line on, or the end.
func (s *Server) lines(ctx context.Context, v *view, from int64) error {
	var w Window
	var err error
	if from > 0 {
		w, err = s.source.LogFrom(ctx, v.Run.ID, v.Open.Key, from, maxLines)
	} else {
		w, err = s.source.LogTail(ctx, v.Run.ID, v.Open.Key, maxLines)
	}
	if err != nil {
		return err
	}
	v.Lines, v.Total = fit(w.Lines, from <= 0), w.Total
	if n := len(v.Lines); n > 0 {
		v.First, v.Last = v.Lines[0].N, v.Lines[n-1].N
	} else {
		v.First, v.Last = w.First, w.Total
	}
	if v.First > 1 {
		v.Earlier = max(v.First-maxLines, 1)
	}
	if v.Tail = v.Last >= v.Total; !v.Tail {
		v.Later = v.Last + 1
	}
	return nil
}

// fit makes rows of lines, of so many as go on a page: the last, or the first.
func fit(lines []Line, last bool) []row {
	rows := make([]row, 0, len(lines))
	left := maxText
	for i := range lines {
		l := lines[i]
		if last {
			l = lines[len(lines)-1-i]
		}
		r := rowOf(l)
		if left -= len(r.Text); left < 0 && len(rows) > 0 {
			break
		}
		rows = append(rows, r)
	}
	if last {
		slices.Reverse(rows)
	}
	return rows
}

// clip cuts a text and says so.
func clip(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + fmt.Sprintf(" … %d bytes more", len(text)-most)
}

func rowOf(l Line) row {
	r := l.Record
	o := row{N: l.Number, Step: r.Step, Stream: r.Stream, Text: board.Clean(clip(r.Text, maxLine))}
	if r.Type == ci.Group {
		o.Group = r.Stream
	}
	// A record from before lines had a level says it in its text alone.
	if text, said := strings.CutPrefix(o.Text, "##[error]"); r.Stream == "system" && (r.Level == "error" || r.Level == "" && said) {
		o.Stream, o.Text = "error", text
	}
	return o
}

// rawLog is a job's log as plain text, from a line on: read as the client takes it.
// Where it goes on is in a Link header, and for people at the end.
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
	w.Header().Set("Cache-Control", "no-store")
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

// events streams what changes: "board" carries the rendered jobs, "log" new
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
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	changed, stop := s.source.Watch(id)
	defer stop()
	send := func(event string, data []byte) error {
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
		var fragment bytes.Buffer
		err = s.boards.with(ctx, s.source, id, func(b *kept) error {
			if b.seq == seq {
				return nil
			}
			seq = b.seq
			return s.pages.ExecuteTemplate(&fragment, "board",
				view{Run: run, Board: &b.board, MoreNotes: b.moreNotes, Artifacts: s.left(ctx, run), Open: open(&b.board, key)})
		})
		if err != nil {
			s.log.Error("fragment", "run", id, "err", err)
			return
		}
		if fragment.Len() > 0 && send("board", fragment.Bytes()) != nil {
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
