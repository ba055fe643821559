package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/image/pin"
)

// world is a registry, an upstream and a key server in one, with a key that may
// sign and one that may not.
type world struct {
	*httptest.Server
	dir      string
	files    map[string][]byte // by path; what is missing is not found
	versions string
	sign     func(t *testing.T, key string, text []byte) []byte
	good     string // fingerprint of the releaser's key
	evil     string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	for _, tool := range []string{"gpg", "tar", "xz"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED, NOT TESTED: no %s: run `apt-get install gnupg tar xz-utils`", tool)
		}
	}
	w := &world{dir: t.TempDir(), files: map[string][]byte{}, versions: `{"versions":{"20.1.0":{},"20.2.0":{},"20.3.0-rc1":{},"24.0.0":{},"200.0.0":{}}}`}
	home, err := os.MkdirTemp("", "gpg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	gpg := func(t *testing.T, stdin []byte, args ...string) []byte {
		t.Helper()
		cmd := exec.Command("gpg", append([]string{"--homedir", home, "--batch", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
		cmd.Stdin = bytes.NewReader(stdin)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("gpg %v: %v", args, err)
		}
		return out
	}
	for _, who := range []string{"good", "evil"} {
		gpg(t, nil, "--quick-generate-key", who+"@example.org", "ed25519", "sign", "never")
	}
	fingerprint := func(who string) string {
		for line := range strings.Lines(string(gpg(t, nil, "--with-colons", "--list-keys", who+"@example.org"))) {
			if f := strings.Split(line, ":"); f[0] == "fpr" {
				return f[9]
			}
		}
		t.Fatal("no fingerprint")
		return ""
	}
	w.good, w.evil = fingerprint("good"), fingerprint("evil")
	w.files["/keys/"+w.good] = gpg(t, nil, "--armor", "--export", w.good)
	w.files["/evil"] = gpg(t, nil, "--armor", "--export", w.evil)
	w.sign = func(t *testing.T, key string, text []byte) []byte {
		return gpg(t, text, "--local-user", key, "--clearsign")
	}
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch data, ok := w.files[r.URL.Path]; {
		case ok:
			_, _ = rw.Write(data)
		case r.URL.Path == "/npm/node":
			fmt.Fprint(rw, w.versions)
		case strings.HasPrefix(r.URL.Path, "/npm/node/"):
			fmt.Fprintf(rw, `{"dist":{"tarball":%q}}`, w.URL+"/"+strings.TrimPrefix(r.URL.Path, "/npm/node/")+".tgz")
		default:
			http.NotFound(rw, r)
		}
	}))
	t.Cleanup(w.Close)
	for _, v := range []string{"20.1.0", "20.2.0"} {
		w.files["/"+v+".tgz"] = npmPackage(t, "node "+v)
		w.publish(t, v, "node "+v, w.good)
	}
	return w
}

func npmPackage(t *testing.T, program string) []byte {
	t.Helper()
	var b bytes.Buffer
	gz := gzip.NewWriter(&b)
	writeTar(t, gz, "package/bin/node", program)
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func writeTar(t *testing.T, w io.Writer, name, contents string) {
	t.Helper()
	tw := tar.NewWriter(w)
	_ = tw.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(contents)), Typeflag: tar.TypeReg})
	_, _ = tw.Write([]byte(contents))
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
}

// publish puts a release at upstream, its sums signed by key.
func (w *world) publish(t *testing.T, version, program, key string) {
	t.Helper()
	name := "node-v" + version + "-linux-x64"
	var b bytes.Buffer
	writeTar(t, &b, name+"/bin/node", program)
	cmd := exec.Command("xz", "-c")
	cmd.Stdin = &b
	archive, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	w.files["/dist/v"+version+"/"+name+".tar.xz"] = archive
	w.files["/dist/v"+version+"/SHASUMS256.txt.asc"] = w.sign(t, key,
		fmt.Appendf(nil, "%x  other.tar.gz\n%x  %s.tar.xz\n", sha256.Sum256(nil), sha256.Sum256(archive), name))
}

// table writes a table with one pin, of version 20.1.0, and returns its path.
func (w *world) table(t *testing.T, base string) string {
	t.Helper()
	tarball := filepath.Join(t.TempDir(), "t")
	if err := os.WriteFile(tarball, w.files["/20.1.0.tgz"], 0o600); err != nil {
		t.Fatal(err)
	}
	p := pin.Pin{Name: "node20", Package: "node", Version: "20.1.0", Source: base + "/dist/v20.1.0/node-v20.1.0-linux-x64.tar.xz",
		Files:    map[string]string{"bin/node": fmt.Sprintf("%x", sha256.Sum256([]byte("node 20.1.0")))},
		Upstream: pin.Upstream{Result: pin.NotChecked, Why: "new"}}
	var err error
	if p.Size, p.SHA256, p.Integrity, err = pin.Sums(tarball); err != nil {
		t.Fatal(err)
	}
	data, err := pin.Format([]pin.Pin{p})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "pins.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (w *world) run(ctx context.Context, table string, check bool) (string, error) {
	var out bytes.Buffer
	u := &updater{registry: pin.Registry{URL: w.URL + "/npm"}, keys: []string{w.good}, keyServers: []string{w.URL + "/nokeys/%s", w.URL + "/keys/%s"},
		check: check, out: &out, today: "2026-01-02"}
	err := u.run(ctx, table)
	return out.String(), err
}

func read(t *testing.T, path string) pin.Pin {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pins, err := pin.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	return pins[0]
}

