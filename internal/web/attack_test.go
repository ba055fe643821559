package web

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/door"
	"github.com/hearth-ci/hearth/internal/web/webtest"
)

// `yes` for a minute, then a GET of its page: 14 s of CPU, for everybody who asked.
// A page reads the window that it shows, wherever in the log that is, and a stream
// that is told to begin at the beginning begins where there is something to see.
func TestAttackPageOfLongLog(t *testing.T) {
	m, s := site(t)
	m.emit(ci.Record{Type: ci.JobStarted, JobKey: "a", Name: "a"})
	for range 50 * maxLines {
		m.lines = append(m.lines, Line{Record: ci.Record{Type: ci.LogLine, JobKey: "a", Step: 1, Text: "y"}})
	}
	page := s.URL + "/runs/" + m.runs[0].ID
	for _, query := range []string{"", "?from=1", "?from=40000", "?from=99999999999", "?from=-5", "?job=a&from=x"} {
		m.read = 0
		if resp, _ := get(t, page+query); resp.StatusCode != 200 || m.read > maxLines {
			t.Errorf("%q: %s, %d lines were read", query, resp.Status, m.read)
		}
	}
	m.read = 0
	m.runs[0].Status = ci.Completed
	resp, body := get(t, page+"/events?job=a&line=0")
	if resp.StatusCode != 200 || m.read > maxLines+2*readAhead || !strings.Contains(body, `"N":100000`) {
		t.Errorf("the stream: %s, %d lines were read", resp.Status, m.read)
	}
	if _, raw := get(t, page+"/log?job=a"); strings.Count(raw, "y\n") != 50*maxLines {
		t.Errorf("the plain text has %d lines", strings.Count(raw, "y\n"))
	}
}

// The plain text of a log of a gigabyte took a core for minutes, by one GET.
func TestAttackPlainTextOfLongLog(t *testing.T) {
	m := &memory{changed: make(chan struct{}, 1)}
	m.runs = []ci.Run{{ID: ci.NewID(), Status: ci.Completed}}
	for i := range 5000 {
		m.lines = append(m.lines, Line{Record: ci.Record{Type: ci.LogLine, JobKey: "a b", Step: 1, Text: fmt.Sprint("line ", i+1)}})
	}
	site := New(Config{Source: m, Log: slog.New(slog.DiscardHandler)})
	site.raw = 2100
	mux := http.NewServeMux()
	site.Register(mux)
	s := httptest.NewServer(mux)
	defer s.Close()
	var all []string
	pieces := 0
	for at := "?job=a+b"; at != ""; pieces++ {
		m.read = 0
		resp, body := get(t, s.URL+"/runs/"+m.runs[0].ID+"/log"+at)
		if m.read > 2*maxLines+1 {
			t.Errorf("%s: %d lines were read", at, m.read)
		}
		link, _, _ := strings.Cut(strings.TrimPrefix(resp.Header.Get("Link"), "<"), ">")
		lines := strings.Split(strings.TrimSuffix(body, "\n"), "\n")
		if link != "" {
			if last := lines[len(lines)-1]; !strings.Contains(last, "lines more: "+link) {
				t.Errorf("%q does not say where it goes on, %s", last, link)
			}
			lines = lines[:len(lines)-1]
		}
		all, at = append(all, lines...), link
	}
	if len(all) != 5000 || all[0] != "line 1" || all[4999] != "line 5000" || pieces != 3 {
		t.Errorf("%d lines in %d pieces", len(all), pieces)
	}
}

// Lines of a mebibyte, of which a page held thousands.
func TestAttackPageOfLongLines(t *testing.T) {
	m, s := site(t)
	m.emit(ci.Record{Type: ci.JobStarted, JobKey: "a", Name: strings.Repeat("n", 1<<20)})
	for i := range 100 {
		m.lines = append(m.lines, Line{Record: ci.Record{Type: ci.LogLine, JobKey: "a", Step: 1, Text: fmt.Sprint(i, strings.Repeat("é", 1<<18))}})
	}
	for _, query := range []string{"", "?from=1"} {
		_, body := get(t, s.URL+"/runs/"+m.runs[0].ID+query)
		if len(body) > 2*maxText || !strings.Contains(body, "bytes more") ||
			!strings.Contains(body, map[string]string{"": `id="L100"`, "?from=1": `id="L1"`}[query]) {
			t.Errorf("%q: %d bytes", query, len(body))
		}
	}
}

