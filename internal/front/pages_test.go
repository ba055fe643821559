package front

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/front/fronttest"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/web"
	"github.com/hearth-ci/hearth/internal/web/webtest"
)

// past is the pages of a server with a long past.
func past(t testing.TB) (*store.Store, string) {
	t.Helper()
	s, _ := fronttest.Open(t, fronttest.Runs)
	mux := http.NewServeMux()
	web.New(web.Config{Source: Pages{Store: s}, Version: "test", Log: slog.New(slog.DiscardHandler)}).Register(mux)
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
