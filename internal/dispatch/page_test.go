package dispatch

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/forge/github/githubtest"
	"github.com/hearth-ci/hearth/internal/web/webtest"
)

const shown = `name: Shown
on: push
jobs:
  build:
    runs-on: ubuntu-latest
    steps:
      - name: Compile
        run: |
          echo "fir""st line <b>bold</b>"
          while [ ! -e %[1]s/go ]; do sleep 0.02; done
          echo "sec""ond line"
      - name: Test
        run: |
          for i in 1 2 3; do echo "ok $i"; done
          echo "main_test.go:7: want 3, got 4"
          exit 1
  lint:
    runs-on: ubuntu-latest
    steps:
      - run: echo "::notice file=main.go,line=3::tidy"
  deploy:
    needs: build
    runs-on: ubuntu-latest
    steps:
      - run: echo never
`

// A run is looked at in a browser, while it goes on and after.
func TestPageInBrowser(t *testing.T) {
	s := newSite(t, nil)
	b := webtest.Open(t, 1280, 860)
	marks := t.TempDir()
	shot := func(name string) { screenshot(b, name) }
	// A little of a past, so that there is something to expect.
	for i := range 4 {
		sha := githubtest.SHA(fmt.Sprint("past", i))
		s.gh.Commit(hello, sha, map[string]string{".github/workflows/ci.yml": strings.ReplaceAll(fmt.Sprintf(shown, marks), "while [ ! -e "+marks+
			"/go ]; do sleep 0.02; done", "sleep 0.1")})
		s.deliver("push", s.push(map[string]any{"after": sha}))
		s.until("a run of the past is over", func() bool { r := s.runs(); return len(r) == i+1 && r[0].Status == ci.Completed })
	}
	s.gh.Commit(hello, pushed1, map[string]string{".github/workflows/ci.yml": fmt.Sprintf(shown, marks)})
	s.deliver("push", s.push(nil))
	s.until("the job runs", func() bool { return strings.Contains(s.log(s.runs()[0], "build"), "first line") })
	b.Visit(s.http.URL + "/runs/" + s.runs()[0].ID + "?job=build")
	b.Until(`document.querySelector("#log").innerText.includes("first line <b>bold</b>")`)
	b.Until(`document.querySelector(".jobs .running") && document.querySelector("#board").innerText.includes("running")`)
	if text := b.Text(); strings.Contains(text, "second line") || !strings.Contains(text, "to fail") {
		t.Errorf("while it runs:\n%s", text)
	}
	b.Eval("window.untouched = true", nil)
	shot("running")

	// What comes now comes by itself: the page is not loaded again.
	if err := os.WriteFile(filepath.Join(marks, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.Until(`document.querySelector("#log").innerText.includes("second line")`)
	b.Until(`document.body.dataset.ended === "true"`)
	var same bool
	b.Eval("window.untouched === true", &same)
	text := b.Text()
	for _, want := range []string{"want 3, got 4", "skipped", "failure", "This failure: seen before", "main.go:3", "2 Test"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q on the page after the end:\n%s", want, text)
		}
	}
	if !same {
		t.Error("the page was loaded again")
	}
	var live []string
	b.Eval(`[...document.querySelectorAll("#log .line")].map(l => l.textContent)`, &live)
	shot("live")

	// And a page loaded now shows the very same lines.
	b.Visit(s.http.URL + "/runs/" + s.runs()[0].ID + "?job=build")
	var loaded []string
	b.Eval(`[...document.querySelectorAll("#log .line")].map(l => l.textContent)`, &loaded)
	if strings.Join(live, "\n") != strings.Join(loaded, "\n") || len(live) < 6 {
		t.Errorf("live:\n%s\nloaded:\n%s", strings.Join(live, "\n"), strings.Join(loaded, "\n"))
	}
	shot("after")
	b.Dark(true)
	shot("dark")
	b.Dark(false)
	b.Visit(s.http.URL)
	if text := b.Text(); !strings.Contains(text, "Shown #5") || !strings.Contains(text, hello) {
		t.Error(text)
	}
	shot("runs")
	b.Visit(s.http.URL + "/events")
	if text := b.Text(); !strings.Contains(text, "push: 1 run") {
		t.Error(text)
	}
	shot("events")
	if errs := b.Errors(); len(errs) > 0 {
		t.Errorf("the browser complains: %v", errs)
	}
}

// screenshot keeps a picture for people, where the environment says so.
func screenshot(b *webtest.Browser, name string) {
	if dir := os.Getenv("HEARTH_SCREENSHOTS"); dir != "" {
		b.Screenshot(filepath.Join(dir, name+".png"))
	}
}