func TestUpdate(t *testing.T) {
	w := newWorld(t)
	table := w.table(t, w.URL)
	before := read(t, table)
	out, err := w.run(t.Context(), table, true)
	if err != nil || !strings.Contains(out, "20.2.0 is out") || !strings.Contains(out, "identical (signed by "+w.good) {
		t.Fatalf("%v\n%s", err, out)
	}
	if after := read(t, table); after.Version != before.Version || after.Upstream != before.Upstream {
		t.Errorf("--check wrote %+v", after)
	}
	if out, err = w.run(t.Context(), table, false); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got := read(t, table)
	if got.Version != "20.2.0" || got.Upstream.Result != pin.Identical || got.Upstream.Key != w.good || got.Upstream.Date != "2026-01-02" ||
		got.Upstream.SHA256 != fmt.Sprintf("%x", sha256.Sum256(w.files["/dist/v20.2.0/node-v20.2.0-linux-x64.tar.xz"])) ||
		got.Files["bin/node"] != fmt.Sprintf("%x", sha256.Sum256([]byte("node 20.2.0"))) || got.Source != w.URL+"/dist/v20.2.0/node-v20.2.0-linux-x64.tar.xz" {
		t.Errorf("%+v", got)
	}
}

// TestUpdateWithoutUpstream: where upstream does not answer, nothing is claimed;
// what was compared before stays so only for the same version.
func TestUpdateWithoutUpstream(t *testing.T) {
	w := newWorld(t)
	nobody := httptest.NewServer(nil)
	nobody.Close()
	table := w.table(t, nobody.URL)
	out, err := w.run(t.Context(), table, false)
	if err != nil || !strings.Contains(out, "could not be reached") || !strings.Contains(out, "NOT CHECKED") {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := read(t, table); got.Version != "20.2.0" || got.Upstream.Result != pin.NotChecked ||
		got.Upstream.Why != "127.0.0.1 could not be reached on 2026-01-02" {
		t.Errorf("%+v", got)
	}
	compared := pin.Upstream{Result: pin.Identical, SHA256: strings.Repeat("a", 64), Key: w.good, Date: "2025-01-01"}
	p := read(t, table)
	p.Upstream = compared
	data, err := pin.Format([]pin.Pin{p})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(table, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := w.run(t.Context(), table, false); err != nil || read(t, table).Upstream != compared {
		t.Errorf("the same version: %v\n%s\n%+v", err, out, read(t, table))
	}
	w.versions = `{"versions":{"20.4.0":{}}}`
	w.files["/20.4.0.tgz"] = npmPackage(t, "node 20.4.0")
	if out, err := w.run(t.Context(), table, false); err != nil || read(t, table).Upstream.Result != pin.NotChecked {
		t.Errorf("another version: %v\n%s\n%+v", err, out, read(t, table))
	}
}

// TestAttackUpstreamDoesNotFit: a registry that has another program than the
// makers, sums that somebody else signed, that were changed after they were
// signed, or that stand outside of what was signed, a changed archive: each stops
// the update, and the table stays as it was.
func TestAttackUpstreamDoesNotFit(t *testing.T) {
	const asc = "/dist/v20.2.0/SHASUMS256.txt.asc"
	const archive = "/dist/v20.2.0/node-v20.2.0-linux-x64.tar.xz"
	for name, attack := range map[string]struct {
		want string
		do   func(w *world)
	}{
		"another program in the registry": {"not what its makers publish", func(w *world) { w.files["/20.2.0.tgz"] = npmPackage(t, "evil") }},
		"a changed archive": {"the signed sums say", func(w *world) {
			w.files[archive] = append(bytes.Clone(w.files[archive]), 0)
		}},
		"signed by somebody else": {"gpg says ERRSIG", func(w *world) { w.publish(t, "20.2.0", "node 20.2.0", w.evil) }},
		"signed by a key that the server slipped in": {"not signed by a release key", func(w *world) {
			w.publish(t, "20.2.0", "node 20.2.0", w.evil)
			w.files["/keys/"+w.good] = append(w.files["/keys/"+w.good], w.files["/evil"]...)
		}},
		"not signed":                  {"not signed by a release key", func(w *world) { w.files[asc] = []byte("0  x\n") }},
		"changed after it was signed": {"gpg says BADSIG", func(w *world) { w.files[asc] = bytes.Replace(w.files[asc], []byte("other"), []byte("wrong"), 1) }},
		"the sum outside of what was signed": {"names no", func(w *world) {
			line := fmt.Appendf(nil, "%x  node-v20.2.0-linux-x64.tar.xz\n", sha256.Sum256(w.files[archive]))
			w.files[asc] = append(line, w.sign(t, w.good, []byte("0  x\n"))...)
		}},
		"withdrawn": {"404", func(w *world) { delete(w.files, asc) }},
		"no keys":   {"no release key", func(w *world) { delete(w.files, "/keys/"+w.good) }},
		"the pinned version has other bytes in the registry": {pin.ErrMismatch.Error(), func(w *world) {
			w.versions = `{"versions":{"20.1.0":{}}}`
			w.files["/20.1.0.tgz"] = npmPackage(t, "evil")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			table := w.table(t, w.URL)
			before, err := os.ReadFile(table)
			if err != nil {
				t.Fatal(err)
			}
			attack.do(w)
			out, err := w.run(t.Context(), table, false)
			if err == nil || !strings.Contains(err.Error(), attack.want) {
				t.Errorf("%v; want %q\n%s", err, attack.want, out)
			}
			if after, err := os.ReadFile(table); err != nil || !bytes.Equal(after, before) {
				t.Errorf("the table changed: %s %v", after, err)
			}
		})
	}
}
