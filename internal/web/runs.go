package web

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
)

const (
	listed          = 50  // runs of a page
	maxRepositories = 200 // that a page offers
	maxFilter       = 200 // bytes of one
	listEvery       = time.Second
)

// Moving is the result of runs that have none yet.
const Moving = "running"

// RunQuery narrows the list of runs. Empty fields do not.
type RunQuery struct {
	Repository, Event, Branch, Actor string
	Result                           string // a [ci.Conclusion], or [Moving]
	Text                             string // in name, workflow, branch, repository, or the beginning of the commit
	After                            *Place // runs behind it
	Limit                            int
}

// Place is a run's place in the list of all.
type Place struct {
	Created time.Time
	Number  int64
	ID      string
}

// String is the place in a URL.
func (p Place) String() string { return fmt.Sprintf("%d.%d.%s", p.Created.UnixMilli(), p.Number, p.ID) }

func placeOf(s string) *Place {
	part := strings.Split(s, ".")
	if len(part) != 3 || !ci.ValidID(part[2]) {
		return nil
	}
	ms, err := strconv.ParseInt(part[0], 10, 64)
	n, err2 := strconv.ParseInt(part[1], 10, 64)
	if err != nil || err2 != nil {
		return nil
	}
	return &Place{time.UnixMilli(ms), n, part[2]}
}

// runQuery is what a URL asks for.
func runQuery(v url.Values) RunQuery {
	get := func(k string) string {
		return strings.TrimSpace(strings.ToValidUTF8(v.Get(k)[:min(len(v.Get(k)), maxFilter)], ""))
	}
	return RunQuery{Repository: get("repository"), Event: get("event"), Branch: get("branch"), Actor: get("actor"), Result: get("result"), Text: get("q"),
		After: placeOf(v.Get("after")), Limit: listed}
}

// values is the query as it stands in a URL, of its place nothing.
func (q RunQuery) values() url.Values {
	v := url.Values{}
	for _, f := range []struct{ k, v string }{{"repository", q.Repository}, {"event", q.Event}, {"branch", q.Branch}, {"actor", q.Actor}, {"result",
		q.Result},
		{"q", q.Text}} {
		if f.v != "" {
			v.Set(f.k, f.v)
		}
	}
	return v
}

// runList is a page of the list.
type runList struct {
	frame
	Query        RunQuery
	Filtered     bool
	Narrow       string // the query of the page, for the stream
	Runs         []ci.Run
	Repositories []string
	Results      []string
	Next         string // the query of the next page; "" is none
}

// With is the list narrowed by one thing more.
func (l runList) With(key, value string) string {
	v := l.Query.values()
	v.Set(key, value)
	return "/?" + v.Encode()
}

func (s *Server) list(r *http.Request) (l runList, err error) {
	l.frame, l.Query = s.frame(r, "Runs"), runQuery(r.URL.Query())
	l.Narrow = l.Query.values().Encode()
	l.Filtered = l.Narrow != ""
	ask := l.Query
	ask.Limit++
	if l.Runs, err = s.source.Runs(r.Context(), ask); err != nil {
		return l, err
	}
	if len(l.Runs) > listed {
		l.Runs = l.Runs[:listed]
		last := l.Runs[listed-1]
		v := l.Query.values()
		v.Set("after", Place{last.Created, last.Number, last.ID}.String())
		l.Next = "/?" + v.Encode()
	}
	for i, run := range l.Runs {
		if run.Status != ci.Completed {
			l.Refresh, l.Icon = true, "running"
		}
		if i == 0 {
			l.Icon = class(run.Status, run.Conclusion, run.Infrastructure)
		}
	}
	return l, nil
}

// runs is the list of runs.
func (s *Server) runs(w http.ResponseWriter, r *http.Request) {
	l, err := s.list(r)
	if err == nil {
		l.Repositories, err = s.source.Repositories(r.Context(), maxRepositories)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	l.Results = []string{Moving, string(ci.Success), string(ci.Failure), string(ci.Cancelled), string(ci.NotRun), string(ci.Skipped)}
	s.render(w, http.StatusOK, "runs.html", l)
}

// runsLive streams the list as it changes: "runs" carries its rows.
func (s *Server) runsLive(w http.ResponseWriter, r *http.Request) {
	send := sender(w)
	changed, stop := s.source.Watch("")
	defer stop()
	// A server on another host wakes nobody here.
	slow := time.NewTicker(5 * time.Second)
	defer slow.Stop()
	var last []byte
	for {
		if s.login != nil {
			if _, err := s.login.Who(r); err != nil {
				return
			}
		}
		l, err := s.list(r)
		if err != nil {
			return
		}
		var rows bytes.Buffer
		if err := s.pages.ExecuteTemplate(&rows, "rows", l); err != nil {
			s.log.Error("fragment", "page", "runs", "err", err)
			return
		}
		if !bytes.Equal(rows.Bytes(), last) {
			if send("runs", rows.Bytes()) != nil {
				return
			}
			last = rows.Bytes()
		}
		pause := time.NewTimer(listEvery)
		select {
		case <-pause.C:
		case <-r.Context().Done():
			pause.Stop()
			return
		}
		select {
		case <-changed:
		case <-slow.C:
		case <-r.Context().Done():
			return
		}
	}
}
