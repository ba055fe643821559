// Update keeps pins.json: `scripts/pins` takes the newest version of each major
// number that the table has, `scripts/pins --check` compares the table with the
// registry and with upstream and writes nothing.
//
// For each download it notes size and sums; for Node it goes on to the makers'
// own archive: SHASUMS256.txt.asc must be signed by one of the release keys
// named here, the archive must have the sum in it, and the programs in it must
// be the npm package's, byte by byte. Only then does the table say "identical".
// Where nodejs.org cannot be reached it says "not checked" and why; an upstream
// that answers with something that does not fit is an error, and nothing is
// written.
//
// A further major number starts as a copy of another's entry with another name
// and `"version": "26.0.0"`; the next run fills in the rest.
package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/archive"
	"github.com/hearth-ci/hearth/internal/image/pin"
)

// releaseKeys are the primary keys of those who release Node, as
// github.com/nodejs/node's README and the official container image name them
// (September 2026). Whatever a key server returns, only these count.
var releaseKeys = []string{
	"5BE8A3F6C8A5C01D106C0AD820B1A390B168D356", // Antoine du Hamel
	"C0D6248439F1D5604AAFFB4021D900FFDB233756", // Antoine du Hamel, before
	"DD792F5973C6DE52C432CBDAC77ABFA00DDBF2B7",
	"CC68F5A3106FF448322E48ED27F5E38D5B0A215F", // Marco Ippolito
	"8FCCA13FEF1D0C2E91008E09770F7A9A5AE15600", // Michaël Zasso
	"890C08DB8579162FEE0DF9DB8BEAB4DFCF555EF4", // Rafael Gonzaga
	"C82FA3AE1CBEDC6BE46B9360C43CEC45C17AB93C", // Richard Lau
	"108F52B48DB57BB0CC439B2997B01419BD92F80A", // Ruy Adorno
	"655F3B5C1FB3FA8D1A0CA6BDE4A7D232B936D2FD",
	"A363A499291CBBC940DD62E41F10027AF002F8B0", // Ulises Gascón
}

// keyServers hand out keys by fingerprint.
var keyServers = []string{
	"https://keys.openpgp.org/vks/v1/by-fingerprint/%s",
	"https://raw.githubusercontent.com/nodejs/release-keys/HEAD/keys/%s.asc",
}

func main() {
	check := flag.Bool("check", false, "compare the table with the registry and upstream; write nothing")
	table := flag.String("table", "internal/image/pin/pins.json", "the table")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	u := &updater{registry: registry(), keys: releaseKeys, keyServers: keyServers, check: *check, out: os.Stdout, today: time.Now().UTC().Format(time.DateOnly)}
	if err := u.run(ctx, *table); err != nil {
		fmt.Fprintln(os.Stderr, "pins:", err)
		os.Exit(1)
	}
}

// registry is npm where there is one, as for image builds.
func registry() pin.Registry {
	npm, err := exec.LookPath("npm")
	if err != nil {
		return pin.Registry{}
	}
	return pin.Registry{NPM: func(ctx context.Context, dir string, args ...string) ([]byte, error) {
		cmd := exec.CommandContext(ctx, npm, args...)
		cmd.Dir, cmd.Stderr = dir, os.Stderr
		return cmd.Output()
	}}
}

type updater struct {
	registry   pin.Registry
	keys       []string // fingerprints that may sign
	keyServers []string // URL patterns with the fingerprint as %s
	check      bool
	out        io.Writer
	today      string
}

func (u *updater) run(ctx context.Context, table string) error {
	data, err := os.ReadFile(table)
	if err != nil {
		return err
	}
	pins, err := pin.Parse(data)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "hearth-pins-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var errs []error
	for i, p := range pins {
		next, err := u.one(ctx, p, dir)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.Name, err))
			continue
		}
		pins[i] = next
		fmt.Fprintf(u.out, "%-8s %-24s sha256 %s  upstream: %s\n", next.Name, next.Spec(), next.SHA256, describe(next.Upstream))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	out, err := pin.Format(pins)
	if err != nil {
		return err
	}
	if u.check || bytes.Equal(out, data) {
		return nil
	}
	if err := os.WriteFile(table, out, 0o644); err != nil {
		return err
	}
	fmt.Fprintln(u.out, "written:", table)
	return nil
}

func describe(u pin.Upstream) string {
	switch u.Result {
	case pin.Identical:
		return fmt.Sprintf("identical (signed by %s, compared %s)", u.Key, u.Date)
	case pin.NotChecked:
		return "NOT CHECKED: " + u.Why
	}
	return u.Result
}

