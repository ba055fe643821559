// Package webtest looks at pages as people do: in a browser. It drives a
// headless Chromium over its debugging pipe (a JSON message, a zero byte), which
// needs no port and no library, and ends with the test.
package webtest

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every exchange with the browser.
const patience = 30 * time.Second

// Browser is one Chromium with one page.
type Browser struct {
	t       testing.TB
	in      io.Writer
	session string

	mu      sync.Mutex
	next    int
	waiting map[int]chan message
	errs    []string // what the page complained of
	gone    chan struct{}
}

type message struct {
	ID      int             `json:"id,omitempty"`
	Method  string          `json:"method,omitempty"`
	Session string          `json:"sessionId,omitempty"`
	Params  json.RawMessage `json:"params,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *struct {
		Message string `json:"message"`
	} `json:"error,omitempty"`
}

// Open starts a browser with a window of the given size. Where there is no
// Chromium the test is skipped, and says so.
func Open(t testing.TB, width, height int) *Browser {
	t.Helper()
	name := ""
	for _, n := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(n); err == nil {
			name = p
			break
		}
	}
	if name == "" {
		t.Skip("SKIPPED, NOT TESTED: no Chromium to look at the pages with: apt-get install chromium")
	}
	theirs, ours, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, back, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe", "--user-data-dir="+t.TempDir(),
		fmt.Sprintf("--window-size=%d,%d", width, height), "about:blank")
	cmd.ExtraFiles = []*os.File{theirs, back}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	back.Close()
	b := &Browser{t: t, in: ours, waiting: map[int]chan message{}, gone: make(chan struct{})}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its helpers too
		cmd.Wait()
		ours.Close()
		<-b.gone
		out.Close()
	})
	go b.read(out)
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}, nil)
	b.call("Page.enable", nil, nil)
	b.call("Runtime.enable", nil, nil)
	b.call("Log.enable", nil, nil)
	return b
}

func (b *Browser) read(out io.Reader) {
	defer close(b.gone)
	r := bufio.NewReader(out)
	for {
		raw, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var m message
		if json.Unmarshal(bytes.TrimSuffix(raw, []byte{0}), &m) != nil {
			continue
		}
		b.mu.Lock()
		switch {
		case m.ID != 0:
			if ch := b.waiting[m.ID]; ch != nil {
				delete(b.waiting, m.ID)
				ch <- m
			}
		case m.Method == "Runtime.exceptionThrown", m.Method == "Log.entryAdded" && bytes.Contains(m.Params, []byte(`"level":"error"`)):
			b.errs = append(b.errs, string(m.Params))
		}
		b.mu.Unlock()
	}
}

func (b *Browser) call(method string, params, result any) {
	b.t.Helper()
	if err := b.try(method, params, result); err != nil {
		b.t.Fatalf("Chromium: %s: %v", method, err)
	}
}

func (b *Browser) try(method string, params, result any) error {
	ch := make(chan message, 1)
	b.mu.Lock()
	b.next++
	id := b.next
	b.waiting[id] = ch
	b.mu.Unlock()
	m := map[string]any{"id": id, "method": method}
	if params != nil {
		m["params"] = params
	}
	if b.session != "" {
		m["sessionId"] = b.session
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if _, err := b.in.Write(append(raw, 0)); err != nil {
		return err
	}
	select {
	case m := <-ch:
		if m.Error != nil {
			return errors.New(m.Error.Message)
		}
		if result == nil {
			return nil
		}
		return json.Unmarshal(m.Result, result)
	case <-b.gone:
		return errors.New("it has ended")
	case <-time.After(patience):
		return errors.New("no answer")
	}
}

// Visit opens a page.
func (b *Browser) Visit(url string) {
	b.t.Helper()
	var r struct{ ErrorText string }
	b.call("Page.navigate", map[string]any{"url": url}, &r)
	if r.ErrorText != "" {
		b.t.Fatalf("Chromium: %s: %s", url, r.ErrorText)
	}
	b.Until("document.readyState === 'complete'")
}

// Eval evaluates JavaScript in the page and stores its value in into.
func (b *Browser) Eval(js string, into any) {
	b.t.Helper()
	if err := b.eval(js, into); err != nil {
		b.t.Fatalf("in the page: %s: %v", js, err)
	}
}

func (b *Browser) eval(js string, into any) error {
	var r struct {
		Result struct {
			Value json.RawMessage `json:"value"`
		} `json:"result"`
		ExceptionDetails json.RawMessage `json:"exceptionDetails"`
	}
	if err := b.try("Runtime.evaluate", map[string]any{"expression": js, "returnByValue": true}, &r); err != nil {
		return err
	}
	if r.ExceptionDetails != nil {
		return errors.New(string(r.ExceptionDetails))
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(r.Result.Value, into)
}

// Until waits until JavaScript in the page is true.
func (b *Browser) Until(js string) {
	b.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		var ok bool
		// A page that is being left has nothing to evaluate in.
		if err := b.eval("!!("+js+")", &ok); err == nil && ok {
			return
		}
		if time.Now().After(deadline) {
			var text string
			b.eval("document.body.innerText", &text)
			b.t.Fatalf("waited %v in vain for %s in the page:\n%s\n%v", patience, js, text, b.Errors())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Text is what can be read on the page.
func (b *Browser) Text() string {
	b.t.Helper()
	var s string
	b.Eval("document.body.innerText", &s)
	return s
}

// Dark says whether the page is asked for its dark colours.
func (b *Browser) Dark(on bool) {
	b.t.Helper()
	value := "light"
	if on {
		value = "dark"
	}
	b.call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": value}}}, nil)
}

// Screenshot writes what the window shows to a PNG file.
func (b *Browser) Screenshot(file string) {
	b.t.Helper()
	var r struct{ Data string }
	b.call("Page.captureScreenshot", map[string]any{"format": "png"}, &r)
	png, err := base64.StdEncoding.DecodeString(r.Data)
	if err == nil {
		err = os.WriteFile(file, png, 0o600)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// Errors is what scripts threw, and what the browser refused to load.
func (b *Browser) Errors() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.errs...)
}