// A run with very many records: each look at it read all of them again.
func TestAttackPageOfManyRecords(t *testing.T) {
	m, s := site(t)
	m.emit(ci.Record{Type: ci.JobStarted, JobKey: "a", Name: "a"})
	for i := range 5000 {
		m.emit(ci.Record{Type: ci.DiagnosticRec, JobKey: "a", Level: "warning", Message: fmt.Sprint("remark ", i)})
	}
	page := s.URL + "/runs/" + m.runs[0].ID
	_, body := get(t, page)
	if n := strings.Count(body, "remark "); n > maxNotes+1 || n < maxNotes || !strings.Contains(body, fmt.Sprintf("and %d more", 5000-maxNotes)) {
		t.Errorf("%d remarks on the page", n)
	}
	before := m.handed
	get(t, page)
	if n := m.handed - before; n > 0 {
		t.Errorf("a second look read %d records again", n)
	}
	m.emit(ci.Record{Type: ci.JobFinished, JobKey: "a", Name: "a", Conclusion: ci.Success})
	if _, body := get(t, page); m.handed != before+1 || !strings.Contains(body, "success") {
		t.Errorf("%d records for one that was new", m.handed-before)
	}
}

// One client held all the streams there are, and nobody else could follow anything.
func TestAttackStreamsOfOneClient(t *testing.T) {
	m, s := site(t)
	page := s.URL + "/runs/" + m.runs[0].ID + "/events"
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i := range clientStreams + 1 {
		req, _ := http.NewRequestWithContext(ctx, "GET", page, nil)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		want := http.StatusOK
		if i == clientStreams {
			want = http.StatusTooManyRequests
		}
		if resp.StatusCode != want {
			t.Fatalf("stream %d: %s", i, resp.Status)
		}
	}
	if resp, _ := get(t, s.URL+"/"); resp.StatusCode != 200 {
		t.Error("its pages are refused too:", resp.Status)
	}
}

// club is a site that asks who somebody is.
func club(t *testing.T) (*memory, *httptest.Server, *door.Passes) {
	t.Helper()
	m := &memory{changed: make(chan struct{}, 1)}
	m.runs = []ci.Run{{ID: ci.NewID(), Number: 7, Workflow: "CI", Name: "members only", Event: "push", Repository: "o/r", Ref: "refs/heads/main",
		SHA: strings.Repeat("a", 40), Status: ci.InProgress, Created: time.Now()}}
	m.emit(ci.Record{Type: ci.JobStarted, JobKey: "a", Name: "a"})
	m.emit(ci.Record{Type: ci.LogLine, JobKey: "a", Text: "members only"})
	passes := door.OpenPasses(filepath.Join(t.TempDir(), "passes.json"))
	mux := http.NewServeMux()
	New(Config{Source: m, Version: "test", Log: slog.New(slog.DiscardHandler), Login: &door.Login{Passes: passes}, Insight: &told{},
		Replay: func(context.Context, string) error { t.Error("somebody replays"); return nil }}).Register(mux)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return m, s, passes
}