// one brings a pin up to date, or checks it.
func (u *updater) one(ctx context.Context, p pin.Pin, dir string) (pin.Pin, error) {
	versions, err := u.registry.Versions(ctx, p.Package)
	if err != nil {
		return p, err
	}
	major, _, _ := strings.Cut(p.Version, ".")
	newest := pin.Newest(major, versions)
	if newest == "" {
		return p, fmt.Errorf("the registry has no release %s of %s", major, p.Package)
	}
	next := p
	if newest != p.Version {
		if u.check {
			fmt.Fprintf(u.out, "%-8s %s is out: `scripts/pins` takes it\n", p.Name, newest)
		} else {
			next.Version, next.Source = newest, strings.ReplaceAll(p.Source, p.Version, newest)
			next.Upstream = pin.Upstream{Result: p.Upstream.Result}
		}
	}
	tarball, err := u.registry.Download(ctx, next.Package, next.Version, dir, pin.MaxSize)
	if err != nil {
		return p, err
	}
	defer os.Remove(tarball)
	if next.Version == p.Version {
		if err := p.Verify(tarball); err != nil {
			return p, err
		}
	} else if next.Size, next.SHA256, next.Integrity, err = pin.Sums(tarball); err != nil {
		return p, err
	}
	files := make([]string, 0, len(p.Files))
	for name := range p.Files {
		files = append(files, name)
	}
	sums, err := sumsInside(tarball, files)
	if err != nil {
		return p, err
	}
	next.Files = nil
	if len(sums) > 0 {
		next.Files = sums
	}
	if next.Version == p.Version {
		for name, sum := range sums {
			if err := p.VerifyFile(name, sum); err != nil {
				return p, err
			}
		}
	}
	if next.Upstream.Result == pin.RegistryOnly {
		return next, nil
	}
	found, err := u.upstream(ctx, next, dir)
	if unreachable, ok := errors.AsType[*unreachableError](err); ok {
		fmt.Fprintf(u.out, "%-8s not compared with upstream: %v\n", p.Name, unreachable)
		// An earlier comparison of the same bytes stays true.
		if next.Version != p.Version {
			next.Upstream = pin.Upstream{Result: pin.NotChecked, Why: fmt.Sprintf("%s could not be reached on %s", unreachable.host, u.today)}
		}
		return next, nil
	}
	if err != nil {
		return p, fmt.Errorf("upstream: %w", err)
	}
	if p.Upstream.Result == pin.Identical && next.Version == p.Version {
		found.Date = p.Upstream.Date // nothing new
	}
	next.Upstream = found
	return next, nil
}

// maxUnpacked bounds what is read out of one archive.
const (
	maxUnpacked = 1 << 30
	maxFiles    = 20_000
)

// sumsInside returns the sums of files in an npm tarball ("package/…"), which
// nobody has vouched for yet.
func sumsInside(tarball string, want []string) (map[string]string, error) {
	sums := map[string]string{}
	err := archive.Files(tarball, archive.Limits{Entries: maxFiles, Names: maxUnpacked / 64, Bytes: maxUnpacked},
		func(name string, _ *tar.Header, r io.Reader) error {
			if !slices.Contains(want, name) {
				return nil
			}
			if sums[name] != "" {
				return fmt.Errorf("it holds %s twice", name)
			}
			sum := sha256.New()
			if _, err := io.Copy(sum, r); err != nil {
				return err
			}
			sums[name] = hex.EncodeToString(sum.Sum(nil))
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(tarball), err)
	}
	for _, name := range want {
		if sums[name] == "" {
			return nil, fmt.Errorf("%s holds no %s", filepath.Base(tarball), name)
		}
	}
	return sums, nil
}

// An unreachableError says that somebody did not answer, so nothing is known.
// Whoever answers with an error has answered.
type unreachableError struct {
	host string
	err  error
}

func (e *unreachableError) Error() string { return e.host + " could not be reached: " + e.err.Error() }
func (e *unreachableError) Unwrap() error { return e.err }

