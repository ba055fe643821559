package front

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/front/fronttest"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/web"
	"github.com/hearth-ci/hearth/internal/web/webtest"
)

// past is the pages of a server with a long past.
func past(t testing.TB) (*store.Store, string) {
	t.Helper()
	s, l := fronttest.Open(t, fronttest.Runs)
	mux := http.NewServeMux()
	web.New(web.Config{Source: Pages{Store: s}, Insight: NewInsight(s, l), Replay: func(ctx context.Context, event string) error {
		return Replay(ctx, s, event)
	}, Version: "test", Log: slog.New(slog.DiscardHandler)}).Register(mux)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return s, server.URL
}

// failed is the newest run of the past that failed, of a workflow with several jobs.
func failed(t testing.TB, s *store.Store) ci.Run {
	t.Helper()
	runs, err := s.Runs(context.Background(), store.RunFilter{Workflow: "CI", Conclusion: ci.Failure, Limit: 1})
	if err != nil || len(runs) == 0 {
		t.Fatal(runs, err)
	}
	return runs[0]
}

// shots keeps pictures of a page for people, where the environment says so.
func shots(b *webtest.Browser, name string) {
	if dir := os.Getenv("HEARTH_SCREENSHOTS"); dir != "" {
		b.Screenshot(filepath.Join(dir, name+".png"))
		b.Dark(true)
		b.Screenshot(filepath.Join(dir, name+"-dark.png"))
		b.Dark(false)
	}
}

func TestRunPageInBrowser(t *testing.T) {
	s, url := past(t)
	run := failed(t, s)
	b := webtest.Open(t, 1360, 1000)
	b.Visit(url + "/runs/" + run.ID)
	shots(b, "run")
	is := func(js, want string) {
		t.Helper()
		var got string
		if b.Eval("String("+js+")", &got); got != want {
			t.Errorf("%s: %q, wanted %q", js, got, want)
		}
	}
	is(`document.querySelectorAll(".graph .node").length`, "5")
	is(`document.querySelector(".graph .node.bad.open") !== null && document.querySelector(".failure") !== null`, "true")
	is(`document.querySelectorAll(".timeline .lane.step").length > 1`, "true")
	is(`document.querySelector(".culprit").previousElementSibling.id`, "failure")

	// A link to a line, and to a range of them.
	b.Eval(`document.querySelectorAll(".part[open] > .line > a")[0].click()`, nil)
	b.Eval(`document.querySelectorAll(".part[open] > .line > a")[2].dispatchEvent(new MouseEvent("click", {bubbles: true, cancelable: true, shiftKey: true}))`, nil)
	var link string
	b.Eval("location.href", &link)
	b.Visit("about:blank")
	b.Visit(link)
	is(`document.querySelectorAll(".line.marked").length`, "3")
	is(`document.querySelector(".line:target").getBoundingClientRect().top < innerHeight`, "true")

	// A search, and the keys that go through what it found.
	b.Visit(url + "/runs/" + run.ID + "?q=module")
	shots(b, "search")
	is(`document.querySelectorAll("#log mark").length > 10 && Number(document.querySelector("#found").innerText) > 10`, "true")
	for range 2 {
		b.Eval(`document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "n", bubbles: true}))`, nil)
	}
	is(`document.querySelectorAll("mark.now").length === 1 && document.querySelectorAll("#log mark")[1].matches(".now")`, "true")
	b.Eval(`document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "?", bubbles: true}))`, nil)
	is(`document.querySelector("dialog").open`, "true")
	shots(b, "keys")
	if errs := b.Errors(); len(errs) > 0 {
		t.Errorf("the browser complains: %v", errs)
	}
	phone := webtest.Open(t, 400, 860)
	phone.Visit(url + "/runs/" + run.ID)
	shots(phone, "run-phone")
	var wide bool
	if phone.Eval("document.documentElement.scrollWidth > innerWidth", &wide); wide {
		t.Error("on a phone the page is wider than the window")
	}
}