func link(t *testing.T, p *door.Passes) string {
	t.Helper()
	secret, _, err := p.Issue(door.Link, "ada", door.LinkTime)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// Pages, streams and logs of a server that others reach could be read by anybody.
func TestAttackPagesWithoutLogin(t *testing.T) {
	m, s, passes := club(t)
	id := m.runs[0].ID
	paths := []string{"/", "/events", "/runs/" + id, "/runs/" + id + "?job=a", "/runs/" + id + "/log?job=a", "/runs/" + id + "/events?job=a&line=0", "/runs/" +
		id + "/artifacts/1", "/runs/events", "/repositories", "/repository?name=o/r", "POST /events/" + id + "/replay"}
	forged := []string{"", "hearth=", "hearth=x", "hearth=" + link(t, passes), "hearth=" + strings.Repeat("x", 5000), "session=1"}
	for _, path := range paths {
		for _, cookie := range forged {
			method, at, posted := strings.Cut(path, " ")
			if !posted {
				method, at = "GET", path
			}
			req, _ := http.NewRequest(method, s.URL+at, nil)
			req.Header.Set("Cookie", cookie)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusUnauthorized || strings.Contains(string(b), "members only") || !strings.Contains(string(b), "hearth token --login") {
				t.Errorf("%s with %.20q: %s\n%s", path, cookie, resp.Status, b)
			}
		}
	}
	if resp, _ := get(t, s.URL+"/static/hearth.css"); resp.StatusCode != 200 {
		t.Error("the login has no style:", resp.Status)
	}
}

// person is a browser without scripts.
func person(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func TestLogin(t *testing.T) {
	m, s, passes := club(t)
	page := "/runs/" + m.runs[0].ID + "?job=a"
	p := person(t)
	do := func(resp *http.Response, err error) (*http.Response, string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp, string(b)
	}
	if _, body := do(p.Get(s.URL + page)); !strings.Contains(body, `name="next" value="`+page+`"`) {
		t.Errorf("the login does not know where to go on:\n%s", body)
	}
	secret := link(t, passes)
	resp, _ := do(p.PostForm(s.URL+"/login", url.Values{"link": {"https://hearth.example.org/login#" + secret + "\n"}, "next": {page}}))
	if resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != page {
		t.Fatalf("%s %v", resp.Status, resp.Header)
	}
	c := resp.Cookies()[0]
	if !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.MaxAge <= 0 || c.Secure {
		t.Errorf("%+v", c)
	}
	if _, body := do(p.Get(s.URL + page)); !strings.Contains(body, "members only") || !strings.Contains(body, "Log out") {
		t.Error(body)
	}
	if resp, _ := do(person(t).PostForm(s.URL+"/login", url.Values{"link": {secret}})); resp.StatusCode != http.StatusForbidden {
		t.Error("a link works twice:", resp.Status)
	}
	// A stream that is open ends with the login.
	stream, err := p.Get(s.URL + "/runs/" + m.runs[0].ID + "/events?job=a&line=0")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	if line, err := bufio.NewReader(stream.Body).ReadString('\n'); err != nil || line != "event: board\n" {
		t.Error(line, err)
	}
	if resp, _ := do(p.Post(s.URL+"/logout", "", nil)); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
	m.emit(ci.Record{Type: ci.LogLine, JobKey: "a", Text: "after the logout"})
	if rest, _ := io.ReadAll(stream.Body); strings.Contains(string(rest), "after the logout") {
		t.Error("the stream goes on after the logout")
	}
	req, _ := http.NewRequest("GET", s.URL+page, nil)
	req.AddCookie(c) // somebody kept it
	if resp, _ := do(http.DefaultClient.Do(req)); resp.StatusCode != http.StatusUnauthorized {
		t.Error("logged out and in:", resp.Status)
	}
	// By https the cookie is for https alone.
	w := httptest.NewRecorder()
	if err := (&door.Login{Passes: passes, Secure: true}).In(w, link(t, passes)); err != nil {
		t.Fatal(err)
	}
	if c := w.Result().Cookies()[0]; !c.Secure || !strings.HasPrefix(c.Name, "__Host-") {
		t.Errorf("%+v", c)
	}
}

// A login that leads on to somebody else's page.
func TestAttackLoginLeadsElsewhere(t *testing.T) {
	_, s, passes := club(t)
	for _, next := range []string{"//attacker.example/", "https://attacker.example/", `/\attacker.example`, "/%09/attacker.example\n"} {
		resp, err := person(t).PostForm(s.URL+"/login", url.Values{"link": {link(t, passes)}, "next": {next}})
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if at := resp.Header.Get("Location"); resp.StatusCode != http.StatusSeeOther || at != "/" {
			t.Errorf("%q: %s %q", next, resp.Status, at)
		}
		if _, body := get(t, s.URL+"/login?next="+url.QueryEscape(next)); !strings.Contains(body, `name="next" value="/"`) {
			t.Errorf("%q is on the page:\n%s", next, body)
		}
	}
}

// A step's summary is looked at in a browser, by whoever has logged in: nothing in it
// is run, loaded or sent, and none of it stands outside its frame.
func TestAttackSummaryInBrowser(t *testing.T) {
	m, s := site(t)
	hits := make(chan string, 100)
	evil := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { hits <- r.URL.Path }))
	defer evil.Close()
	m.emit(ci.Record{Type: ci.JobQueued, JobKey: "a", Name: "a"})
	m.emit(ci.Record{Type: ci.JobStarted, JobKey: "a", Name: "a"})
	m.emit(ci.Record{Type: ci.StepStarted, JobKey: "a", Step: 1, Name: "Report"})
	m.emit(ci.Record{Type: ci.SummaryRec, JobKey: "a", Step: 1, Text: strings.ReplaceAll(`## Coverage

| file | lines |
|------|------:|
| `+"`main.go`"+` | **80 %** |

- [x] built
- [ ] released

<details><summary>More</summary>

![chart](EVIL/chart.png) and [the report](https://example.org/report)

</details>

<script>window.owned = 1; fetch("EVIL/script")</script>
<img src="EVIL/img" onerror="window.owned = 1"><img src=x onerror="window.owned = 1">
<svg onload="window.owned = 1"><style>body { background: url(EVIL/css) }</style></svg>
<style>#board { display: none }</style>
<form action="EVIL/form"><input name=password></form><iframe src="EVIL/frame"></iframe>
<a href="javascript:window.owned = 1" id=js>click</a>
</div></details></li></ol></section><h1 id=fake>All green</h1>
`, "EVIL", evil.URL)})
	b := webtest.Open(t, 1100, 900)
	b.Visit(s.URL + "/runs/" + m.runs[0].ID)
	b.Until("document.querySelector('.markdown table td strong')")
	b.Eval("document.querySelectorAll('.markdown details').forEach(d => d.open = true)", nil)
	b.Eval("document.querySelectorAll('.markdown a').forEach(a => { if (!a.href) a.click() })", nil)
	for script, want := range map[string]string{
		"String(window.owned)": "undefined",
		"String(document.querySelectorAll('.markdown :is(script, img, svg, style, form, input, iframe, [id], [style], [onerror])').length)": "0",
		"document.querySelector('#board .markdown h1').innerText":                                                                           "All green", // in its frame
		"document.querySelector('.markdown td[align=right]').innerText":                                                                     "80 %",
		"document.querySelector('.markdown details a').getAttribute('href')":                                                                evil.URL + "/chart.png",
		"getComputedStyle(document.querySelector('#board')).display":                                                                        "block",
	} {
		var got string
		if b.Eval(script, &got); got != want {
			t.Errorf("%s: %q", script, got)
		}
	}
	if dir := os.Getenv("HEARTH_SCREENSHOTS"); dir != "" {
		b.Screenshot(filepath.Join(dir, "summary.png"))
	}
	if errs := b.Errors(); len(errs) > 0 {
		t.Errorf("the browser complains: %v", errs)
	}
	select {
	case path := <-hits:
		t.Errorf("%s was asked for", path)
	default:
	}
}