// upstream compares a pin with its makers' archive.
func (u *updater) upstream(ctx context.Context, p pin.Pin, dir string) (pin.Upstream, error) {
	base, archive := path.Split(p.Source)
	asc, err := get(ctx, base+"SHASUMS256.txt.asc", 1<<20)
	if err != nil {
		return pin.Upstream{}, err
	}
	sums, key, err := u.signed(ctx, asc, dir)
	if err != nil {
		return pin.Upstream{}, fmt.Errorf("%sSHASUMS256.txt.asc: %w", base, err)
	}
	want := ""
	for line := range strings.Lines(sums) {
		if f := strings.Fields(line); len(f) == 2 && f[1] == archive {
			want = f[0]
		}
	}
	if want == "" {
		return pin.Upstream{}, fmt.Errorf("%sSHASUMS256.txt.asc names no %s", base, archive)
	}
	data, err := get(ctx, p.Source, pin.MaxSize)
	if err != nil {
		return pin.Upstream{}, err
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != want {
		return pin.Upstream{}, fmt.Errorf("%s: sha256 is %x, the signed sums say %s", p.Source, sum, want)
	}
	file := filepath.Join(dir, "upstream.tar.xz")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return pin.Upstream{}, err
	}
	defer os.Remove(file)
	for name, sum := range p.Files {
		member := strings.TrimSuffix(archive, ".tar.xz") + "/" + name
		got, err := sumOfMember(ctx, file, member)
		if err != nil {
			return pin.Upstream{}, fmt.Errorf("%s: %w", p.Source, err)
		}
		if got != sum {
			return pin.Upstream{}, fmt.Errorf("%s in %s is not what its makers publish: sha256 %s in the npm package, %s in %s", name, p.Spec(), sum, got, p.Source)
		}
	}
	return pin.Upstream{Result: pin.Identical, SHA256: want, Key: key, Date: u.today}, nil
}

// signed returns the signed part of a clear-signed text and the fingerprint of
// the primary key that signed it, one of u.keys.
func (u *updater) signed(ctx context.Context, asc []byte, dir string) (text, key string, err error) {
	home, err := os.MkdirTemp(dir, "gnupg-")
	if err != nil {
		return "", "", err
	}
	defer os.RemoveAll(home)
	gpg := func(stdin []byte, args ...string) (stdout []byte, stderr string, err error) {
		var out, errs bytes.Buffer
		cmd := exec.CommandContext(ctx, "gpg", append([]string{"--homedir", home, "--batch", "--no-tty", "--no-autostart", "--no-auto-key-retrieve"}, args...)...)
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errs
		err = cmd.Run()
		return out.Bytes(), errs.String(), err
	}
	if _, err := exec.LookPath("gpg"); err != nil {
		return "", "", errors.New("gpg is not installed: run `apt-get install gnupg`")
	}
	imported := 0
	var missing error
	for _, fingerprint := range u.keys {
		for _, server := range u.keyServers {
			data, err := get(ctx, fmt.Sprintf(server, fingerprint), 1<<20)
			if err != nil {
				missing = err
				continue
			}
			if _, said, err := gpg(data, "--import"); err != nil {
				missing = fmt.Errorf("gpg --import %s: %w: %s", fingerprint, err, said)
				continue
			}
			imported++
			break
		}
	}
	if imported == 0 {
		return "", "", fmt.Errorf("no release key: %w", missing)
	}
	file := filepath.Join(home, "text")
	// gpg's exit code also complains of keys that have expired since they signed.
	status, said, _ := gpg(asc, "--status-fd", "1", "--output", file, "--decrypt")
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[1] {
		case "BADSIG", "ERRSIG", "REVKEYSIG", "EXPSIG":
			return "", "", fmt.Errorf("gpg says %s: %s", f[1], said)
		case "VALIDSIG":
			if key != "" {
				return "", "", errors.New("signed twice")
			}
			key = f[len(f)-1]
		}
	}
	if !slices.Contains(u.keys, key) {
		return "", "", fmt.Errorf("not signed by a release key of Node (signer %q): %s", key, said)
	}
	data, err := os.ReadFile(file)
	return string(data), key, err
}

// sumOfMember hashes one file of a .tar.xz.
func sumOfMember(ctx context.Context, file, member string) (string, error) {
	cmd := exec.CommandContext(ctx, "tar", "-xJOf", file, member)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	sum := sha256.New()
	n, copyErr := io.Copy(sum, io.LimitReader(out, maxUnpacked))
	if n == maxUnpacked {
		_ = cmd.Process.Kill()
		copyErr = fmt.Errorf("%s is larger than %d bytes", member, maxUnpacked)
	}
	if err := cmd.Wait(); err != nil && copyErr == nil {
		return "", fmt.Errorf("tar: %w: %s", err, said.String())
	}
	return hex.EncodeToString(sum.Sum(nil)), copyErr
}

// get fetches at most max bytes.
func get(ctx context.Context, address string, max int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, &unreachableError{req.URL.Hostname(), err}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", address, resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, max+1))
	if err == nil && int64(len(data)) > max {
		err = fmt.Errorf("%s: more than %d bytes", address, max)
	}
	return data, err
}