func TestRunsInBrowser(t *testing.T) {
	s, url := past(t)
	b := webtest.Open(t, 1360, 1000)
	b.Visit(url)
	shots(b, "runs")
	// From page to page, each run once.
	seen := map[string]bool{}
	for range 3 {
		var links []string
		b.Eval(`[...document.querySelectorAll("a.run-link")].map(a => a.href)`, &links)
		if len(links) != 50 {
			t.Fatalf("%d runs", len(links))
		}
		for _, l := range links {
			if seen[l] {
				t.Error("twice:", l)
			}
			seen[l] = true
		}
		b.Eval(`document.querySelector("a[rel=next]").click()`, nil)
		b.Until(`document.readyState === "complete" && document.querySelector("a.run-link").href !== "` + links[0] + `"`)
	}
	b.Visit(url + "/?result=failure&repository=acme%2Fpayments")
	var other int
	b.Eval(`[...document.querySelectorAll("#runs tr")].filter(r => !r.innerText.includes("failure") || !r.innerText.includes("acme/payments")).length`,
		&other)
	if other != 0 {
		t.Errorf("%d others", other)
	}
	shots(b, "runs-failed")
	// What is new comes by itself, and the keys go through the runs.
	b.Visit(url + "/?actor=somebody")
	b.Until(`document.body.innerText.includes("No run is like this")`)
	b.Visit(url)
	b.Eval("window.untouched = true", nil)
	for range 2 {
		b.Eval(`document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "j", bubbles: true}))`, nil)
	}
	var second bool
	b.Eval(`document.activeElement === document.querySelectorAll("a.run-link")[1]`, &second)
	if !second {
		t.Error("j j is not at the second run")
	}
	run, _, err := s.CreateRun(context.Background(), ci.Run{Repository: "acme/storefront", Workflow: "CI", File: "ci.yml", Name: "<b>Live</b>",
		Ref: "refs/heads/main"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := s.Recorder(context.Background(), run.ID)
	if err != nil {
		t.Fatal(err)
	}
	rec.Emit(ci.Record{Type: ci.RunStarted})
	b.Until(`document.querySelector("#runs tr").innerText.includes("<b>Live</b>") && window.untouched && document.querySelector("#icon").href.endsWith("hearth-running.svg")`)
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
	if errs := b.Errors(); len(errs) > 0 {
		t.Errorf("the browser complains: %v", errs)
	}
	phone := webtest.Open(t, 400, 860)
	phone.Visit(url)
	shots(phone, "runs-phone")
}

// BenchmarkPages is how long pages take over a past of five thousand runs.
func BenchmarkPages(b *testing.B) {
	s, url := past(b)
	for name, path := range map[string]string{"runs": "/", "failed": "/?result=failure", "text": "/?q=zzz", "run": "/runs/" + failed(b, s).ID,
		"events":     "/events",
		"repository": "/repository?name=acme/storefront",
		"step":       "/repository?name=acme/storefront&workflow=.github/workflows/ci.yml&job=build&step=Build"} {
		b.Run(name, func(b *testing.B) {
			var first []time.Duration
			for b.Loop() {
				begin := time.Now()
				resp, err := http.Get(url + path)
				if err != nil {
					b.Fatal(err)
				}
				first = append(first, time.Since(begin))
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			slices.Sort(first)
			b.ReportMetric(float64(first[len(first)*99/100].Microseconds())/1000, "p99-first-ms")
		})
	}
}

func TestRepositoryInBrowser(t *testing.T) {
	_, url := past(t)
	b := webtest.Open(t, 1360, 1500)
	b.Visit(url + "/repositories")
	b.Eval(`[...document.querySelectorAll("main a")].find(a => a.innerText === "acme/storefront").click()`, nil)
	b.Until(`document.querySelector("h1").innerText === "acme/storefront"`)
	shots(b, "repository")
	var figures, rows, circles int
	b.Eval(`document.querySelectorAll("figure.trend svg").length`, &figures)
	b.Eval(`document.querySelectorAll(".parts tbody tr").length`, &rows)
	if figures != 4 || rows < 10 {
		t.Errorf("%d figures, %d steps", figures, rows)
	}
	if text := b.Text(); !strings.Contains(text, "adds the tax once") || !strings.Contains(text, "before since") {
		t.Error(text)
	}
	b.Eval(`[...document.querySelectorAll(".parts a")].find(a => a.innerText === "Build").click()`, nil)
	b.Until(`document.querySelector("h2").innerText.endsWith("build › Build")`)
	shots(b, "step")
	if b.Eval(`document.querySelectorAll("figure.trend circle.ok").length`, &circles); circles < 100 {
		t.Errorf("%d executions", circles)
	}
	if errs := b.Errors(); len(errs) > 0 {
		t.Errorf("the browser complains: %v", errs)
	}
}

// Nobody is kept out: axe-core finds nothing on any page, light, dark and on a phone,
// and the keys reach what can be opened.
func TestPagesAccessible(t *testing.T) {
	dir := os.Getenv("HEARTH_AXE")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(cache, "hearth", "axe")
	}
	axe, err := os.ReadFile(filepath.Join(dir, "node_modules", "axe-core", "axe.min.js"))
	if err != nil {
		t.Skip("SKIPPED, NOT TESTED: axe-core is not there: run scripts/axe")
	}
	s, url := past(t)
	run := failed(t, s).ID
	wide, phone := webtest.Open(t, 1360, 1000), webtest.Open(t, 400, 860)
	for _, page := range []string{"/", "/?result=failure&q=zzz", "/runs/" + run, "/runs/" + run + "?q=module&times=1", "/events", "/repositories",
		"/repository?name=acme/storefront", "/repository?name=acme/storefront&workflow=.github/workflows/ci.yml&job=build&step=Build", "/runs/none"} {
		for name, b := range map[string]*webtest.Browser{"wide": wide, "dark": wide, "phone": phone} {
			b.Dark(name == "dark")
			b.Visit(url + page)
			b.Eval(string(axe), nil)
			b.Eval(`axe.run(document).then(r => { window.found = r.violations.map(v => v.id + " (" + v.impact + "): " + v.help + "\n  " +
				v.nodes.slice(0, 3).map(n => n.html.slice(0, 200) + "\n    " + (n.any[0] ? n.any[0].message : "")).join("\n  ")) })`, nil)
			b.Until("window.found")
			var found []string
			if b.Eval("window.found", &found); len(found) > 0 {
				t.Errorf("%s, %s:\n%s", page, name, strings.Join(found, "\n"))
			}
		}
	}
	for _, e := range append(wide.Errors(), phone.Errors()...) {
		if !strings.Contains(e, "404") { // the page of what there is not
			t.Error(e)
		}
	}
}

func TestReplayInBrowser(t *testing.T) {
	s, url := past(t)
	b := webtest.Open(t, 1200, 900)
	b.Visit(url + "/events")
	shots(b, "events")
	var id string
	b.Eval(`[...document.querySelectorAll("tr")].find(r => r.innerText.includes("failed")).querySelector("form").action.split("/")[4]`, &id)
	b.Eval(`[...document.querySelectorAll("tr")].find(r => r.innerText.includes("failed")).querySelector("button").click()`, nil)
	b.Until(`document.querySelector(".events .state.waiting")`)
	if e, err := s.Event(context.Background(), id); err != nil || e.State != store.EventPending {
		t.Error(e, err)
	}
	for _, id := range []string{ci.NewID(), "x", "..%2f"} {
		resp, err := http.Post(url+"/events/"+id+"/replay", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusNotFound {
			t.Error(id, resp.Status)
		}
	}
	if errs := b.Errors(); len(errs) > 0 {
		t.Errorf("the browser complains: %v", errs)
	}
}

// TestPictures makes the pictures of the README and the docs where the environment says
// where they go, and else looks that each of those that are there is of a page that is.
func TestPictures(t *testing.T) {
	pictures := []string{"run", "run-dark", "repository"}
	dir := os.Getenv("HEARTH_PICTURES")
	if dir == "" {
		for _, name := range pictures {
			if _, err := os.Stat(filepath.Join("..", "..", "docs", "pictures", name+".png")); err != nil {
				t.Errorf("%v: make pictures", err)
			}
		}
		return
	}
	s, url := past(t)
	b := webtest.Open(t, 1240, 860)
	take := func(name, path string) {
		if !slices.Contains(pictures, name) {
			t.Fatal(name)
		}
		b.Visit(url + path)
		b.Screenshot(filepath.Join(dir, name+".png"))
	}
	run := "/runs/" + failed(t, s).ID
	take("run", run)
	take("repository", "/repository?name="+fronttest.Repositories[0])
	b.Dark(true)
	take("run-dark", run)
}

// BenchmarkLongLog is how long the page of a run takes whose log has a million lines:
// its end, its middle, and a search in all of it.
func BenchmarkLongLog(b *testing.B) {
	s, url := past(b)
	ctx := context.Background()
	run, _, err := s.CreateRun(ctx, ci.Run{Repository: "o/long", Workflow: "CI", File: "ci.yml"}, []ci.Job{{Key: "a", Job: "a", Name: "a"}}, nil)
	if err != nil {
		b.Fatal(err)
	}
	rec, err := s.Recorder(ctx, run.ID)
	if err != nil {
		b.Fatal(err)
	}
	rec.Emit(ci.Record{Type: ci.JobStarted, Job: "a", JobKey: "a", Name: "a"})
	for i := range 1_000_000 {
		text := "[ 42%] Building CXX object src/CMakeFiles/core.dir/parser/expression.cc.o"
		if i == 567_890 {
			text = "the needle"
		}
		rec.Emit(ci.Record{Type: ci.LogLine, Job: "a", JobKey: "a", Step: 1, Stream: "stdout", Text: text})
	}
	if err := rec.Close(); err != nil {
		b.Fatal(err)
	}
	for name, query := range map[string]string{"end": "", "middle": "?job=a&lines=500000", "search": "?job=a&q=needle"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				resp, err := http.Get(url + "/runs/" + run.ID + query)
				if err != nil {
					b.Fatal(err)
				}
				page, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK || name == "search" && !strings.Contains(string(page), "lines=567891#") {
					b.Fatal(resp.Status)
				}
			}
		})
	}
}