// In a browser: a check's link asks for a login, and the link of the terminal is
// one, whose secret no request's address has.
func TestLoginInBrowser(t *testing.T) {
	m, s, passes := club(t)
	b := webtest.Open(t, 1100, 640)
	b.Visit(s.URL + "/runs/" + m.runs[0].ID)
	if text := b.Text(); !strings.Contains(text, "hearth token --login") || strings.Contains(text, "members only") {
		t.Error(text)
	}
	if dir := t.ArtifactDir(); dir != "" {
		b.Screenshot(filepath.Join(dir, "login.png"))
	}
	b.Visit("about:blank")
	b.Visit(s.URL + "/login#" + link(t, passes))
	b.Until("document.body.innerText.includes('members only')")
	var at string
	if b.Eval("location.href", &at); at != s.URL+"/" {
		t.Error(at)
	}
	b.Visit(s.URL + "/runs/" + m.runs[0].ID)
	b.Until("document.querySelector('#L1')")
	m.emit(ci.Record{Type: ci.LogLine, JobKey: "a", Text: "and live"})
	b.Until("document.body.innerText.includes('and live')")
	if dir := t.ArtifactDir(); dir != "" {
		b.Screenshot(filepath.Join(dir, "run.png"))
	}
	b.Eval("document.querySelector('header button').click()", nil)
	b.Until("document.body.innerText.includes('hearth token --login')")
	for _, e := range b.Errors() {
		if !strings.Contains(e, "401") { // the page that asks for the login
			t.Error(e)
		}
	}
}
